"""The request queue's sources in every order of their threads' steps, by tests/model/explorer.c.

The explorer runs the sources as they are.  To show that it would see a defect, it also runs them
with one line changed, and has to fail.
"""

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SOURCES = ("bell", "mutex_queue", "parker", "request_queue", "ring")
FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-DPR_RING_SPINS=0", "-g", "-Wall", "-Wextra", "-Werror"]

# What is changed: the file, a text in it, what stands there instead, and the scenarios to run.
DEFECTS = {
    "no look between the announcement and the sleep": (
        "csrc/queue/parker.c",
        "        if (look(argument)) {\n            withdraw",
        "        if (0 && look(argument)) {\n            withdraw",
        "parker",
    ),
    "looking for sleepers may see an old value": (
        "csrc/include/pyreactor/parker.h",
        "atomic_load_explicit(&parker->state, memory_order_seq_cst)",
        "atomic_load_explicit(&parker->state, memory_order_acquire)",
        "parker",
    ),
    "a wait that timed out drops its permit": (
        "csrc/queue/parker.c",
        "if (permits_of(state) > 0) {",
        "if (permits_of(state) > 0 && error == 0) {",
        "parker",
    ),
    "withdrawing takes a permit that another needs": (
        "csrc/queue/parker.c",
        "less = sleepers_of(state) ? PR_PARKER_SLEEPER : PR_PARKER_PERMIT;",
        "less = permits_of(state) ? PR_PARKER_PERMIT : PR_PARKER_SLEEPER;",
        "parker",
    ),
    "one thread is woken for two things": (
        "csrc/queue/parker.c",
        "    futex_wake(parker, woken);",
        "    futex_wake(parker, 1);",
        "parker",
    ),
    "a put wakes nobody": (
        "csrc/queue/ring_queue.c",
        "        wake(&self->consumers, (uint32_t)pushed);",
        "",
        "queue",
    ),
    "closing wakes no consumer": (
        "csrc/queue/ring_queue.c",
        "    wake(&self->consumers, PR_UNPARK_ALL);",
        "",
        "closed",
    ),
    "a sequence is one too low": (
        "csrc/include/pyreactor/ring.h",
        "pr_ring_free_for(head + i + ring->mask + 1)",
        "pr_ring_free_for(head + i + ring->mask)",
        "ring",
    ),
    "a request is published without a release": (
        "csrc/include/pyreactor/ring.h",
        "pr_ring_holds(tail + i), memory_order_release)",
        "pr_ring_holds(tail + i), memory_order_relaxed)",
        "ring",
    ),
    "a slot is read without an acquire": (
        "csrc/include/pyreactor/ring.h",
        "if (atomic_load_explicit(&slot->sequence, memory_order_acquire) !=\n"
        "                pr_ring_holds(",
        "if (atomic_load_explicit(&slot->sequence, memory_order_relaxed) !=\n"
        "                pr_ring_holds(",
        "ring",
    ),
    "an old tail looks like a full ring": (
        "csrc/include/pyreactor/ring.h",
        "if (tail - head == ring->mask + 1)",
        "if (tail - head > ring->mask)",
        "ring",
    ),
    "a push comes after the close": (
        "csrc/include/pyreactor/ring.h",
        "        if (tail & PR_RING_CLOSED)\n            return -ESHUTDOWN;\n        /*",
        "        /*",
        "closed",
    ),
    "empty is said while a slot is being written": (
        "csrc/include/pyreactor/ring.h",
        "        if ((tail & ~PR_RING_CLOSED) == head)\n",
        "        if (tail != UINT64_MAX)\n",
        "ring",
    ),
}


def compiler():
    """A C compiler that instruments for ThreadSanitizer."""
    found = shutil.which(os.environ.get("CC", "cc"))
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("a C compiler is missing: make deps")
        pytest.skip("a C compiler is missing: make deps")
    return found


def build(tree, folder):
    """Compile the explorer with the sources in `tree`; returns the program."""
    cc = compiler()
    include = f"-I{tree / 'csrc' / 'include'}"
    objects = []
    for source in [*(f"csrc/queue/{name}.c" for name in SOURCES), "tests/model/model_queue.c"]:
        objects.append(folder / f"{pathlib.Path(source).stem}.o")
        command = [cc, *FLAGS, "-O1", "-fsanitize=thread", include, "-c", tree / source]
        subprocess.run([*command, "-o", objects[-1]], check=True)
    explorer = tree / "tests/model/explorer.c"
    program = folder / "explorer"
    command = [cc, *FLAGS, "-O2", include, explorer, *objects, "-pthread", "-o", program]
    subprocess.run(command, check=True)
    return program


@pytest.mark.time_limit(300)
def test_nothing_goes_wrong_in_any_order(tmp_path):
    run = subprocess.run([build(ROOT, tmp_path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    assert run.stdout.count(" executions ") == 15
    print(run.stdout)


@pytest.mark.time_limit(120)
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_found(tmp_path, defect):
    name, old, new, scenarios = DEFECTS[defect]
    tree = tmp_path / "tree"
    for folder in ("csrc", "tests/model"):
        shutil.copytree(ROOT / folder, tree / folder)
    source = tree / name
    text = source.read_text()
    assert old in text
    source.write_text(text.replace(old, new))
    run = subprocess.run([build(tree, tmp_path), scenarios], capture_output=True, text=True)
    assert run.returncode == 1 and run.stdout.count("FAILED") == 1, run.stdout
