"""Subprocesses: the standard library starts them, the loop waits for their end through a pidfd.

SIGCHLD stays the program's own, and so does every child that the loop has not started.  The loop
works in any thread and needs none of asyncio's child watchers.  A child is reaped in one place
only, under the lock of its `Popen`, so that its number is never waited for twice, nor sent a signal
after it may have become somebody else's.
"""

import os
import subprocess
import threading
from asyncio import base_subprocess
from asyncio.log import logger

_RETURNCODE_UNKNOWN = 255  # asyncio's, for a child that somebody else has reaped


class SubprocessTransport(base_subprocess.BaseSubprocessTransport):
    """A process and its pipes.  The loop's thread only."""

    def __init__(self, loop, *args, **kwargs):
        self._pidfd = None  # owned
        self._exited = loop.create_future()  # set when the process is reaped
        self._connecting = True  # the pipes are on their way to their transports
        super().__init__(loop, *args, **kwargs)
        try:
            self._watch_process()
        except BaseException:
            self.close()
            raise

    def _start(self, args, shell, stdin, stdout, stderr, bufsize, **kwargs):
        self._proc = subprocess.Popen(
            args,
            shell=shell,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            universal_newlines=False,
            bufsize=bufsize,
            **kwargs,
        )

    # Its end

    def _watch_process(self):
        """Have _reap() called in the loop when the process has ended."""
        pid = self._proc.pid
        try:
            self._pidfd = os.pidfd_open(pid)
            self._loop._add_reader(self._pidfd, self._reap)
        except ProcessLookupError:  # reaped already, by somebody else
            self._loop.call_soon(self._reap)
        except (OSError, AttributeError):  # no descriptor left, an old kernel, a seccomp filter
            self._close_pidfd()
            threading.Thread(
                target=_wait_in_thread, args=(self._loop, pid, self._reap), daemon=True
            ).start()

    def _reap(self):
        """Take the exit status of the process, which has ended."""
        if self._pidfd is not None:
            self._loop._remove_reader(self._pidfd)
            self._close_pidfd()
        process = self._proc
        with process._waitpid_lock:
            if process.returncode is None:  # else the program has called its poll()
                process.returncode = _take_status(process.pid)
        self._exited.set_result(None)
        self._process_exited(process.returncode)

    def _close_pidfd(self):
        pidfd, self._pidfd = self._pidfd, None
        if pidfd is not None:
            os.close(pidfd)

    def __del__(self):
        super().__del__()
        self._close_pidfd()  # the loop was closed before the process ended

    # Signals: never to a number that may be another's by now, which Popen sees to

    def send_signal(self, signal):
        """Send a signal, unless the process has ended; ProcessLookupError once it is all over."""
        self._check_proc()
        self._proc.send_signal(signal)

    def terminate(self):
        """Send SIGTERM."""
        self._check_proc()
        self._proc.terminate()

    def kill(self):
        """Send SIGKILL."""
        self._check_proc()
        self._proc.kill()

    # Its pipes

    async def _connect_pipes(self, waiter):
        await super()._connect_pipes(waiter)
        self._connecting = False
        if self._closed:  # meanwhile
            self._close_pipes()

    def _close_pipes(self):
        """Close every pipe, also those that have not become a transport."""
        files = (self._proc.stdin, self._proc.stdout, self._proc.stderr)
        for fd, file in enumerate(files):
            protocol = self._pipes.get(fd)
            if protocol is not None:
                protocol.pipe.close()
            elif file is not None:
                file.close()

    async def _give_up(self):
        """Kill the process, close its pipes and wait until it is reaped."""
        self.close()
        if not self._connecting:
            self._close_pipes()
        await self._exited


def _take_status(pid):
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        logger.warning(
            "child process pid %d exit status already read:  will report returncode 255", pid
        )
        return _RETURNCODE_UNKNOWN
    return os.waitstatus_to_exitcode(status)


def _wait_in_thread(loop, pid, reap):
    """Wait for the end of a process without reaping it, and have `reap` called in the loop."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:
        pass  # somebody else has reaped it
    try:
        loop.call_soon_threadsafe(reap)
    except RuntimeError:
        logger.warning("Loop %r that handles pid %r is closed", loop, pid)


class SubprocessMethods:
    """A part of the loop."""

    async def _make_subprocess_transport(self, protocol, *args, extra=None, **kwargs):
        waiter = self.create_future()
        transport = SubprocessTransport(self, protocol, *args, waiter=waiter, extra=extra, **kwargs)
        try:
            await waiter
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:
            await transport._give_up()
            raise
        return transport
