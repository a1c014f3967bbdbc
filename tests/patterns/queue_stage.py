"""The program that the witness looks at for the request queue.  See witness.py.

It is told to "exchange" so many items between a put and a get of the same thread, between the marks
"busy" and "quiet".
"""

import threading

import witness

from pyreactor.request_queue import RequestQueue


def exchange(count: int) -> None:
    """Put and get, with nobody asleep."""
    queue: RequestQueue[int] = RequestQueue(64)
    queue.put(0)
    queue.get()
    witness.mark("busy")
    for number in range(count):
        queue.put(number)
        queue.get()
    witness.mark("quiet")


if __name__ == "__main__":
    witness.obey(
        {"address": [], "roles": {}, "tid": threading.get_native_id()}, {"exchange": exchange}
    )
