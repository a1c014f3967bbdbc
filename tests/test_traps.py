"""docs/design/traps.md: every test it names exists."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "design" / "traps.md"
ROWS = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
NAMED = re.compile(r"`(tests/[\w/.]+)::(\w+)`")


def functions_of(path):
    text = path.read_text()
    if path.suffix == ".c":
        return set(re.findall(r"^    RUN\((\w+)\);", text, re.MULTILINE))
    return {
        node.name
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


@pytest.mark.parametrize("path", sorted({path for path, _ in NAMED.findall(PAGE.read_text())}))
def test_every_test_named_exists(path):
    named = {name for file, name in NAMED.findall(PAGE.read_text()) if file == path}
    assert named - functions_of(ROOT / path) == set()


def test_every_trap_names_a_test():
    heads = {"| Trap | Guarded by |"}
    unguarded = [
        row
        for row in ROWS
        if row not in heads
        and not re.fullmatch(r"\| \*\*.*\*\* \| \|", row)
        and not NAMED.search(row)
    ]
    assert unguarded == []
