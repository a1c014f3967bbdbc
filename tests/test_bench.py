"""`python -m pyreactor bench`, in a form that takes seconds, and its table, words and plot."""

import importlib
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import sysconfig
import threading
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
    assert row["target"] == {"value": 0.9, "of": "best"}
    assert row["results"]["pyreactor"]["cost"] > 0
    assert python(ROOT / "benchmarks" / "plot.py", made, "plot.svg", cwd=tmp_path).returncode == 0
    dots = ET.parse(tmp_path / "plot.svg").findall(".//{*}circle/{*}title")
    assert [dot.text.split(":")[0] for dot in dots] == ["asyncio"]


def test_a_row_or_a_loop_that_is_none_is_refused(tmp_path):
    done = python("-m", "pyreactor", "bench", "--only", "nonsense", cwd=tmp_path)
    assert done.returncode == 2 and "no row has 'nonsense' in its name" in done.stderr
    done = python("-m", "pyreactor", "bench", "--loops", "nonsense", cwd=tmp_path)
    assert done.returncode == 1 and "not installed: nonsense" in done.stderr


@pytest.fixture
def part(monkeypatch):
    """A module of the benchmarks, by its name."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def smoke(folder, *arguments):
    """Rows with hardly any work; returns them by name."""
    done = python("-m", "pyreactor", "bench", "--smoke", *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    made = json.loads((folder / "build" / "benchmarks" / "latest.json").read_text())
    if made["skipped"]:
        unavailable(f"not measured: {made['skipped']}")
    return {row["name"]: row for row in made["rows"]}, done.stdout


def unavailable(message):
    if os.environ.get("CI") == "true":
        pytest.fail(f"{message} (a failure, not a skip, because CI=true)", pytrace=False)
    pytest.skip(message)


FRAMEWORK_ROWS = [
    "uvicorn_plain",
    "aiohttp_hello",
    "fastapi_json",
    "websockets_echo",
    "asyncpg_select",
    "redis_pipeline",
]


@pytest.mark.time_limit(90)
@pytest.mark.parametrize("name", FRAMEWORK_ROWS)
def test_a_framework_is_measured(tmp_path, name):
    rows, table = smoke(tmp_path, "--only", name, "--loops", "pyreactor")
    assert "error" not in rows[name]["results"]["pyreactor"]
    assert f"| `{name}` |" in table


@pytest.mark.time_limit(120)
def test_scale_is_measured(tmp_path):
    rows, table = smoke(tmp_path, "--groups", "scale", "--loops", "pyreactor,asyncio")
    assert list(rows) == [
        "echo_1_connections",
        "echo_64_connections",
        "echo_1000_connections",
        "echo_10000_connections",
        "connection_storm",
        "idle_protocol",
        "idle_streams",
        "timers_million",
        "start_up",
    ]
    errors = {name: row["results"] for name, row in rows.items() if "error" in str(row["results"])}
    assert errors == {}
    for name, unit in [("idle_protocol", "KiB"), ("start_up", "ms")]:
        assert rows[name]["unit"] == unit and rows[name]["results"]["pyreactor"]["cost"] > 0
        assert f" {unit} |" in table


@pytest.mark.time_limit(60)
def test_loops_in_threads_are_measured(tmp_path):
    if not sysconfig.get_config_var("Py_GIL_DISABLED") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("for a Python without the GIL and more than one CPU")
    rows, _ = smoke(tmp_path, "--groups", "threads", "--loops", "pyreactor,asyncio")
    for row in rows.values():
        assert row["results"]["pyreactor"]["cost"] > 0, row


def test_what_is_not_installed_is_skipped_with_a_word_about_how_to_get_it(part, capsys):
    rows, run = part("rows"), part("run")
    target = rows.Target(1)
    row = rows.FrameworkRow("nothing", None, 1, ("json", "no_such_framework"), target)
    kept, skipped = run.without_missing([row, rows.StartRow()])
    assert [row.name for row in kept] == ["start_up"]
    assert skipped == {"nothing": "pip install no_such_framework"}
    assert "skipped: nothing (pip install no_such_framework)" in capsys.readouterr().err


def test_every_package_of_the_framework_rows_can_be_installed_at_once(part):
    text = (ROOT / "benchmarks" / "requirements.txt").read_text()
    listed = set(re.findall(r"^([\w-]+)", text, re.MULTILINE))
    needed = {name for row in part("rows").ROWS for name in getattr(row, "modules", ())}
    assert needed == listed == set(part("run").FRAMEWORKS)


def result(ours, floor=None, of="best", **others):
    costs = {"pyreactor": ours, **others, **({} if floor is None else {"floor": floor})}
    return {
        "name": "row",
        "target": {"value": 1.05, "of": of},
        "unit": "ms",
        "results": {loop: {"cost": cost} for loop, cost in costs.items()},
    }


BASE = result(2.0) | {"name": "base"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (result(1.0, floor=1.0, uvloop=0.5), "at target"),
        (result(2.1, floor=1.0), "100 % over 1.05"),
        (result(1.0, uvloop=0.5, asyncio=3.0), "90 % over 1.05"),
        (result(1.0), ""),
        (result(2.1, of="limit"), "100 % over 1.05 ms"),
        (result(2.1, of="asyncio", asyncio=1.0, uvloop=0.5), "100 % over 1.05 x asyncio"),
        (result(2.0, of="over asyncio", asyncio=1.0, uvloop=0.5), "at target"),
        (result(4.1, of="over asyncio", asyncio=1.0), "100 % over asyncio + 1.05 ms"),
        (result(2.1, of="base"), "at target"),
        (result(4.2, of="base"), "100 % over 1.05 x `base`"),
        (result(4.2, of="a row that was not measured"), ""),
        (result(0), ""),
        (result(1.0, uvloop=0), ""),
    ],
)
def test_the_verdict_is_that_of_the_target(part, row, words):
    assert part("compare").verdict(row, [BASE, row]) == words


class Crossed:
    """A server that answers an echo client's bytes, all but one of them."""

    def __init__(self, change):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.change = change
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        with self.listener, self.listener.accept()[0] as connection:
            while data := connection.recv(65536):
                connection.sendall(self.change(data))


@pytest.mark.parametrize(
    ("change", "error"),
    [(bytes, ""), (lambda data: b"?" + data[1:], "an answer differs from what is expected")],
)
def test_the_load_generator_compares_all_but_the_bytes_that_are_blank(
    part, tmp_path, monkeypatch, change, error
):
    programs = part("programs")
    monkeypatch.setattr(programs, "BUILD", tmp_path)
    load = programs.compiled.__wrapped__("loadgen")
    (tmp_path / "request").write_bytes(b"abcdef")
    (tmp_path / "response").write_bytes(b"abc\0\0f")
    server = Crossed(change)
    command = [load, str(server.port), str(os.getpid()), "1", f"{tmp_path}/", "100"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == (1 if error else 0) and error in done.stderr
