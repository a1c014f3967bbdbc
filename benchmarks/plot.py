"""Draw the JSON of run.py as an SVG: what each loop costs, as a multiple of what pyreactor does.

    python plot.py RESULT.json RESULT.svg

A line for each row, a dot for each loop, on a logarithmic scale; right of the middle is dearer.
"""

import json
import math
import pathlib
import sys
import xml.etree.ElementTree as ET

from compare import OURS, conditions, cost

# Told apart by the colour-blind, too (the palette of Okabe and Ito).
COLOURS = {
    "floor": "#000000",
    "asyncio": "#e69f00",
    "uvloop": "#56b4e9",
    "rloop": "#009e73",
    "rsloop": "#f0e442",
    "zuvloop": "#d55e00",
    "aiofastnet": "#cc79a7",
}
OTHER = "#999999"
LEFT, RIGHT, TOP = 190, 20, 64  # pixels around the dots
LINE = 22  # pixels from row to row
WIDTH = 860
LEAST, MOST = 0.25, 16  # multiples; dearer ones stand at the edge
TICKS = [0.25, 0.5, 1, 2, 4, 8, 16]
STYLE = """
text { font: 12px sans-serif; fill: #222 } .small { font-size: 10px; fill: #666 }
.page { fill: #fff } .grid { stroke: #ddd } .ours { stroke: #0072b2; stroke-width: 2 }
circle { stroke: #444; stroke-width: 0.5 }
"""


def place(multiple):
    """The x of a cost, in pixels."""
    share = math.log(min(max(multiple, LEAST), MOST) / LEAST) / math.log(MOST / LEAST)
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def drawn(rows):
    """The rows that have a cost of ours, with the others' as multiples of it."""
    for row in rows:
        ours = cost(row["results"], OURS)
        if ours is not None:
            costs = {loop: cost(row["results"], loop) for loop in row["results"] if loop != OURS}
            yield row["name"], {loop: it / ours for loop, it in costs.items() if it is not None}


def draw(result):
    """Return the text of the SVG."""
    rows = list(drawn(result["rows"]))
    loops = list(dict.fromkeys(loop for _, multiples in rows for loop in multiples))
    bottom = TOP + LINE * len(rows)
    height = bottom + 34
    size = {"width": str(WIDTH), "height": str(height), "viewBox": f"0 0 {WIDTH} {height}"}
    svg = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img", **size})

    def add(kind, text=None, parent=svg, **attributes):
        made = {
            name.rstrip("_").replace("_", "-"): str(value) for name, value in attributes.items()
        }
        element = ET.SubElement(parent, kind, made)
        element.text = text
        return element

    add("title", "CPU time per operation, as a multiple of pyreactor's")
    add("style", STYLE)
    add("rect", class_="page", width=WIDTH, height=height)
    for number, loop in enumerate(loops):
        x = LEFT + number * 92
        add("circle", cx=x, cy=16, r=5, fill=COLOURS.get(loop, OTHER))
        add("text", loop, x=x + 9, y=20)
    add("text", "CPU time, as a multiple of pyreactor's (right: dearer)", x=LEFT, y=40)
    for tick in TICKS:
        x = f"{place(tick):.1f}"
        style = "ours" if tick == 1 else "grid"
        add("line", class_=style, x1=x, x2=x, y1=TOP - 6, y2=bottom)
        add("text", f"{tick:g}", class_="small", x=x, y=TOP - 10, text_anchor="middle")
    for number, (name, multiples) in enumerate(rows):
        y = TOP + LINE * number + LINE // 2
        add("text", name, x=LEFT - 10, y=y + 4, text_anchor="end")
        for loop, multiple in multiples.items():
            x = f"{place(multiple):.1f}"
            dot = add("circle", cx=x, cy=y, r=5, fill=COLOURS.get(loop, OTHER))
            add("title", f"{loop}: {multiple:.2f} x", parent=dot)
    words = conditions(result).split("; medians")[0]
    add("text", words, class_="small", x=10, y=height - 10)
    return ET.tostring(svg, encoding="unicode") + "\n"


def main(source, target):
    pathlib.Path(target).write_text(draw(json.loads(pathlib.Path(source).read_text())))


if __name__ == "__main__":
    main(*sys.argv[1:])
