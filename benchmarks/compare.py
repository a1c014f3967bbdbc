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
    "frameworks": "Other people's servers and clients. CPU µs per request of a server with "
    "{connections} connections, as above; or, of a client, per query and per pipeline of 16 "
    "commands, without the database's own.",
    "scale": "Many connections, timers and starts. CPU µs of the server per round trip with so "
    "many connections, or per connection that is made for one; KiB of its memory for an idle one, "
    "without the kernel's; CPU µs per timer of a million; CPU ms of a program that only starts.",
    "threads": "As many loops as CPUs, each in a thread, without the GIL: how much longer they "
    "take by the clock, each for the same work, than one alone.",
}


def significant(value):
    """Three digits are more than these measurements can be trusted for."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def markdown(header, lines):
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *lines])


def with_unit(value, unit):
    """A figure; what is in µs goes without saying so."""
    return significant(value) if unit == "µs" else f"{significant(value)} {unit}"


def cell(result, floor, unit):
    if result is None:
        return "-"
    if "error" in result:
        return "fails"
    text = with_unit(result["cost"], unit)
    return text if floor is None else f"{text} ({result['cost'] / floor:.2f} x)"


def cost(results, loop):
    """None where there is none, or so little that the clock, which has steps, did not move."""
    return results.get(loop, {}).get("cost") or None


def best_peer(results):
    """The other loop that costs least, and its cost; None where no other could do it."""
    others = {
        loop: cost(results, loop)
        for loop in results
        if loop not in (OURS, FLOOR) and cost(results, loop) is not None
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


def allowed(row, rows):
    """What the row may cost at most, and that in words; (None, "") where it cannot be told."""
    results, value, of = row["results"], row["target"]["value"], row["target"]["of"]
    if of == "limit":
        return value, with_unit(value, row["unit"])
    if of == "best":
        peer = best_peer(results)
        base, words = cost(results, FLOOR) or (peer and peer[1]), f"{value:g}"
    elif of in ("asyncio", "over asyncio"):
        base, words = cost(results, "asyncio"), f"{value:g} x asyncio"
        if of == "over asyncio":
            words = f"asyncio + {with_unit(value, row['unit'])}"
            return base if base is None else base + value, words
    else:
        others = [other["results"] for other in rows if other["name"] == of]
        base, words = cost(others[0], OURS) if others else None, f"{value:g} x `{of}`"
    return (None, "") if base is None else (base * value, words)


def verdict(row, rows=()):
    """Whether the row is at its target, and how far from it where not; "" without one.

    `rows` are those of the same run, for a target that is a cost in another row.
    """
    ours = cost(row["results"], OURS)
    most, words = allowed(row, rows)
    if ours is None or most is None:
        return ""
    return "at target" if ours <= most else f"{(ours / most - 1) * 100:.0f} % over {words}"


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
            result = row["results"].get(loop)
            cells.append(cell(result, None if loop == FLOOR else floor, row["unit"]))
        if ours_among_others:
            cells += [against_best_peer(row["results"]), verdict(row, rows)]
        lines.append(cells)
    header = ["", *loops, *([f"{OURS} / best other", "target"] if ours_among_others else [])]
    return markdown(header, lines)


def conditions(result):
    machine, versions = result["machine"], dict(result["versions"])
    python = versions.pop("python")
    versions.pop("asyncio", None)
    versions |= result.get("frameworks", {})
    loops = ", ".join(f"{name} {version}" for name, version in versions.items())
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
    if result["skipped"]:
        lacks = "; ".join(f"`{name}` ({lack})" for name, lack in result["skipped"].items())
        parts.append(f"Not measured: {lacks}.")
    return "\n\n".join([*parts, conditions(result)])


def changes(before, after):
    """Two runs as Markdown: the cost in each, and the change, row by row and loop by loop."""
    old_rows = {row["name"]: row["results"] for row in before["rows"]}
    lines = []
    for row in after["rows"]:
        unit = row["unit"]
        for loop in row["results"]:
            old, new = cost(old_rows.get(row["name"], {}), loop), cost(row["results"], loop)
            if old is not None and new is not None:
                change = f"{(new / old - 1) * 100:+.0f} %"
                figures = [with_unit(old, unit), with_unit(new, unit)]
                lines.append([f"`{row['name']}`", loop, *figures, change])
    table = markdown(["", "loop", "before", "after", "change"], lines)
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
