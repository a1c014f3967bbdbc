"""The documentation says nothing that is not so."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = sorted(
    path.relative_to(ROOT)
    for folder in (ROOT, ROOT / "docs", ROOT / "csrc", ROOT / "benchmarks")
    for path in (folder.glob("*.md") if folder == ROOT else folder.rglob("*.md"))
)


def text_of(page):
    return (ROOT / page).read_text()


def test_the_example_of_the_readme_runs(tmp_path):
    (example,) = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    (tmp_path / "example.py").write_text(example)
    process = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "example.py"],
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "b'hello\\n'\n", "")


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_make_command_that_is_named_exists(page):
    targets = set(re.findall(r"^([a-z-]+):.* ## ", text_of("Makefile"), re.MULTILINE))
    code = re.findall(r"`([^`]+)`", text_of(page)) + re.findall(r"^ {4}(.*)$", text_of(page), re.M)
    named = {
        word
        for line in code
        for words in re.findall(r"\bmake((?: +[a-z-]+\b(?![=.]))+)", line.split("#")[0])
        for word in words.split()
    }
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_to_a_file_leads_somewhere(page):
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", text_of(page))
    missing = [link for link in links if not (ROOT / page.parent / link).exists()]
    assert not missing


def test_the_two_commands_stand_near_the_top():
    head = README.split("## Use it")[0]
    assert len(head.splitlines()) < 50
    assert "make run" in head
    assert "make test" in head
