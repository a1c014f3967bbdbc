"""What a program costs that imports a loop, runs one coroutine on it and ends.

    python -m scale.start_up LOOP PROGRAMS

Prints one line of JSON: CPU milliseconds (user and system) of such a program, and its time by the
clock, the best of PROGRAMS of them.  The interpreter's own start is in it, for every loop alike.
"""

import json
import os
import subprocess
import sys
import time

PROGRAM = """
import asyncio, sys
import loops
with asyncio.Runner(loop_factory=lambda: loops.new_event_loop(sys.argv[1])) as runner:
    runner.run(asyncio.sleep(0))
"""


def start(loop_name):
    """Run it once: the CPU time, and the time by the clock, in milliseconds."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, loop_name])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"the program ended with status {process.returncode}")
    return (usage.ru_utime + usage.ru_stime) * 1000, (time.perf_counter() - began) * 1000


def main(loop_name, programs):
    start(loop_name)  # compiles to bytecode what is not yet, and fills the page cache
    taken = [start(loop_name) for _ in range(int(programs))]
    cpu_ms, wall_ms = map(min, zip(*taken, strict=True))
    print(json.dumps({"cpu_ms": cpu_ms, "wall_ms": wall_ms}))


if __name__ == "__main__":
    main(*sys.argv[1:])
