"""One figure of one workload, in this process.

    python measure.py LOOP FOLDER WORKLOAD REPETITIONS WORK

FOLDER is `micro`, `transfers`, `frameworks` or `scale`, and WORK multiplies the workload's number
of operations.  Prints one line of JSON: CPU microseconds per operation (user and system, all
threads, and children that have ended), the best of the repetitions.  What makes a repetition slower
than the best is the machine, not the loop.
"""

import asyncio
import contextlib
import functools
import importlib
import json
import resource
import sys
import time

import loops


def cpu_ns():
    """Of this process, to the nanosecond, and of its children, as well as the kernel counts it."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time_ns() + int((children.ru_utime + children.ru_stime) * 1e9)


def measure(new_event_loop, function, count, repetitions, within=None):
    best_ns = None
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        stack = contextlib.AsyncExitStack()
        given = [] if within is None else [runner.run(stack.enter_async_context(within()))]
        runner.run(function(max(1, count // 10), *given))  # warm up
        for _ in range(repetitions):
            began_ns = cpu_ns()
            runner.run(function(count, *given))
            took_ns = cpu_ns() - began_ns
            best_ns = took_ns if best_ns is None else min(best_ns, took_ns)
        runner.run(stack.aclose())
    return best_ns / 1000 / count


def main(loop_name, folder, workload, repetitions, work):
    registry = importlib.import_module(f"{folder}.workloads").WORKLOADS
    function, count = registry[workload]
    count = max(1, round(count * float(work)))
    factory = functools.partial(loops.new_event_loop, loop_name)
    within = registry.surroundings.get(workload)
    cpu_us = measure(factory, function, count, int(repetitions), within)
    print(json.dumps({"cpu_us": cpu_us}))


if __name__ == "__main__":
    main(*sys.argv[1:])
