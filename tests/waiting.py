"""Waiting for what a test cannot be told of."""

import time

PAUSE_SECONDS = 0.001


def wait_until(condition, seconds):
    """Look again and again until it is true, for so many seconds; what it is then."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(PAUSE_SECONDS)
    return value
