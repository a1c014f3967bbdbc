"""What a loop counts: `loop.metrics()`."""

import asyncio
import doctest
import inspect
import json
import os
import pathlib
import re
import socket
import threading
import time

import pytest

import pyreactor
from pyreactor._base_transport import BaseTransport
from pyreactor.metrics import OPEN_TRANSPORTS

pytestmark = pytest.mark.pyreactor_only

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "insight.md"
NEVER = 1000


def run_turns(loop, turns=1):
    """Run exactly that many turns."""
    for _ in range(turns):
        loop.call_soon(loop.stop)
        loop.run_forever()


def test_a_new_loop_has_counted_nothing(loop):
    metrics = loop.metrics()
    assert metrics.backend == loop.backend
    flat = [
        number
        for value in metrics[1:]
        for number in (value if isinstance(value, tuple) else (value,))
    ]
    assert set(flat) == {0}


def test_metrics_are_one_immutable_object_of_plain_values(loop):
    run_turns(loop)
    metrics = loop.metrics()
    assert isinstance(metrics, pyreactor.LoopMetrics)
    with pytest.raises(AttributeError):
        metrics.turns = 5
    fields = json.loads(json.dumps(metrics._asdict()))
    assert fields["turns"] == metrics.turns == 1
    assert tuple(fields["turns_by_log2_ns"]) == metrics.turns_by_log2_ns


def test_every_field_says_what_it_counts():
    source = inspect.getsource(pyreactor.LoopMetrics)
    for field in pyreactor.LoopMetrics._fields:
        assert re.search(rf'^    {field}: .+\n    """', source, re.MULTILINE), field


def test_the_page_tells_the_truth():
    failures, examples = doctest.testfile(str(PAGE), module_relative=False)
    assert examples and not failures


def test_turns_and_callbacks_are_counted(loop):
    for _ in range(10):
        loop.call_soon(str)
    run_turns(loop, 3)
    metrics = loop.metrics()
    assert metrics.turns == sum(metrics.turns_by_log2_ns) == 3
    assert metrics.callbacks == 13
    assert metrics.ready_max == 11
    assert metrics.ready == 1


def test_a_turn_sees_the_turns_before_it(loop):
    seen = []
    loop.call_soon(lambda: seen.append(loop.metrics()))
    run_turns(loop)
    assert seen[0].turns == 0
    assert seen[0].ready == 2


def test_sleeping_is_idle_and_working_is_busy(loop):
    def work():
        end = time.monotonic_ns() + 10_000_000
        while time.monotonic_ns() < end:
            pass

    before = time.monotonic_ns()
    loop.call_soon(work)
    loop.call_later(0.03, loop.stop)
    loop.run_forever()
    passed = time.monotonic_ns() - before
    metrics = loop.metrics()
    assert metrics.busy_ns >= 10_000_000
    assert metrics.turn_max_ns >= 10_000_000
    assert sum(metrics.turns_by_log2_ns[23:]) >= 1  # 2**23 ns are 8.4 ms
    assert metrics.idle_ns > 0
    assert metrics.busy_ns + metrics.idle_ns <= passed
    time.sleep(0.001)
    later = loop.metrics()
    assert (later.busy_ns, later.idle_ns) == (metrics.busy_ns, metrics.idle_ns)


def test_timers_are_counted_by_their_end(loop):
    handles = [loop.call_later(NEVER, str) for _ in range(5)]
    assert loop.metrics().timers_pending == 5
    handles[0].cancel()
    handles[0].cancel()
    loop.call_later(-2, str)
    run_turns(loop)
    metrics = loop.metrics()
    assert metrics.timers_pending == 4
    assert metrics.timers_cancelled == 1
    assert metrics.timers_fired == sum(metrics.timers_by_log2_lateness_ns) == 1
    assert sum(metrics.timers_by_log2_lateness_ns[30:]) == 1  # 2 s are 2**30.9 ns
    loop.close()
    metrics = loop.metrics()
    assert metrics.timers_pending == 0
    assert metrics.timers_cancelled == 5


def test_descriptor_events_are_counted(loop):
    near, far = socket.socketpair()
    with near, far:
        loop.add_reader(near, lambda: near.recv(1))
        far.send(b"ab")
        run_turns(loop, 3)
        loop.remove_reader(near)
    metrics = loop.metrics()
    assert metrics.events == 2
    assert metrics.polls == 3
    assert metrics.empty_polls == 1
    assert metrics.bytes_received == 0  # the reader's, not a transport's


def test_callbacks_from_threads_and_the_sleeps_they_end_are_counted(loop):
    def from_thread():
        while not loop.metrics().idle_ns:  # it sleeps
            pass
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=from_thread)
    thread.start()
    loop.run_forever()
    thread.join()
    metrics = loop.metrics()
    assert metrics.threadsafe_callbacks == 1
    assert metrics.wakeups == 1


async def test_connections_and_their_bytes_are_counted(loop):
    async def serve(reader, writer):
        writer.write(await reader.readexactly(100_000))
        await reader.read()
        writer.close()
        await writer.wait_closed()
        served.set()

    served = asyncio.Event()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(bytes(40_000))
    writer.writelines([bytes(10_000), bytes(10_000)])
    writer.write(bytearray(40_000))  # sent at once, or copied
    await reader.readexactly(100_000)
    during = loop.metrics()
    assert during.connections_accepted == 1
    assert during.open_streams == 2
    assert during.open_listeners == 1
    assert during.bytes_sent == during.bytes_received == 200_000
    writer.close()
    await writer.wait_closed()
    await served.wait()
    server.close()
    await server.wait_closed()
    after = loop.metrics()
    assert after.open_streams == after.open_listeners == 0


async def test_datagrams_and_their_bytes_are_counted(loop):
    class Protocol(asyncio.DatagramProtocol):
        def datagram_received(self, data, address):
            received.append(data)
            if len(received) == 20:
                done.set_result(None)

    received, done = [], loop.create_future()
    target, _ = await loop.create_datagram_endpoint(Protocol, ("127.0.0.1", 0))
    source, _ = await loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, remote_addr=target.get_extra_info("sockname")
    )
    for size in range(1, 21):
        source.sendto(bytes(size))
    await done
    during = loop.metrics()
    assert during.open_datagrams == 2
    assert during.bytes_sent == during.bytes_received == sum(range(1, 21))
    target.close()
    source.close()
    await asyncio.sleep(0)
    assert loop.metrics().open_datagrams == 0


async def test_open_pipes_are_counted(loop):
    source, target = os.pipe()
    reading, _ = await loop.connect_read_pipe(asyncio.Protocol, os.fdopen(source, "rb", 0))
    writing, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(target, "wb", 0))
    before = loop.metrics()
    assert before.open_read_pipes == before.open_write_pipes == 1
    writing.write(b"data")
    await asyncio.sleep(0)
    during = loop.metrics()
    assert during.bytes_sent - before.bytes_sent == 4
    reading.close()
    writing.close()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    after = loop.metrics()
    assert after.open_read_pipes == after.open_write_pipes == 0


def kinds_of_transports(base=BaseTransport):
    for kind in base.__subclasses__():
        if not kind.__subclasses__():  # else it is what several kinds share
            yield kind.__name__
        yield from kinds_of_transports(kind)


def test_every_kind_of_transport_has_a_field_that_counts_it():
    counted_below = {"TLSTransport"}  # it stands on a stream
    assert set(kinds_of_transports()) - counted_below == OPEN_TRANSPORTS.keys()
    assert set(OPEN_TRANSPORTS.values()) <= set(pyreactor.LoopMetrics._fields)


def test_what_only_grows_never_shrinks_for_a_thread_that_reads_along(loop):
    states = {"backend", "ready", "timers_pending", *OPEN_TRANSPORTS.values(), "open_listeners"}
    disorders = []
    readings = 0

    def read():
        nonlocal readings
        last = loop.metrics()
        while not ended.is_set():
            now = loop.metrics()
            readings += 1
            for field in pyreactor.LoopMetrics._fields:
                if field not in states and getattr(now, field) < getattr(last, field):
                    disorders.append((field, last, now))
            if now.timers_pending < 0:
                disorders.append(now)
            last = now

    async def main():
        while readings < 200:
            await asyncio.wait_for(asyncio.sleep(0.0001), 1)

    ended = threading.Event()
    thread = threading.Thread(target=read)
    thread.start()
    try:
        loop.run_until_complete(main())
    finally:
        ended.set()
        thread.join()
    assert disorders == []


def test_metrics_of_a_closed_loop_can_still_be_read(loop):
    run_turns(loop)
    loop.close()
    assert loop.metrics().turns == 1


def test_prometheus_client_can_export_them(loop):
    prometheus_client = pytest.importorskip(
        "prometheus_client", reason="pip install prometheus-client"
    )
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (example,) = [block for block in blocks if "prometheus_client" in block]
    names = {}
    exec(example, names)
    registry = prometheus_client.CollectorRegistry()
    registry.register(names["LoopCollector"](loop))
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    text = prometheus_client.generate_latest(registry).decode()
    metrics = loop.metrics()
    assert f"loop_turns_total {float(metrics.turns)}" in text
    assert f"loop_turn_seconds_count {float(metrics.turns)}" in text
    assert "loop_timers_pending 0.0" in text
