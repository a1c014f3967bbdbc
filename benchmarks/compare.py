"""Turn the JSON of run.py into Markdown tables.

python benchmarks/compare.py RESULT.json                       one run: the loops side by side
python benchmarks/compare.py RESULT.json --update README.md    the same, between its markers
python benchmarks/compare.py BEFORE.json AFTER.json            two runs: what has changed

What `python -m pyreactor models --json` prints is a RESULT.json, too, with markers of its own.
"""

import argparse
import json
import pathlib
import re

from pyreactor import model_comparison

FLOOR = "floor"
OURS = "pyreactor"
TITLES = {
    "echo": "Echo over loopback, {connections} connections with one message in flight each. "
    "CPU µs of the server per round trip; in brackets, the ratio to `floor`, a C program that "
    "does the same with epoll, recv and send alone.",
    "transfers": "Both ends of a connection, or a process and its parent, on one loop. CPU µs per "
    "operation: a round trip, a MiB, a connection, a process.",
    "micro": "Scheduling, in one process. CPU µs per operation.",
}


def significant(value):
    """Three digits are more than these measurements can be trusted for."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def markdown(header, lines):
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *lines])


def cell(result, floor):
    if result is None:
        return "-"
    if "error" in result:
        return "fails"
    text = significant(result["cpu_us"])
    return text if floor is None else f"{text} ({result['cpu_us'] / floor:.2f} x)"


def cost(results, loop):
    return results.get(loop, {}).get("cpu_us")


def best_peer(results):
    """The other loop that costs least, and its cost; None where no other could do it."""
    others = {
        loop: result["cpu_us"]
        for loop, result in results.items()
        if loop not in (OURS, FLOOR) and "cpu_us" in result
    }
    return min(others.items(), key=lambda other: other[1], default=None)


def against_best_peer(results):
    """Our cost as a multiple of the cheapest other loop's."""
    ours, peer = cost(results, OURS), best_peer(results)
    return "-" if ours is None or peer is None else f"{ours / peer[1]:.2f} x"


def in_words(rows):
    """Who is the cheapest, row by row, in a paragraph; what is within 10 % counts as even."""
    cheaper, even, dearer = [], [], []
    for row in rows:
        ours, peer = cost(row["results"], OURS), best_peer(row["results"])
        if ours is None or peer is None:
            continue
        ratio = ours / peer[1]
        where = cheaper if ratio < 0.9 else even if ratio <= 1.1 else dearer
        where.append(f"`{row['name']}` ({ratio:.2f} x {peer[0]})")
    total = len(cheaper) + len(even) + len(dearer)
    text = f"Of {total} rows, pyreactor costs less than every other loop in {len(cheaper)}"
    text += f", about as much as the best in {len(even)}" + (f": {', '.join(even)}" if even else "")
    return text + f"; more in {len(dearer)}" + (f": {', '.join(dearer)}." if dearer else ".")


def verdict(row):
    """Whether the row is at its target, and how far from it where not; "" without a target."""
    results, target = row["results"], row.get("target")
    peer = best_peer(results)
    measure = cost(results, FLOOR) or (peer and peer[1])
    ours = cost(results, OURS)
    if None in (target, measure, ours):
        return ""
    ratio = ours / measure
    return "at target" if ratio <= target else f"{(ratio / target - 1) * 100:.0f} % over {target}"


def columns(rows):
    """The loops of these rows in the order they were given, the floor first."""
    return list(dict.fromkeys(loop for row in rows for loop in row["results"]))


def group_table(rows):
    loops = columns(rows)
    ours_among_others = OURS in loops and len([loop for loop in loops if loop != FLOOR]) > 1
    lines = []
    for row in rows:
        floor = cost(row["results"], FLOOR)
        cells = [f"`{row['name']}`"]
        for loop in loops:
            cells.append(cell(row["results"].get(loop), None if loop == FLOOR else floor))
        if ours_among_others:
            cells += [against_best_peer(row["results"]), verdict(row)]
        lines.append(cells)
    header = ["", *loops, *([f"{OURS} / best other", "target"] if ours_among_others else [])]
    return markdown(header, lines)


def conditions(result):
    machine, versions = result["machine"], dict(result["versions"])
    python = versions.pop("python")
    loops = ", ".join(
        f"{name} {version}" for name, version in versions.items() if name != "asyncio"
    )
    return (
        f"{result['date']}, {machine['cpus']} x {machine['cpu']}, Linux {machine['kernel']}, "
        f"CPython {python}{', ' + loops if loops else ''}; medians of "
        f"{result['effort']['rounds']} interleaved rounds of `{result['command']}`; "
        f"load average at the start {machine['load_average']}."
    )


def report(result):
    """One run as Markdown."""
    if "models" in result:
        return model_comparison.report(result)
    parts = []
    for group, title in TITLES.items():
        rows = [row for row in result["rows"] if row["group"] == group]
        if rows:
            parts += [title.format(connections=result["connections"]), group_table(rows)]
    if len(columns(result["rows"])) > 1:
        parts.append(in_words(result["rows"]))
    return "\n\n".join([*parts, conditions(result)])


def changes(before, after):
    """Two runs as Markdown: the cost in each, and the change, row by row and loop by loop."""
    old_rows = {row["name"]: row["results"] for row in before["rows"]}
    lines = []
    for row in after["rows"]:
        for loop in row["results"]:
            old, new = cost(old_rows.get(row["name"], {}), loop), cost(row["results"], loop)
            if old is not None and new is not None:
                change = f"{(new / old - 1) * 100:+.0f} %"
                lines.append([f"`{row['name']}`", loop, significant(old), significant(new), change])
    table = markdown(["", "loop", "before, µs", "after, µs", "change"], lines)
    return f"{table}\n\nBefore: {conditions(before)}\n\nAfter: {conditions(after)}"


def update(path, text, name):
    page = path.read_text()
    markers = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
    if len(markers.findall(page)) != 1:
        raise SystemExit(f"{path} needs one pair of lines <!-- {name} --> and <!-- /{name} -->")
    path.write_text(markers.sub(lambda match: f"\n{text}\n\n", page))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", type=pathlib.Path, metavar="RESULT.json")
    parser.add_argument("--update", type=pathlib.Path, metavar="README.md")
    options = parser.parse_args()
    runs = [json.loads(path.read_text()) for path in options.results]
    if len(runs) > 2 or (options.update and len(runs) != 1):
        parser.error("one file makes a table, two make a comparison; --update takes one")
    text = report(runs[0]) if len(runs) == 1 else changes(*runs)
    if options.update:
        update(options.update, text, "models" if "models" in runs[0] else "bench")
    else:
        print(text)


if __name__ == "__main__":
    main()
