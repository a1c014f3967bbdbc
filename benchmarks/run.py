"""Run the benchmarks: CPU time per operation, for each event loop that is installed.

    python benchmarks/run.py --quick            every row, a few minutes
    python benchmarks/run.py                    the same with more work and more rounds
    python benchmarks/run.py --only echo_protocol --loops pyreactor,uvloop
    python -m pyreactor bench --quick           the same, where pyreactor is installed

Each figure comes from a fresh process. The loops take turns within a round, so that a machine that
is slow for a minute is slow for all of them; the median over the rounds is the figure. README.md
says why CPU time, and compare.py turns the JSON into tables.
"""

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys

import loops
from programs import BUILD, HERE, CaseError
from rows import CONNECTIONS, FULL, QUICK, ROWS, SMOKE

FRAMEWORKS = ["aiohttp", "asyncpg", "fastapi", "httptools", "redis", "uvicorn", "websockets"]


def versions(names):
    return {"python": platform.python_version()} | {name: loops.version(name) for name in names}


def framework_versions(rows):
    """Of those that the rows use."""
    used = {module for row in rows for module in getattr(row, "modules", ())}
    return {name: loops.version(name) for name in FRAMEWORKS if name in used}


def machine():
    cpu = platform.processor()
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return {
        "cpu": cpu or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def measure_rows(rows, names, effort):
    """Measure every row; returns what goes into the JSON for each."""
    done = 0
    total = sum(len(row.candidates(names)) for row in rows) * effort.rounds
    results = []
    for row in rows:
        figures = {loop: [] for loop in row.candidates(names)}
        failed = {}
        try:
            with row.surroundings() as environment:
                for loop in list(figures) * effort.rounds:
                    done += 1
                    if loop in failed:
                        continue
                    try:
                        figures[loop].append(row.measure(loop, effort, environment))
                        said = f"{figures[loop][-1][row.figure]:.2f} {row.unit}"
                    except CaseError as error:
                        failed[loop] = str(error)
                        said = f"fails: {error}"
                    print(f"[{done:4}/{total}] {row.name:24} {loop:10} {said}", file=sys.stderr)
        except CaseError as error:  # of the surroundings: they are none of the loops'
            failed = dict.fromkeys(figures, str(error))
            print(f"{row.name}: {error}", file=sys.stderr)
        results.append(
            {
                "name": row.name,
                "group": row.group,
                "target": dataclasses.asdict(row.target),
                "unit": row.unit,
                "results": {
                    loop: {"error": failed[loop]} if loop in failed else summary(row.figure, taken)
                    for loop, taken in figures.items()
                },
            }
        )
    return results


def summary(figure, taken):
    """Medians over the rounds, and the cost in each round, to show how far they spread."""
    medians = {key: statistics.median(one[key] for one in taken) for key in taken[0]}
    return {"cost": medians[figure], **medians, "rounds": [one[figure] for one in taken]}


def chosen_rows(only, groups):
    return [
        row
        for row in ROWS
        if (only is None or only in row.name) and (groups is None or row.group in groups)
    ]


def without_missing(rows):
    """The rows that this machine can measure; and of the others, by name, what it lacks."""
    skipped = {row.name: missing for row in rows if (missing := row.missing()) is not None}
    for name, missing in skipped.items():
        print(f"skipped: {name} ({missing})", file=sys.stderr)
    return [row for row in rows if row.name not in skipped], skipped


def chosen_loops(names):
    if names is None:
        return [name for name in loops.NAMES if loops.is_installed(name)]
    missing = [name for name in names if not loops.is_installed(name)]
    if missing:
        raise SystemExit(f"not installed: {', '.join(missing)}")
    return names


def separated(text):
    return text.split(",")


def main(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="less work, three rounds")
    parser.add_argument(
        "--smoke", action="store_true", help="hardly any work: whether the rows run at all"
    )
    parser.add_argument("--rounds", type=int, help="rounds, instead of the default number")
    parser.add_argument("--only", metavar="TEXT", help="only rows whose name has it")
    groups = list(dict.fromkeys(row.group for row in ROWS))
    parser.add_argument(
        "--groups",
        metavar="NAME,NAME",
        type=separated,
        help=f"only these of {', '.join(groups)}",
    )
    parser.add_argument(
        "--loops",
        metavar="NAME,NAME",
        type=separated,
        help=f"of {', '.join(loops.NAMES)}, or modules with new_event_loop(); "
        "those installed if not given",
    )
    parser.add_argument("--output", type=pathlib.Path, default=BUILD / "latest.json")
    options = parser.parse_args(arguments)

    unknown = set(options.groups or ()).difference(groups)
    if unknown:
        parser.error(f"no group is named {', '.join(sorted(unknown))}: {', '.join(groups)}")
    rows = chosen_rows(options.only, options.groups)
    if not rows:
        parser.error(f"no row has {options.only!r} in its name: {[row.name for row in ROWS]}")
    names = chosen_loops(options.loops)
    rows, skipped = without_missing(rows)
    effort = SMOKE if options.smoke else QUICK if options.quick else FULL
    if options.rounds is not None:
        effort = dataclasses.replace(effort, rounds=options.rounds)

    result = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "versions": versions(names),
        "frameworks": framework_versions(rows),
        "command": " ".join(
            [os.environ.get("BENCH_COMMAND", "python benchmarks/run.py"), *arguments]
        ),
        "effort": dataclasses.asdict(effort),
        "connections": CONNECTIONS,
        "rows": measure_rows(rows, names, effort),
        "skipped": skipped,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    subprocess.run([sys.executable, HERE / "compare.py", options.output], check=True)
    print(f"written: {options.output}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
