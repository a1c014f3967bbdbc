"""Why the io_uring backend cannot be had on this machine, and what to do about it."""

from __future__ import annotations

import errno
import os

IO_URING_DISABLED = "/proc/sys/kernel/io_uring_disabled"
# Read by the core: names of io_uring's operations to do without, for whoever looks for a fault.
WITHOUT = "PYREACTOR_URING_WITHOUT"


def io_uring_refusal(error: int) -> str:
    """Return in words why the kernel refused a ring with the errno `error`, and the remedy."""
    match error:
        case errno.ENOSYS:
            return "the kernel has no io_uring (it is older than 5.1, or built without)"
        case errno.EINVAL:
            return _why_it_is_unfit()
        case errno.EPERM:
            return _why_it_is_forbidden()
        case errno.ENOMEM:
            return "no memory for a ring may be locked: raise `ulimit -l`"
        case _:
            return os.strerror(error)


def _why_it_is_unfit() -> str:
    without = os.environ.get(WITHOUT)
    if without:
        return (
            f"{WITHOUT}={without} names an operation that nothing replaces (poll_add, async_cancel)"
            " or that pyreactor does not use: unset it"
        )
    return "the kernel is older than 6.1, the first whose io_uring pyreactor can use"


def _why_it_is_forbidden() -> str:
    try:
        with open(IO_URING_DISABLED) as file:
            setting = file.read().strip()
    except OSError:
        setting = "0"
    if setting == "0":
        return (
            "a seccomp filter, such as a container's, forbids it: allow io_uring_setup(2),"
            " io_uring_enter(2) and io_uring_register(2) there"
        )
    return f"the sysctl kernel.io_uring_disabled={setting} forbids it: an administrator may set 0"
