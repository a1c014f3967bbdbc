"""`python -m pyreactor --info`: what a bug report needs to know about this machine."""

from __future__ import annotations

import errno
import os
import platform
import select
import ssl
import sys
import sysconfig

import pyreactor
from pyreactor.backend import io_uring_refusal

# The same number on x86-64 and aarch64.
SYS_EPOLL_PWAIT2 = 441


def report() -> str:
    """The whole report, one `name  value` per line."""
    lines = [
        ("pyreactor", pyreactor.__version__),
        ("backend", _backend()),
        ("tls", _tls()),
        ("python", _python()),
        ("built with", _build()),
        ("kernel", _kernel()),
        ("  epoll", _epoll()),
        ("  epoll_pwait2", _epoll_pwait2()),
        ("  io_uring", _io_uring()),
    ]
    return "".join(f"{name:<16}{value}\n" for name, value in lines)


def _backend() -> str:
    loop = pyreactor.new_event_loop()
    try:
        return str(loop.backend)
    finally:
        loop.close()


def _tls() -> str:
    from pyreactor import _tls_engine

    engine, reason = _tls_engine.explain_choice()
    try:
        choice = _tls_engine.configured_choice()
    except (ValueError, RuntimeError) as error:
        return f"none: {error}"
    if choice == "memorybio" != engine:
        engine, reason = choice, "PYREACTOR_TLS says so"
    return f"{engine}, {ssl.OPENSSL_VERSION}" + (f"; no openssl engine: {reason}" if reason else "")


def _python() -> str:
    gil_enabled = getattr(sys, "_is_gil_enabled", lambda: True)()
    build = "free-threaded" if sysconfig.get_config_var("Py_GIL_DISABLED") else "default build"
    gil = "GIL on" if gil_enabled else "GIL off"
    return f"{platform.python_implementation()} {platform.python_version()}, {build}, {gil}"


def _build() -> str:
    debug = ", debug build" if sysconfig.get_config_var("Py_DEBUG") else ""
    return f"{platform.python_compiler()}{debug}"


def _kernel() -> str:
    libc = " ".join(platform.libc_ver()).strip() or "unknown C library"
    return f"{platform.system()} {platform.release()} {platform.machine()}, {libc}"


def _epoll() -> str:
    try:
        select.epoll().close()
    except OSError as error:
        return f"no: {error.strerror}"
    return "yes"


def _epoll_pwait2() -> str:
    # A bad descriptor makes the call harmless; any other error than EBADF is the kernel's no.
    match _probe(SYS_EPOLL_PWAIT2, -1, None, 1, None, None, 0):
        case None:
            return "unknown: this Python has no ctypes"
        case errno.EBADF | errno.EINVAL | errno.EFAULT:
            return "yes"
        case errno.ENOSYS:
            return "no: the kernel is older than 5.11; timeouts are rounded up to milliseconds"
        case error:
            return f"no: {os.strerror(error)} (a seccomp filter, such as a container's)"


def _io_uring() -> str:
    try:
        pyreactor.Loop(backend="io_uring").close()
    except OSError as error:
        return f"no: {io_uring_refusal(error.errno or 0)}"
    return "yes"


def _probe(number: int, *args: int | None) -> int | None:
    """The errno that the system call `number` gives, or None if it cannot be asked."""
    try:
        import ctypes
    except ImportError:
        return None
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    words = [None if arg is None else ctypes.c_long(arg) for arg in args]
    if syscall(ctypes.c_long(number), *words) >= 0:
        return 0
    return ctypes.get_errno()
