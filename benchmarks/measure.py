"""One figure of one scheduling workload, in this process.

    python measure.py LOOP WORKLOAD REPETITIONS

Prints one line of JSON: CPU microseconds per operation (user and system, all threads), the best
of the repetitions. What makes a repetition slower than the best is the machine, not the loop.
"""

import asyncio
import importlib
import json
import sys
import time

from workloads import WORKLOADS


def measure(new_event_loop, name, repetitions):
    function, count = WORKLOADS[name]
    best_ns = None
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(function(max(100, count // 10)))  # warm up
        for _ in range(repetitions):
            began_ns = time.process_time_ns()
            runner.run(function(count))
            took_ns = time.process_time_ns() - began_ns
            best_ns = took_ns if best_ns is None else min(best_ns, took_ns)
    return best_ns / 1000 / count


def main(loop_name, workload, repetitions):
    new_event_loop = importlib.import_module(loop_name).new_event_loop
    print(json.dumps({"cpu_us": measure(new_event_loop, workload, int(repetitions))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
