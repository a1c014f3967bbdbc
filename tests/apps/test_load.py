"""Each application answers 100,000 requests without an error and without growing."""

import re
import shutil
import subprocess
import time

import pytest

REQUESTS = 100_000
# Caches, free lists and allocator pools have their working size by then; what grows later leaks.
WARM_UP_REQUESTS = 10_000
CONNECTIONS = 64
# Room for two of the 1 MiB arenas that CPython's allocator maps at a time, which it may need when
# objects happen to fall unluckily. A leak of 24 bytes per request is already more than this.
RESIDENT_SLACK_KIB = 2048
# Both frameworks leave some KiB of cyclic garbage per connection, which the full collections that
# Python makes by itself leave alone for hundreds of thousands of requests. That is no leak, so it
# is collected after each slice, and what then still grows is one.
COLLECT = "/collect"
# wrk is bounded by time, so it is run in short slices until enough requests are counted. A new
# slice also means new connections: that is where descriptors would leak.
SLICE_SECONDS = 1
SETTLE_SECONDS = 10
# A server that is slower than this, even on a loaded machine, has a fault worth a failure.
LOAD_SECONDS = 180

# Above all that the waits within a test allow themselves.
pytestmark = pytest.mark.time_limit(3 * LOAD_SECONDS)


class Load:
    """Slices of wrk against one server, added up."""

    def __init__(self, wrk, application):
        self.requests = 0
        self.errors = []
        self._application = application
        self._command = [wrk, "-t1", f"-c{CONNECTIONS}", f"-d{SLICE_SECONDS}s", "--timeout", "10s"]
        self._command.append(application.url + "/")

    def run_until(self, requests):
        deadline = time.monotonic() + LOAD_SECONDS
        while self.requests < requests:
            assert time.monotonic() < deadline, f"only {self.requests} requests answered"
            report = subprocess.run(
                self._command, capture_output=True, text=True, check=True, timeout=60
            ).stdout
            answered = int(re.search(r"(\d+) requests in ", report)[1])
            assert answered > 0, report
            self.requests += answered
            # wrk prints these two lines only if there is something to report.
            self.errors += re.findall(r"^\s*(Socket errors: .*|Non-2xx .*)$", report, re.MULTILINE)
            assert self._application.request("GET", COLLECT)[0].status == 200


def settled_descriptors(application, goal):
    """The server's descriptors once it has closed the connections that ended, or the fewest seen.

    Each look comes after one more request, because a server that has answered it has had its
    chance to see the connections that were closed before.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    fewest = None
    while fewest is None or (fewest > goal and time.monotonic() < deadline):
        assert application.request("GET", "/")[0].status == 200
        now = application.descriptors()
        fewest = now if fewest is None else min(fewest, now)
    return fewest


@pytest.mark.parametrize("name", ["aiohttp", "uvicorn"])
def test_100_000_requests_without_error_or_growth(start, require, record_property, name):
    wrk = shutil.which("wrk")
    if wrk is None:
        require("wrk is not installed (Debian package: wrk)")
    application = start(name)
    idle = application.descriptors()
    load = Load(wrk, application)

    load.run_until(WARM_UP_REQUESTS)
    descriptors = settled_descriptors(application, goal=idle)
    resident_kib = application.resident_kib()

    load.run_until(REQUESTS)
    descriptors_after = settled_descriptors(application, goal=descriptors)
    resident_after_kib = application.resident_kib()

    figures = {
        "requests": load.requests,
        "errors": load.errors,
        "descriptors": (descriptors, descriptors_after),
        "resident_kib": (resident_kib, resident_after_kib),
    }
    for key, value in figures.items():
        record_property(key, value)
    print(name, figures)

    assert load.errors == []
    assert descriptors_after <= descriptors
    assert resident_after_kib <= resident_kib + RESIDENT_SLACK_KIB
    assert application.interrupt() == 0, application.output
    assert "Traceback" not in application.output, application.output
