"""Row M2: five peers, each a process of its own, all joined with each other."""

import pathlib
import runpy
import time
import types

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATIENCE = 15
mesh = types.SimpleNamespace(**runpy.run_path(str(ROOT / "examples" / "mesh.py")))


@pytest.fixture
def nodes():
    """Five peers, not connected yet."""
    nodes = [mesh.Node() for _ in range(5)]
    yield nodes
    for node in nodes:
        node.kill()


def established(node):
    """The kernel's view of a process: its connections as (local port, remote port)."""
    inodes = set()
    for link in pathlib.Path(f"/proc/{node.pid}/fd").iterdir():
        target = str(link.readlink())
        if target.startswith("socket:["):
            inodes.add(target[len("socket:[") : -1])
    pairs = set()
    for line in pathlib.Path(f"/proc/{node.pid}/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, *rest = line.split()
        if state == "01" and rest[5] in inodes:
            pairs.add((int(local.split(":")[1], 16), int(remote.split(":")[1], 16)))
    return pairs


def ask_all(nodes):
    """Each asks every other; the answers, by who asked whom."""
    answers = {}
    for node in nodes:
        others = {"{}:{}".format(*other.address): other for other in nodes if other is not node}
        addresses = [other.address for other in others.values()]
        for address, answer in node.tell("ask", addresses=addresses, text="hello").items():
            answers[node.pid, others[address].pid] = answer
    return answers


def joined(node):
    """How many connections it has accepted and made: as it says, and as the kernel does."""
    stats = node.tell("stats")
    pairs = established(node)
    accepted = sum(local == node.address[1] for local, _ in pairs)
    return [stats["accepted"], stats["initiated"], accepted, len(pairs) - accepted]


def wait_for(function, wanted):
    """The end of a process that was killed is seen by the others a little later."""
    deadline = time.monotonic() + PATIENCE
    while (found := function()) != wanted:
        assert time.monotonic() < deadline, found


def test_M2_five_peers_serve_and_ask_and_any_one_may_die(nodes):
    for victim in (None, 0, 2):
        if victim is not None:
            nodes.pop(victim).kill()
        answers = ask_all(nodes)
        assert len(answers) == len(nodes) * (len(nodes) - 1)
        for (_, asked), answer in answers.items():
            assert answer == f"{asked} got hello"
        for node in nodes:
            wait_for(lambda node=node: joined(node), [len(nodes) - 1] * 4)
