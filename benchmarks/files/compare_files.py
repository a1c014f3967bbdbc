"""Compare asynchronous files: CPU time and throughput, by the ring, by threads, and of aiofiles.

    python benchmarks/files/compare_files.py                           prints the table
    python benchmarks/files/compare_files.py --update docs/files.md    writes it between its markers

Needs 1.1 GiB in the temporary folder (TMPDIR), on a disk if the reads from it are to mean anything.
Every figure is a fresh process's; the contestants take turns, and the median of the rounds counts.
"""

import argparse
import datetime
import importlib.metadata
import json
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import compare  # noqa: E402 - found by the line above
import measure  # noqa: E402
import run  # noqa: E402

TITLES = {
    "random_reads_cached": "random 4 KiB, 64 in flight, in the page cache",
    "random_reads_from_disk": "the same from the disk",
    "lines": "a line of a text, `async for`",
    "small_files": "open, read 1 KiB, close; 16 at once",
}


def figure(workload, who, folder):
    command = [sys.executable, HERE / "measure.py", workload, who, folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        print(f"{workload}, {who}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    result = json.loads(done.stdout)
    print(f"{workload:24} {who:28} {result['cpu_us']:8.2f} µs", file=sys.stderr)
    return result


def cell(results):
    if not results or None in results:
        return "fails"
    cpu_us = statistics.median(result["cpu_us"] for result in results)
    per_second = statistics.median(result["per_second"] for result in results)
    return f"{compare.significant(cpu_us)} µs, {per_second:,.0f}/s"


def table(rounds):
    load = run.machine()["load_average"]
    figures = {(w, who): [] for w in TITLES for who in measure.CONTESTANTS}
    with tempfile.TemporaryDirectory(prefix="pyreactor-files-") as folder:
        measure.prepare(pathlib.Path(folder))
        for workload in TITLES:
            for _ in range(rounds):
                for who in measure.CONTESTANTS:
                    figures[workload, who].append(figure(workload, who, folder))
    names = {"os": "blocking, one after the other: `os.pread`, `open`"}
    text = compare.markdown(
        ["", *TITLES.values()],
        [
            [names.get(who, who), *(cell(figures[workload, who]) for workload in TITLES)]
            for who in measure.CONTESTANTS
        ],
    )
    machine = run.machine()
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("aiofiles",)]
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        f"CPU µs per operation, of all threads, and operations per second.\n\n{text}\n\n{date}, "
        f"{machine['cpus']} x {machine['cpu']}, Linux {machine['kernel']}, CPython "
        f"{platform.python_version()}, pyreactor "
        f"{importlib.metadata.version('pyreactor-loop')}, {', '.join(versions)}; medians of "
        f"{rounds} interleaved rounds of `python benchmarks/files/compare_files.py`; load average "
        f"at the start {load}."
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--update", type=pathlib.Path, metavar="PAGE.md")
    options = parser.parse_args()
    text = table(options.rounds)
    if options.update:
        compare.update(options.update, text, "bench")
    else:
        print(text)


if __name__ == "__main__":
    main()
