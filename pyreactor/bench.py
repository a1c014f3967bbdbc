"""`python -m pyreactor bench`: the project's benchmarks, with the loops that this Python has.

They are programs of their own, in the folder `benchmarks` of the source tree and of the installed
package alike: whatever is measured runs in a fresh process.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

PACKAGE = pathlib.Path(__file__).resolve().parent
FOLDERS = (PACKAGE / "benchmarks", PACKAGE.parent / "benchmarks")  # installed; the source tree


def main(arguments: list[str]) -> int:
    """Run benchmarks/run.py with `arguments`, and return its exit status.

    A table and a verdict come to standard output, progress to standard error; the compiled load
    generator and the JSON go to build/benchmarks of the current folder.
    """
    folder = next((folder for folder in FOLDERS if (folder / "run.py").is_file()), None)
    if folder is None:
        print(f"no benchmarks beside {PACKAGE}: install pyreactor again", file=sys.stderr)
        return 1
    environment = dict(os.environ, BENCH_COMMAND="python -m pyreactor bench")
    try:
        command = [sys.executable, str(folder / "run.py"), *arguments]
        return subprocess.run(command, env=environment, check=False).returncode
    except KeyboardInterrupt:
        return 130  # as a shell has it
