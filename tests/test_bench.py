"""`python -m pyreactor bench`, in a form that takes seconds, and its table, words and plot."""

import json
import os
import pathlib
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


def python(*arguments, cwd):
    return subprocess.run(
        [sys.executable, *arguments],
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )


@pytest.mark.time_limit(60)
def test_rows_are_measured_reported_and_drawn(tmp_path):
    arguments = ["--quick", "--rounds", "1", "--loops", "pyreactor,asyncio", "--only", "call_later"]
    done = python("-m", "pyreactor", "bench", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| `call_later_cancel` |" in done.stdout
    assert "Of 1 rows, pyreactor costs less" in done.stdout
    assert "[   2/2] call_later_cancel" in done.stderr
    made = tmp_path / "build" / "benchmarks" / "latest.json"
    (row,) = json.loads(made.read_text())["rows"]
    assert row["target"] == 0.9 and row["results"]["pyreactor"]["cpu_us"] > 0
    assert python(ROOT / "benchmarks" / "plot.py", made, "plot.svg", cwd=tmp_path).returncode == 0
    dots = ET.parse(tmp_path / "plot.svg").findall(".//{*}circle/{*}title")
    assert [dot.text.split(":")[0] for dot in dots] == ["asyncio"]


def test_a_row_or_a_loop_that_is_none_is_refused(tmp_path):
    done = python("-m", "pyreactor", "bench", "--only", "nonsense", cwd=tmp_path)
    assert done.returncode == 2 and "no row has 'nonsense' in its name" in done.stderr
    done = python("-m", "pyreactor", "bench", "--loops", "nonsense", cwd=tmp_path)
    assert done.returncode == 1 and "not installed: nonsense" in done.stderr


def result(ours, floor=None, **others):
    costs = {"pyreactor": ours, **others, **({} if floor is None else {"floor": floor})}
    return {
        "name": "row",
        "target": 1.05,
        "results": {loop: {"cpu_us": cost} for loop, cost in costs.items()},
    }


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (result(1.0, floor=1.0, uvloop=0.5), "at target"),
        (result(2.1, floor=1.0), "100 % over 1.05"),
        (result(1.0, uvloop=0.5, asyncio=3.0), "90 % over 1.05"),
        (result(1.0), ""),
    ],
)
def test_the_target_is_that_of_the_floor_or_of_the_best_other_loop(monkeypatch, row, words):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import compare

    assert compare.verdict(row) == words
