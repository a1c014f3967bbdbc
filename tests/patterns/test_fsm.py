"""Rows F1 and F2: state machines inside of a logic unit.

tests/test_fsm.py and tests/test_http1.py look at them more closely.
"""

import asyncio
import itertools
import pathlib
import random
import runpy
import types

import pytest

from pyreactor.framing import HttpHead
from pyreactor.fsm import IllegalTransition, StateMachine, TransitionTable, http1

ROOT = pathlib.Path(__file__).resolve().parents[2]

# The states of a TCP connection, from RFC 9293, without those that only one side sees.
CONNECTION = {
    ("CLOSED", "passive open"): "LISTEN",
    ("CLOSED", "active open"): "SYN-SENT",
    ("LISTEN", "SYN"): "SYN-RECEIVED",
    ("LISTEN", "close"): "CLOSED",
    ("SYN-SENT", "SYN+ACK"): "ESTABLISHED",
    ("SYN-SENT", "close"): "CLOSED",
    ("SYN-RECEIVED", "ACK"): "ESTABLISHED",
    ("SYN-RECEIVED", "close"): "FIN-WAIT-1",
    ("ESTABLISHED", "close"): "FIN-WAIT-1",
    ("ESTABLISHED", "FIN"): "CLOSE-WAIT",
    ("FIN-WAIT-1", "ACK"): "FIN-WAIT-2",
    ("FIN-WAIT-1", "FIN"): "CLOSING",
    ("FIN-WAIT-2", "FIN"): "TIME-WAIT",
    ("CLOSE-WAIT", "close"): "LAST-ACK",
    ("CLOSING", "ACK"): "TIME-WAIT",
    ("LAST-ACK", "ACK"): "CLOSED",
    ("TIME-WAIT", "timeout"): "CLOSED",
}
WALKS = 10_000
STEPS = 12


def test_F1_random_walks_are_those_of_the_table_and_others_raise():
    table = TransitionTable(
        [(source, event, target) for (source, event), target in CONNECTION.items()],
        initial="CLOSED",
    )
    numbers = random.Random(1)
    refused = 0
    for _ in range(WALKS):
        machine, state = StateMachine(table), "CLOSED"
        for event in numbers.choices(table.events, k=STEPS):
            target = CONNECTION.get((state, event))
            if target is None:
                refused += 1
                with pytest.raises(IllegalTransition):
                    machine.handle(event)
            else:
                state = target
                assert machine.handle(event) == state
            assert machine.state == state
    assert 0 < refused < WALKS * STEPS


REQUESTS = [
    b"GET /index.html HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\r\nHEAD / HTTP/1.0\r\nX-Long: a b\tc\r\nConnection: keep-alive\r\n\r\n",
    b"POST /x HTTP/1.1\r\nHost: b\r\nContent-Length: 4\r\n\r\n\r\n\r\n",
]


def test_F2_a_request_means_the_same_wherever_it_is_cut():
    for request in REQUESTS:
        whole = http1.parse(request)
        for cuts in itertools.combinations(range(len(request) + 1), 2):
            pieces = [request[: cuts[0]], request[cuts[0] : cuts[1]], request[cuts[1] :]]
            machine = http1.HeadMachine()
            framer = HttpHead(max_body_bytes=4).framer()
            frames = []
            for piece in pieces:
                frames += framer.feed(piece)
                if machine.head is None:
                    status = machine.feed(piece)
                    assert (status is http1.LINE_OK) == (machine.head is not None)
            assert (machine.head.method, machine.head.target) == (whole.method, whole.target)
            assert machine.head.headers == whole.headers
            assert frames == [request.removeprefix(b"\r\n")]


async def test_F2_a_server_answers_a_request_wherever_it_is_cut(loop, tmp_path):
    static_files = types.SimpleNamespace(
        **runpy.run_path(str(ROOT / "examples" / "static_files.py"))
    )
    (tmp_path / "index.html").write_text("hello")
    server = await asyncio.start_server(
        lambda reader, writer: static_files.serve(tmp_path, reader, writer), "127.0.0.1", 0
    )
    request = REQUESTS[0]
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    answers = set()
    for cut in range(1, len(request)):
        writer.write(request[:cut])
        # The other end is on this loop: by then it has read the first part.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        writer.write(request[cut:])
        head = await reader.readuntil(b"\r\n\r\n")
        answers.add(head + await reader.readexactly(5))
    (answer,) = answers
    assert answer.startswith(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n")
    assert answer.endswith(b"\r\n\r\nhello")
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
