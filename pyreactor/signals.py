"""Unix signals in the loop.

The interpreter's own handler writes each signal's number to a pipe (signal.set_wakeup_fd), whose
other end the loop reads.  The pipe is in place while the loop runs in the main thread, so that
Ctrl-C ends a sleep, and for as long as there are handlers, so that a signal which comes while the
loop does not run is dealt with in its next run.
"""

from __future__ import annotations

import contextlib
import errno
import inspect
import os
import signal
import threading
import weakref
from asyncio import coroutines
from collections.abc import Iterator
from types import FrameType
from typing import Any

_NOT_SET = -1
_SIGNALS_PER_READ = 4096


def _leave_it_to_the_loop(signum: int, frame: FrameType | None) -> None:
    """Be a Python-level handler: without one the interpreter does not write to the pipe."""


_with_pipe: weakref.WeakSet[SignalHandlers] = weakref.WeakSet()


def _swap_wakeup_fd(fd: int) -> int:
    """Set the interpreter's wakeup descriptor, or none where `fd` is closed; return the old one."""
    try:
        return signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
    except (ValueError, OSError):
        return signal.set_wakeup_fd(_NOT_SET)


class SignalHandlers:
    """The signal handlers of one loop.  Main thread only, but for waking()."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._handles: dict[int, Any] = {}
        self._previous_handlers: dict[int, Any] = {}
        self._pipe: tuple[int, int] | None = None  # owned
        self._previous_wakeup_fd = _NOT_SET
        self._installed = False

    def add(self, sig: int, callback: Any, args: tuple[Any, ...]) -> None:
        """Call `callback(*args)` in the loop for each `sig`."""
        if coroutines.iscoroutine(callback) or inspect.iscoroutinefunction(callback):
            raise TypeError("coroutines cannot be used with add_signal_handler()")
        handle = self._loop._new_handle(callback, args)
        try:
            self._install()
        except (ValueError, OSError) as exc:
            raise RuntimeError(str(exc)) from exc
        try:
            previous = signal.signal(sig, _leave_it_to_the_loop)
            # Restart system calls elsewhere in the program: the loop does not need the EINTR.
            signal.siginterrupt(sig, False)
        except OSError as exc:
            self._uninstall_if_idle()
            if exc.errno == errno.EINVAL:
                raise RuntimeError(f"sig {sig} cannot be caught") from exc
            raise
        if sig in self._handles:
            self._handles[sig].cancel()
        else:
            self._previous_handlers[sig] = previous
        self._handles[sig] = handle

    def remove(self, sig: int) -> bool:
        """Restore what `sig` did before add()."""
        handle = self._handles.pop(sig, None)
        if handle is None:
            return False
        handle.cancel()
        previous = self._previous_handlers.pop(sig)
        # None: a handler that was not installed from Python, which cannot be put back from here.
        signal.signal(sig, signal.SIG_DFL if previous is None else previous)
        self._uninstall_if_idle()
        return True

    @contextlib.contextmanager
    def waking(self) -> Iterator[None]:
        """Let every signal wake the loop while it runs, where that can be."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        with contextlib.suppress(ValueError):  # not the main interpreter
            self._install()
        try:
            yield
        finally:
            self._uninstall_if_idle()

    def close(self) -> None:
        """Restore everything and close the pipe."""
        for sig in list(self._handles):
            self.remove(sig)
        self._uninstall_if_idle()
        self._close_pipe()

    def abandon_after_fork(self) -> None:
        """In a forked child: keep its signals out of the parent's loop.

        What the signals do stays as it is: nothing, which is what asyncio leaves behind, too.
        """
        if self._installed:
            with contextlib.suppress(ValueError):  # forked from another thread
                self._uninstall()
        self._handles.clear()
        self._previous_handlers.clear()
        self._close_pipe()

    def _install(self) -> None:
        """Direct signals to the pipe; ValueError outside of the main thread."""
        if self._pipe is None:
            self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                self._loop._add_reader(self._pipe[0], self._read)
                self._take_over()
            except BaseException:
                self._close_pipe()
                raise
            _with_pipe.add(self)
        else:
            self._take_over()

    def _take_over(self) -> None:
        assert self._pipe is not None
        previous = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        if previous != self._pipe[1]:
            self._previous_wakeup_fd = previous
        self._installed = True

    def _uninstall_if_idle(self) -> None:
        if self._installed and not self._handles and not self._loop.is_running():
            self._uninstall()

    def _uninstall(self) -> None:
        assert self._pipe is not None
        self._installed = False
        current = _swap_wakeup_fd(self._previous_wakeup_fd)
        if current != self._pipe[1]:  # somebody else has replaced ours: leave theirs
            _swap_wakeup_fd(current)

    def _close_pipe(self) -> None:
        if self._pipe is None:
            return
        for other in _with_pipe:  # its number may soon stand for another file
            if other._previous_wakeup_fd == self._pipe[1]:
                other._previous_wakeup_fd = self._previous_wakeup_fd
        _with_pipe.discard(self)
        self._loop._remove_reader(self._pipe[0])
        for fd in self._pipe:
            os.close(fd)
        self._pipe = None

    def _read(self) -> None:
        assert self._pipe is not None
        try:
            numbers = os.read(self._pipe[0], _SIGNALS_PER_READ)
        except (BlockingIOError, InterruptedError):
            return
        if not numbers:  # somebody has closed the other end: it would be readable for ever
            self._loop._remove_reader(self._pipe[0])
        for number in numbers:
            handle = self._handles.get(number)
            if handle is not None:
                self._loop._requeue(handle)
