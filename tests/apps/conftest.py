"""Starts an application of this folder in a process of its own and watches it from outside.

The loop under test is named by the environment variable APPS_LOOP (`pyreactor` if unset), so the
same tests can be run on `asyncio` to tell a fault of the loop from a fault of the test.
"""

import http.client
import importlib
import importlib.util
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading

import pytest

HERE = pathlib.Path(__file__).resolve().parent
LOOP = os.environ.get("APPS_LOOP", "pyreactor")
ADDRESS = re.compile(r"http://(127\.0\.0\.1):(\d+)")
# Generous, since a loaded machine can take seconds to import a web framework; nothing waits for
# it to pass unless something is broken.
START_SECONDS = 60
STOP_SECONDS = 30

UVICORN = ["-m", "uvicorn", "uvicorn_app:app", "--port", "0", "--no-access-log"]
COMMANDS = {
    "aiohttp": ["aiohttp_app.py", LOOP],
    "uvicorn": [*UVICORN, "--loop", f"{LOOP}:new_event_loop"],
    "uvicorn-h11": [*UVICORN, "--loop", f"{LOOP}:new_event_loop", "--http", "h11"],
    "uvicorn-embedded": ["uvicorn_app.py", LOOP],
    # The programs as they are, started by the package's own command.
    "aiohttp-command": ["-m", "pyreactor", "aiohttp_app.py", "asyncio"],
    "uvicorn-command": ["-m", "pyreactor", *UVICORN, "--loop", "none"],
}


def unavailable(message):
    """Skip on a developer's machine; fail where CI=true, because there nobody reads the skips."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{message} (a failure, not a skip, because CI=true)", pytrace=False)
    pytest.skip(message)


class Application:
    """A server process: where it listens, what it wrote, what it holds, how it ended."""

    def __init__(self, arguments):
        environment = dict(os.environ, PYTHONUNBUFFERED="1", PYTHONDONTWRITEBYTECODE="1")
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=HERE,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines = []
        self._announced = threading.Event()
        self._address = None
        # The output is read to its end, for a full pipe would stop the server.
        self._reader = threading.Thread(target=self._read_output, daemon=True)
        self._reader.start()

    def _read_output(self):
        with self.process.stdout as output:
            for line in output:
                self.lines.append(line)
                match = ADDRESS.search(line)
                if match and self._address is None:
                    self._address = (match[1], int(match[2]))
                    self._announced.set()
        self._announced.set()

    @property
    def output(self):
        return "".join(self.lines)

    @property
    def address(self):
        """The address that the server announced; waits for it."""
        in_time = self._announced.wait(START_SECONDS)
        if self._address is None:
            why = "ended before" if in_time else f"took over {START_SECONDS} s without"
            pytest.fail(f"the server {why} announcing an address; it wrote:\n{self.output}")
        return self._address

    @property
    def url(self):
        return "http://{}:{}".format(*self.address)

    def connection(self):
        return http.client.HTTPConnection(*self.address, timeout=START_SECONDS)

    def request(self, method, path, body=None, headers=None):
        """One request on a connection of its own: the response, read, and its body."""
        connection = self.connection()
        try:
            connection.request(method, path, body, {"Connection": "close", **(headers or {})})
            response = connection.getresponse()
            return response, response.read()
        finally:
            connection.close()

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def resident_kib(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)[1])

    def interrupt(self):
        """End it as Ctrl-C does; returns the exit status."""
        self.process.send_signal(signal.SIGINT)
        status = self.process.wait(STOP_SECONDS)
        self._reader.join(STOP_SECONDS)
        return status

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(STOP_SECONDS)


def start_application(name):
    framework = name.partition("-")[0]
    if importlib.util.find_spec(framework) is None:
        unavailable(f"{framework} is not installed (pip install {framework})")
    return Application(COMMANDS[name])


@pytest.fixture
def start():
    """Start an application by its name in COMMANDS; it is ended with the test."""
    running = []

    def start_one(name):
        running.append(start_application(name))
        return running[-1]

    yield start_one
    for application in running:
        application.close()


@pytest.fixture(scope="module", params=["aiohttp", "uvicorn", "uvicorn-h11"])
def server(request):
    """One running server for a whole test file, since starting one is most of a test's time."""
    application = start_application(request.param)
    yield application
    application.close()
    assert "Traceback" not in application.output, application.output


@pytest.fixture
def require():
    """`unavailable`, for tests that need something of the machine."""
    return unavailable


@pytest.fixture
def aiohttp():
    """aiohttp as a client library."""
    if importlib.util.find_spec("aiohttp") is None:
        unavailable("aiohttp is not installed (pip install aiohttp)")
    return importlib.import_module("aiohttp")


@pytest.fixture
def loop_name():
    return LOOP
