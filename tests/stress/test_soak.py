"""The soak test in short; `make soak` runs it for ten minutes."""

import pytest

SECONDS = 12
# Without what still is asyncio's own, which is not proof against severe faults.
NATIVE = [
    *("tcp", "unix", "tls", "streams", "udp", "subprocess", "cancelled_connect"),
    *("sock_methods", "cancelled_sock_methods", "threads", "timers"),
]


@pytest.mark.time_limit(200)
@pytest.mark.parametrize("processes", [1, 2])
def test_nothing_goes_wrong_while_calls_have_to_be_tried_again(run_under_faults, processes):
    run_under_faults(
        "soak.py", "--seconds", str(SECONDS), "--severe", "0", "--processes", str(processes)
    )


@pytest.mark.time_limit(200)
def test_nothing_goes_wrong_but_what_a_fault_explains(run_under_faults):
    run_under_faults("soak.py", "--seconds", str(SECONDS), "--severe", "500", "--only", *NATIVE)
