"""One loop in each of several threads, on a Python without the GIL.

    python -m scale.threads LOOP WORKLOAD THREADS REPETITIONS WORK

Every thread does the whole WORKLOAD of workloads.py (WORK multiplies it) on a loop of its own.
Prints one line of JSON: `times`, how much longer they take by the clock than one thread alone, the
best of the repetitions of each.  1 means that nothing is shared; THREADS, that they take turns.
"""

import asyncio
import functools
import json
import sys
import threading
import time

import loops
from scale.workloads import WORKLOADS

PATIENCE_SECONDS = 100


class Crew:
    """The threads, each with its loop, and the time they take for the workload together."""

    def __init__(self, new_event_loop, function, count, threads):
        self._function, self._count = function, count
        self._new_event_loop = new_event_loop
        self._at_start = threading.Barrier(threads + 1, timeout=PATIENCE_SECONDS)
        self._at_end = threading.Barrier(threads + 1, timeout=PATIENCE_SECONDS)
        self._stopping = False
        self.errors = []
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _work(self):
        try:
            with asyncio.Runner(loop_factory=self._new_event_loop) as runner:
                runner.run(self._function(max(1, self._count // 10)))  # warm up
                while True:
                    self._at_start.wait()
                    if self._stopping:
                        return
                    runner.run(self._function(self._count))
                    self._at_end.wait()
        except BaseException as error:
            self.errors.append(error)
            self._at_start.abort()
            self._at_end.abort()

    def seconds(self):
        """Have every thread do the workload once."""
        self._at_start.wait()
        began = time.perf_counter()
        self._at_end.wait()
        return time.perf_counter() - began

    def stop(self):
        self._stopping = True
        self._at_start.wait()
        for thread in self._threads:
            thread.join()


def is_free_threaded():
    """Whether threads run Python at the same time; importing an extension may have ended that."""
    return not getattr(sys, "_is_gil_enabled", lambda: True)()


def measure(new_event_loop, function, count, threads, repetitions):
    """The time of one thread alone, and of all together, in seconds; they take turns."""
    crews = [Crew(new_event_loop, function, count, number) for number in (1, threads)]
    try:
        rounds = [[crew.seconds() for crew in crews] for _ in range(repetitions)]
        for crew in crews:
            crew.stop()
    except threading.BrokenBarrierError:
        errors = [error for crew in crews for error in crew.errors]
        raise SystemExit(f"a thread failed: {errors}") from None
    return map(min, zip(*rounds, strict=True))


def main(loop_name, workload, threads, repetitions, work):
    function, count = WORKLOADS[workload]
    factory = functools.partial(loops.new_event_loop, loop_name)
    factory().close()  # imports it
    if not is_free_threaded():
        raise SystemExit("importing this loop turns the GIL on")
    count = max(1, round(count * float(work)))
    one, all_together = measure(factory, function, count, int(threads), int(repetitions))
    figures = {"times": all_together / one, "threads": int(threads)}
    print(json.dumps({**figures, "one_per_second": count / one}))


if __name__ == "__main__":
    main(*sys.argv[1:])
