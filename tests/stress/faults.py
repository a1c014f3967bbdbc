"""Fault injection (faults.c) from Python: how to build it, load it and ask it."""

import collections
import ctypes
import errno
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
SOURCE = HERE / "faults.c"
FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-pthread"]
# Before all other libraries: the allocator of Python 3.13 makes a system call when it is loaded.
FLAGS += ["-Wl,-z,initfirst"]


def build(folder, compiler="cc"):
    """Compile the library into `folder` and return its path."""
    library = pathlib.Path(folder) / "faults.so"
    subprocess.run([compiler, *FLAGS, SOURCE, "-o", library, "-ldl"], check=True)
    return library


def environment(library, *, seed, mild_ppm, severe_ppm):
    """What to add to the environment of a program so that it runs with faults.

    The rates are in faults per million system calls.
    """
    # AddressSanitizer insists on being the first.
    before = [path for path in os.environ.get("LD_PRELOAD", "").split(":") if path]
    return {
        "LD_PRELOAD": ":".join([*before, str(library)]),
        "FAULTS_SEED": str(seed),
        "FAULTS_MILD": str(mild_ppm),
        "FAULTS_SEVERE": str(severe_ppm),
    }


class Faults:
    """The library that this process was started with; without it, nothing is ever injected."""

    def __init__(self):
        self._library = ctypes.CDLL(None)
        self.loaded = hasattr(self._library, "faults_enable")
        if self.loaded:
            self._library.faults_of.argtypes = [ctypes.c_uint64]
            self._library.faults_spare.argtypes = [ctypes.c_uint64]
            self._library.faults_report.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
            self._library.faults_report.restype = ctypes.c_size_t

    def enable(self, on=True):
        """Start injecting, or stop."""
        if self.loaded:
            self._library.faults_enable(on)

    def spare(self, fd):
        """Leave the socket or pipe alone, because nobody else has its other end."""
        if self.loaded:
            self._library.faults_spare(os.fstat(fd).st_ino)

    def fail(self, call, error, nth=1):
        """Let the `nth` call of this name from now on fail with an errno."""
        assert self._library.faults_fail(call.encode(), error, nth) == 0, f"{call} is not wrapped"

    def count(self, error):
        """How often this errno was injected."""
        return self._library.faults_count(error) if self.loaded else 0

    def of(self, inode):
        """The errno that has ended the socket with this inode, or 0."""
        return self._library.faults_of(inode) if self.loaded else 0

    def report(self):
        """A Counter of what was injected, by "call ERRNO"."""
        counts = collections.Counter()
        if self.loaded:
            text = ctypes.create_string_buffer(1 << 16)
            size = self._library.faults_report(text, len(text))
            for line in text.raw[:size].decode().splitlines():
                call, error, count = line.split()
                kind = errno.errorcode.get(int(error), "shortened")
                counts[f"{call} {kind}"] += int(count)
        return counts


def main(arguments):
    """Run python with `arguments` under the library; only what the program asks for fails."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        faults = environment(build(folder), seed=1, mild_ppm=0, severe_ppm=0)
        path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
        command = [sys.executable, *arguments]
        return subprocess.run(command, env=dict(os.environ, **faults, PYTHONPATH=path)).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
