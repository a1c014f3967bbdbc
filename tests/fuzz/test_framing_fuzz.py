"""The framers under sanitizers against their model, in short; `make fuzz` does it for long.

To show that it would see a defect, it also runs them with one line changed, and has to fail.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
CASES = 50_000

# What is changed: the file, a text in it, and what stands there instead.
DEFECTS = {
    "a line may be one byte too long": (
        "framing/framer.c",
        "if (end + 1 - ending > framing->max_bytes)",
        "if (end - ending > framing->max_bytes)",
    ),
    "a delimiter in two pieces is overlooked": (
        "framing/framer.c",
        "size < marks ? 0 : size - marks + 1;",
        "size;",
    ),
    "what follows a held frame is lost": (
        "framing/framer.c",
        "take(data, size, framer->needed - before);",
        "take(data, size, before ? count : 0);",
    ),
    "a held frame is read beyond its end": (
        "framing/framer.c",
        "framer->held_bytes = bytes;",
        "framer->held_bytes = bytes + 1;",
    ),
    "a bare line feed ends a line": (
        "fsm/http1.c",
        "return lf ? PR_LINE_BAD : PR_LINE_OPEN;",
        "return PR_LINE_OPEN;",
    ),
    "a second length wins": (
        "fsm/http1.c",
        "if (head->content_length >= 0)\n        return refuse",
        "if (0)\n        return refuse",
    ),
    "a folded field is a field": (
        "fsm/http1.c",
        "if (is_space((unsigned char)data[begin]))",
        "if (is_space((unsigned char)data[begin]) && ++begin == end)",
    ),
}


@pytest.fixture
def run_fuzz():
    """A function that runs the cases and returns the exit status and the output."""
    if shutil.which("cc") is None:
        message = "no C compiler for the sanitized framers (Debian package: gcc)"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)

    def run(sources, cases):
        command = [sys.executable, HERE / "framing.py", "--cases", str(cases)]
        done = subprocess.run(
            [*command, "--sources", sources],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    return run


@pytest.mark.time_limit(200)
def test_random_streams_come_out_as_the_model_says(run_fuzz):
    status, output = run_fuzz(CSRC, CASES)
    assert status == 0, output
    assert f"{CASES} cases" in output


@pytest.mark.time_limit(200)
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_would_be_seen(run_fuzz, tmp_path, defect):
    name, text, instead = DEFECTS[defect]
    shutil.copytree(CSRC, tmp_path / "csrc")
    path = tmp_path / "csrc" / name
    source = path.read_text()
    assert source.count(text) == 1
    path.write_text(source.replace(text, instead))
    status, output = run_fuzz(tmp_path / "csrc", CASES)
    assert status != 0
    assert "is not what the model says" in output or "AddressSanitizer" in output, output
