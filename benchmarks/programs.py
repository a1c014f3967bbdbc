"""The programs that are measured and those that measure: compiled, started, pinned, listened to."""

import contextlib
import functools
import json
import os
import pathlib
import select
import shutil
import subprocess
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
BUILD = pathlib.Path("build", "benchmarks").resolve()  # of the folder that it is run in
START_SECONDS = 30
CASE_SECONDS = 120  # a case takes one or two; what takes this long hangs


class CaseError(Exception):
    """This loop cannot do this row."""


@functools.cache
def cpus():
    """One CPU for the server and another for the load, or no choice if there is only one."""
    available = sorted(os.sched_getaffinity(0))
    return (available[0], available[1]) if len(available) > 1 else (None, None)


def pinned_to(cpu):
    """For Popen: what the child does before it becomes the program."""
    return None if cpu is None else functools.partial(os.sched_setaffinity, 0, {cpu})


@functools.cache
def compiled(name, tls=False):
    """Compile a C program of echo/ once per run, so that it is never older than its source."""
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler.split()[0]) is None:
        raise SystemExit(f"no C compiler: {compiler} (Debian package: gcc)")
    BUILD.mkdir(parents=True, exist_ok=True)
    program = BUILD / (f"{name}_tls" if tls else name)
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", *(["-DTLS"] if tls else [])]
    libraries = ["-lssl", "-lcrypto"] if tls else []
    command = [*compiler.split(), *flags, "-o", program, HERE / "echo" / f"{name}.c", *libraries]
    if subprocess.run(command, check=False).returncode != 0:
        package = "libssl-dev" if tls else "libc6-dev"
        raise CaseError(f"{name}.c does not compile (Debian package: {package})")
    return program


@functools.cache
def certificate():
    """A self-signed certificate with its key, as a PEM file, made once per run."""
    if shutil.which("openssl") is None:
        raise CaseError("no openssl (Debian package: openssl)")
    BUILD.mkdir(parents=True, exist_ok=True)
    path = BUILD / "certificate.pem"
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "-"]
    command = ["openssl", "req", "-x509", *key, "-subj", "/CN=localhost", "-days", "2"]
    path.touch(0o600)
    path.write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
    return path


def last_line(text):
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no message"


def run_json(command, cpu=None, environment=None):
    """Run a program that prints one line of JSON; `environment` is added to this process's.

    It runs in this folder, so that Python finds the modules beside it, and none of the user's.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=CASE_SECONDS,
            preexec_fn=pinned_to(cpu),
            cwd=HERE,
            env=dict(os.environ, **(environment or {})),
        )
    except subprocess.TimeoutExpired:
        raise CaseError(f"not done after {CASE_SECONDS} s") from None
    if done.returncode != 0:
        raise CaseError(last_line(done.stderr))
    return json.loads(done.stdout)


@contextlib.contextmanager
def server(command, cpu):
    """Start a server; gives its process id and the port it announces."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, preexec_fn=pinned_to(cpu), cwd=HERE
        )
        try:
            with process.stdout as output:
                ready, _, _ = select.select([output], [], [], START_SECONDS)
                line = output.readline() if ready else b""
                if not line:
                    errors.seek(0)
                    raise CaseError(f"the server did not start: {last_line(errors.read())}")
                try:
                    yield process.pid, int(line)
                except CaseError as error:
                    # The server's own last words say more than the load generator's; one that is
                    # about to fail gets the time to say them.
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(1)
                    errors.seek(0)
                    raise CaseError(last_line(errors.read() or str(error))) from None
        finally:
            process.kill()
            process.wait()
