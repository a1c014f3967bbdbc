"""asyncio's streams on the loop: native methods that do what asyncio's own do, to the detail."""

import asyncio
import contextlib
import gc
import inspect
import itertools
import random
import socket
import sys
import types
import weakref
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyreactor
from pyreactor import _streams

HOST = "127.0.0.1"
TAKES_TUPLES = sys.version_info >= (3, 13)  # readuntil()


@pytest.fixture
def pair():
    near, far = socket.socketpair()
    far.settimeout(10)
    with near, far:
        yield near, far


async def turns(count=3):
    for _ in range(count):
        await asyncio.sleep(0)


# --- The same as asyncio's, step by step ----------------------------------------------------------
# One script of steps is run on asyncio's reader and on the native one; after each step all that can
# be seen of the two must be equal.


class Pausable:
    """A transport that keeps the names of its calls."""

    def __init__(self):
        self.calls = []

    def __repr__(self):
        return "a transport"

    def pause_reading(self):
        self.calls.append("pause")

    def resume_reading(self):
        self.calls.append("resume")


class Unpausable(Pausable):
    def pause_reading(self):
        self.calls.append("pause")
        raise NotImplementedError


class Scenario:
    """A reader and the tasks that read from it."""

    def __init__(self, loop, native, limit, transport):
        self.loop = loop
        self.reader = asyncio.StreamReader(limit=limit, loop=loop)
        self.protocol = asyncio.StreamReaderProtocol(self.reader, loop=loop)
        if native:
            _streams.adopt(self.protocol)
        self.transport = transport() if transport else None
        if transport:
            self.reader.set_transport(self.transport)
        self.tasks = []

    async def call(self, step):
        name, *arguments = step
        try:
            value = getattr(self, name)(*arguments)
            return repr(await value if inspect.isawaitable(value) else value)
        except (Exception, StopAsyncIteration) as exc:
            return describe(exc)

    def feed(self, data):
        self.reader.feed_data(data)

    def receive(self, data):
        self.protocol.data_received(data)

    def end(self):
        self.reader.feed_eof()

    def fail(self, exception):
        self.reader.set_exception(exception)

    def read(self, method, *arguments):
        """Read in a task that goes on while other steps are made."""
        coroutine = getattr(self.reader, method)(*arguments)
        self.tasks.append(self.loop.create_task(coroutine))

    async def read_at_once(self, method, *arguments):
        """Read what is there: a reader with data does not wait."""
        coroutine = getattr(self.reader, method)(*arguments)
        try:
            waits_for = coroutine.send(None)
        except StopIteration as stop:
            return stop.value
        coroutine.close()
        return f"waits: {type(waits_for).__name__}"

    def cancel(self, index):
        if self.tasks:
            self.tasks[index % len(self.tasks)].cancel()

    async def turn(self):
        await asyncio.sleep(0)

    def resize(self, limit):
        # What is no limit at all is set between reads only.
        is_limit = type(limit) is int and 0 < limit < sys.maxsize // 2
        if is_limit or all(task.done() for task in self.tasks):
            self.reader._limit = limit

    def look(self):
        return bytes(self.reader._buffer)

    def prepend(self, data):
        self.reader._buffer[:0] = data

    def replace(self, data):
        self.reader._buffer = bytearray(data)

    def observe(self):
        reader = self.reader
        return {
            "eof": reader._eof,
            "at_eof": reader.at_eof(),
            "paused": reader._paused,
            "waits": reader._waiter is not None,
            "exception": repr(reader.exception()),
            "has_transport": reader._transport is not None,
            "calls": self.transport.calls if self.transport else None,
            "tasks": [outcome(task) for task in self.tasks],
        }


def describe(exc):
    """An exception with all that can be told from it."""
    if exc is None:
        return None
    about = [type(exc).__name__, repr(exc.args)]
    about += [repr(getattr(exc, name, None)) for name in ("partial", "expected", "consumed")]
    return [*about, describe(exc.__context__), describe(exc.__cause__)]


def outcome(task):
    if not task.done():
        return "pending"
    if task.cancelled():
        return "cancelled"
    return repr(task.result()) if task.exception() is None else describe(task.exception())


async def run_script(native, script, *, limit=10, transport=Pausable, look=False):
    """All that could be seen while the script ran."""
    scenario = Scenario(asyncio.get_running_loop(), native, limit, transport)
    seen = []
    for step in script:
        seen.append((step, await scenario.call(step), scenario.observe()))
        if look:
            seen.append(scenario.look())
    await turns()
    seen.append((scenario.observe(), scenario.look()))
    if scenario.reader._waiter is None:
        seen.append(repr(scenario.reader))
    for task in scenario.tasks:
        task.cancel()
    await turns()
    assert type(scenario.reader).__name__ == "StreamReader"
    assert (type(scenario.reader) is asyncio.StreamReader) != native
    return seen


def compare(script, **arguments):
    loop = pyreactor.Loop()
    try:
        theirs = loop.run_until_complete(run_script(False, script, **arguments))
        ours = loop.run_until_complete(run_script(True, script, **arguments))
    finally:
        loop.close()
    for their_step, our_step in zip(theirs, ours, strict=True):
        assert our_step == their_step


chunks = st.text(alphabet="ab\n;", max_size=30).map(str.encode)
separators = st.sampled_from([b"\n", b";", b"ab", b"a\nb", b"", bytearray(b";"), 7, None])
if TAKES_TUPLES:
    separators |= st.sampled_from([(b"\n", b"ab"), (b"abb", b";"), (), (b"",)])
sizes = st.sampled_from([0, 1, 2, 5, 10, 11, 25, -1, -2, True, 1 << 70, -(1 << 70), 1.5, "x", None])
reads = st.one_of(
    st.tuples(st.just("read"), sizes),
    st.just(("read",)),
    st.just(("readline",)),
    st.just(("readuntil",)),
    st.tuples(st.just("readuntil"), separators),
    st.tuples(st.just("readexactly"), sizes),
    st.just(("__anext__",)),
)
errors = st.sampled_from(
    [
        ValueError("bad"),
        ConnectionResetError("gone"),
        asyncio.IncompleteReadError(b"part", 9),
        asyncio.LimitOverrunError("long", 3),
        asyncio.LimitOverrunError("long", 0),
    ]
)
steps = st.one_of(
    st.tuples(st.sampled_from(["feed", "receive"]), chunks),
    reads.map(lambda call: ("read", *call)),
    reads.map(lambda call: ("read_at_once", *call)),
    st.just(("turn",)),
    st.tuples(st.just("cancel"), st.integers(0, 3)),
)
rare_steps = st.one_of(
    st.just(("end",)),
    st.tuples(st.just("fail"), errors),
    st.tuples(st.just("feed"), st.sampled_from([bytearray(b"a\nb"), memoryview(b";a"), "x", 3])),
    st.tuples(st.just("resize"), st.sampled_from([1, 5, 100, 1 << 80, 7.5, 0, "x"])),
    st.just(("look",)),
    st.tuples(st.just("prepend"), chunks),
    st.tuples(st.just("replace"), chunks),
)
some_steps = st.lists(st.one_of(steps, steps, steps, rare_steps), max_size=20)
ends = st.sampled_from([[], [("turn",), ("end",)], [("turn",), ("fail", ValueError("bad"))]])
scripts = st.builds(lambda *parts: [*itertools.chain(*parts)], some_steps, ends, some_steps)


@settings(max_examples=600, deadline=None)
@given(
    script=scripts,
    limit=st.sampled_from([1, 4, 10, 64, 1 << 80]),
    transport=st.sampled_from([Pausable, Pausable, Unpausable, None]),
    look=st.booleans(),
)
def test_a_reader_does_what_asyncios_does(script, limit, transport, look):
    compare(script, limit=limit, transport=transport, look=look)


BYTES = bytes(range(97, 123))


@pytest.mark.parametrize(
    "script",
    [
        [("feed", b"ab\ncd"), ("read_at_once", "readline"), ("read_at_once", "readline")],
        [("read", "readline"), ("turn",), ("feed", b"a"), ("turn",), ("end",)],
        [("read", "read", 5), ("turn",), ("read", "read", 5), ("turn",), ("feed", b"ab")],
        [("read", "read", -1), ("turn",), ("feed", BYTES), ("turn",), ("feed", b"b"), ("end",)],
        [("feed", BYTES), ("read", "readexactly", 26), ("turn",), ("read", "readexactly", 3)],
        [("read", "readexactly", 60), ("feed", BYTES), ("turn",), ("feed", BYTES), ("end",)],
        [("feed", BYTES), ("read_at_once", "readuntil", b"z"), ("look",)],
        [("feed", BYTES), ("read_at_once", "readuntil", b"0"), ("look",)],
        [("feed", BYTES), ("read_at_once", "readline"), ("look",)],
        [("feed", BYTES + b"\nab"), ("read_at_once", "readline"), ("look",)],
        [("feed", BYTES), ("read", "read", 20), ("turn",), ("cancel", 0), ("look",)],
        [("read", "read", 9), ("turn",), ("feed", b"a"), ("cancel", 0), ("turn",), ("look",)],
        [("read", "__anext__"), ("turn",), ("end",), ("turn",), ("read_at_once", "__anext__")],
        [("end",), ("feed", b"late"), ("end",), ("read_at_once", "read")],
        [("read", "readline"), ("turn",), ("fail", asyncio.IncompleteReadError(b"p", 9))],
        [("fail", asyncio.LimitOverrunError("long", 0)), ("read_at_once", "readline")],
        [("feed", b"abc"), ("prepend", b"x"), ("replace", b"yz"), ("read_at_once", "read", 1)],
        [("resize", "x"), ("feed", b"a"), ("read_at_once", "read", 1)],
    ],
)
def test_what_has_a_rule_of_its_own(script):
    for transport in (Pausable, Unpausable, None):
        compare(script, transport=transport)


def test_a_read_that_another_one_has_left_without_data_returns_nothing():
    compare(
        [
            ("read", "read", 5),
            ("turn",),
            ("feed", b"ab"),
            ("read_at_once", "read", 5),
            ("read", "read", 5),
            ("turn",),
            ("turn",),
            ("feed", b"cd"),
        ]
    )


# --- On connections -------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serving(handler, **arguments):
    server = await asyncio.start_server(handler, HOST, 0, **arguments)
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()
        await server.wait_closed()


async def finish(writer):
    writer.close()
    await writer.wait_closed()


async def test_a_server_and_a_client_talk(loop):
    async def serve(reader, writer):
        async for line in reader:
            writer.write(line.upper())
            await writer.drain()
        await finish(writer)

    async with serving(serve) as address:
        reader, writer = await asyncio.open_connection(*address)
        for line in (b"one\n", b"two\n"):
            writer.write(line)
            await writer.drain()
            assert await reader.readline() == line.upper()
        writer.write(b"the rest")
        writer.write_eof()
        assert await reader.read() == b"THE REST"
        assert reader.at_eof()
        await finish(writer)


@pytest.mark.parametrize("limit", [1000, 1 << 16])
async def test_much_data_arrives_whole_through_every_kind_of_read(loop, limit):
    generator = random.Random(limit)
    data = generator.randbytes(3 << 20)
    got = bytearray()

    async def serve(reader, writer):
        for start in range(0, len(data), 70_001):
            writer.write(data[start : start + 70_001])
            await writer.drain()
        await finish(writer)

    async with serving(serve) as address:
        reader, writer = await asyncio.open_connection(*address, limit=limit)
        while not reader.at_eof():
            kind = generator.randrange(4)
            try:
                if kind == 0:
                    got += await reader.read(generator.randrange(1, 200_000))
                elif kind == 1:
                    got += await reader.readexactly(generator.randrange(1, 200_000))
                elif kind == 2:
                    got += await reader.readuntil(data[len(got) + 500 : len(got) + 503] or b"end")
                elif generator.randrange(20) == 0:
                    got += await reader.read()
            except asyncio.IncompleteReadError as exc:
                got += exc.partial
        assert got == data
        await finish(writer)


async def test_reading_pauses_above_twice_the_limit_and_goes_on_at_the_limit(loop, pair):
    near, far = pair
    reader, writer = await asyncio.open_connection(sock=near, limit=1000)
    far.sendall(b"x" * 2000)
    while len(reader._buffer) < 2000:
        await asyncio.sleep(0)
    assert writer.transport.is_reading()
    far.sendall(b"y" * 500)
    while not reader._paused:
        await asyncio.sleep(0)
    assert not writer.transport.is_reading()
    assert len(await reader.read(1499)) == 1499 and not writer.transport.is_reading()
    assert len(await reader.read(1)) == 1 and writer.transport.is_reading()
    far.close()
    assert await reader.read() == b"x" * 500 + b"y" * 500
    await finish(writer)


async def test_drain_waits_until_the_peer_has_read(loop, pair):
    near, far = pair
    _, writer = await asyncio.open_connection(sock=near)
    writer.write(b"x" * (4 << 20))
    draining = asyncio.create_task(writer.drain())
    await turns()
    assert not draining.done()
    received = 0
    while received < 4 << 20:
        received += len(await loop.run_in_executor(None, far.recv, 1 << 20))
    await draining
    await writer.drain()
    await finish(writer)


async def test_drain_of_a_lost_connection_raises(loop):
    outcome = loop.create_future()

    async def serve(reader, writer):
        try:
            while True:
                writer.write(b"x" * 1000)
                await writer.drain()
        except ConnectionError as exc:
            lost_with = exc
        await asyncio.gather(finish(writer), return_exceptions=True)
        outcome.set_result(lost_with)

    async with serving(serve) as address:
        _, writer = await asyncio.open_connection(*address)
        writer.transport.abort()
        assert isinstance(await outcome, ConnectionError)
        await turns()


async def test_drain_of_a_closing_connection_lets_others_run(loop):
    drained = loop.create_future()

    async def serve(reader, writer):
        writer.close()
        before = asyncio.create_task(turns(1))
        with pytest.raises(ConnectionResetError, match="Connection lost"):
            await writer.drain()
        drained.set_result(before.done())

    async with serving(serve) as address:
        _, writer = await asyncio.open_connection(*address)
        assert await drained is not None
        await finish(writer)


async def test_data_at_hand_is_read_without_a_turn(loop, pair):
    near, far = pair
    reader, writer = await asyncio.open_connection(sock=near)
    far.sendall(b"one\ntwothree")
    await reader.readexactly(1)
    passed = []
    loop.call_soon(passed.append, "a turn")
    assert await reader.readline() == b"ne\n"
    assert await reader.read(3) == b"two"
    await writer.drain()
    assert passed == []
    await finish(writer)


async def test_a_cancelled_read_loses_nothing(loop, pair):
    near, far = pair
    reader, writer = await asyncio.open_connection(sock=near)
    for method, arguments in (("read", (5,)), ("readexactly", (5,)), ("readline", ())):
        reading = asyncio.create_task(getattr(reader, method)(*arguments))
        await turns()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert reader._waiter is None
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(getattr(reader, method)(*arguments), 0.01)
        far.sendall(b"12345\n")
        assert await reader.readline() == b"12345\n"
    await finish(writer)


async def test_a_lost_connection_ends_a_read_with_its_error(loop):
    loop_of_peer = socket.create_server((HOST, 0))
    with loop_of_peer:
        reader, writer = await asyncio.open_connection(*loop_of_peer.getsockname())
        peer, _ = loop_of_peer.accept()
        reading = asyncio.create_task(reader.read())
        await turns()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.close()
        with pytest.raises(ConnectionResetError):
            await reading
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        with pytest.raises(ConnectionResetError):
            await writer.drain()
        with pytest.raises(ConnectionResetError):
            await finish(writer)


async def test_a_reader_that_nobody_holds_goes_and_its_connection_ends(loop, pair):
    near, far = pair
    reader, writer = await asyncio.open_connection(sock=near, limit=10)
    transport = writer.transport
    gone = weakref.ref(reader)
    writer._reader = None
    del reader
    assert gone() is None
    far.sendall(b"x" * 1000)
    await turns(5)
    assert transport.is_reading()
    far.close()
    await finish(writer)


async def test_a_read_holds_its_reader(loop, pair):
    near, far = pair
    reader, writer = await asyncio.open_connection(sock=near)
    writer._reader = None
    reading = asyncio.create_task(reader.readline())
    del reader
    await turns()
    far.sendall(b"here\n")
    assert await reading == b"here\n"
    await finish(writer)


# --- What the objects are -------------------------------------------------------------------------


async def test_they_are_asyncios_for_whoever_asks(loop, pair):
    reader, writer = await asyncio.open_connection(sock=pair[0])
    protocol = writer.transport.get_protocol()
    for thing, kind in (
        (reader, asyncio.StreamReader),
        (writer, asyncio.StreamWriter),
        (protocol, asyncio.StreamReaderProtocol),
    ):
        assert isinstance(thing, kind)
        assert type(thing).__name__ == kind.__name__
    assert repr(reader) == f"<StreamReader transport={writer.transport!r}>"
    assert writer._reader is reader and reader._transport is writer._transport
    assert reader._loop is loop and reader._limit == 1 << 16
    assert reader._buffer == bytearray() and reader._buffer is reader._buffer
    await finish(writer)


async def test_the_methods_are_coroutine_functions(loop, pair):
    reader, writer = await asyncio.open_connection(sock=pair[0])
    for name in ("read", "readline", "readexactly", "readuntil", "__anext__"):
        method = getattr(reader, name)
        original = getattr(asyncio.StreamReader, name)
        assert method.__doc__ == original.__doc__
        assert method.__qualname__ == original.__qualname__
        if sys.version_info >= (3, 12):
            assert inspect.iscoroutinefunction(method)
    await finish(writer)


async def test_a_call_is_a_coroutine(loop, pair):
    near, far = pair
    reader, writer = await asyncio.open_connection(sock=near)
    reading = reader.readline()
    assert asyncio.iscoroutine(reading) and inspect.iscoroutine(reading)
    assert inspect.isawaitable(reading) and isinstance(reading, types.CoroutineType)
    assert reading.__qualname__ == "StreamReader.readline" and not reading.cr_running
    task = asyncio.create_task(reading)
    assert "readline" in repr(task)
    assert task.get_stack() is not None
    await turns()
    with pytest.raises(RuntimeError, match="already"):
        await reading
    far.sendall(b"x\n")
    assert await asyncio.shield(task) == b"x\n"
    with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
        await reading
    far.sendall(b"a\nb\n")
    assert await asyncio.gather(reader.readline()) == [b"a\n"]
    assert await asyncio.wait_for(reader.readline(), 5) == b"b\n"
    await finish(writer)


async def test_send_throw_and_close_work_as_on_any_coroutine(loop, pair):
    reader, writer = await asyncio.open_connection(sock=pair[0])
    for start in (False, True):
        for act, expected in (
            (lambda coroutine: coroutine.throw(KeyError("k")), KeyError),
            (lambda coroutine: coroutine.throw(KeyError), KeyError),
            (lambda coroutine: coroutine.close(), None),
        ):
            coroutine = reader.read(1)
            if start:
                coroutine.send(None)
                assert reader._waiter is not None
            with pytest.raises(expected) if expected else contextlib.nullcontext():
                act(coroutine)
            assert reader._waiter is None
            coroutine.close()
            with pytest.raises(RuntimeError, match="cannot reuse"):
                coroutine.send(None)
    with contextlib.closing(reader.read(1)) as coroutine:
        with pytest.raises(TypeError, match="just-started"):
            coroutine.send(1)
    await finish(writer)


async def test_a_forgotten_await_is_told(loop, pair):
    reader, writer = await asyncio.open_connection(sock=pair[0])
    for name in ("read", "readline"):
        for _ in range(2):
            with pytest.warns(
                RuntimeWarning, match=f"coroutine 'StreamReader.{name}' was never awaited"
            ):
                getattr(reader, name)()
                gc.collect()
    await finish(writer)


async def test_a_read_whose_task_is_collected_does_not_block_the_next(loop, pair):
    near, far = pair
    reader, writer = await asyncio.open_connection(sock=near)

    class Frame:
        pass

    frame = Frame()
    frame.coroutine = reader.readline()
    frame.self = frame
    frame.coroutine.send(None)
    del frame
    gc.collect()
    assert reader._waiter is None
    far.sendall(b"next\n")
    assert await reader.readline() == b"next\n"
    await finish(writer)


async def test_classes_of_a_program_are_left_alone(loop, pair):
    class Reader(asyncio.StreamReader):
        fed = b""

        def feed_data(self, data):
            self.fed += data
            super().feed_data(data)

    class Protocol(asyncio.StreamReaderProtocol):
        pass

    near, far = pair
    reader = Reader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.create_connection(lambda: protocol, sock=near)
    assert type(reader) is Reader and type(protocol) is asyncio.StreamReaderProtocol
    far.sendall(b"abc\n")
    assert await reader.readline() == b"abc\n" == reader.fed
    plain = asyncio.StreamReader()
    transport.set_protocol(Protocol(plain))
    assert type(plain) is asyncio.StreamReader
    transport.close()
    await turns()


async def test_methods_put_into_asyncios_classes_are_called(loop, pair):
    near, far = pair
    with mock.patch.object(asyncio.StreamReader, "readline", return_value="patched"):
        reader, writer = await asyncio.open_connection(sock=near)
        assert await reader.readline() == "patched"
    far.sendall(b"x\n")
    assert await reader.readline() == b"x\n"
    await finish(writer)


async def test_methods_put_into_an_instance_are_called(loop, pair):
    near, far = pair
    reader, writer = await asyncio.open_connection(sock=near)
    fed = []
    reader.feed_data = fed.append
    reader.readexactly = mock.AsyncMock(return_value=b"mocked")
    far.sendall(b"data")
    while not fed:
        await asyncio.sleep(0)
    assert fed == [b"data"]
    assert await reader.readexactly(100) == b"mocked"
    await finish(writer)


async def test_methods_are_asyncios_again_when_they_are_taken_out_of_an_instance(loop, pair):
    near, far = pair
    reader, writer = await asyncio.open_connection(sock=near)
    protocol = writer.transport.get_protocol()
    received = []
    protocol.data_received = received.append
    far.sendall(b"one")
    while not received:
        await asyncio.sleep(0)
    del protocol.data_received
    far.sendall(b"two")
    assert await reader.readexactly(3) == b"two" and received == [b"one"]
    with pytest.raises(AttributeError):
        del protocol.data_received
    await finish(writer)


@pytest.mark.pyreactor_only
async def test_data_resumes_the_task_that_waits_in_the_same_turn(loop, pair):
    near, far = pair
    reader, writer = await asyncio.open_connection(sock=near)
    turns_before = None

    async def read():
        await reader.read(10)
        return loop.metrics().turns

    reading = asyncio.create_task(read())
    await turns()
    far.sendall(b"data")
    loop.call_soon(loop.call_soon, lambda: None)
    turns_before = loop.metrics().turns
    assert await reading - turns_before <= 1
    await finish(writer)


async def test_a_task_cancelled_by_what_came_before_its_data_loses_nothing(loop, pair):
    near, far = pair
    reader, writer = await asyncio.open_connection(sock=near)
    reading = asyncio.create_task(reader.read(10))
    await turns()
    far.sendall(b"data")
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert await reader.read(10) == b"data"
    await finish(writer)


async def test_a_writer_follows_the_transport_and_reader_it_is_given(loop):
    done = loop.create_future()

    async def serve(reader, writer):
        other = mock.Mock()
        other.is_closing.return_value = False
        own, writer._transport = writer._transport, other
        writer.write(b"to the other")
        await writer.drain()
        other.write.assert_called_once_with(b"to the other")
        assert writer.transport is other
        writer._transport = own
        own_reader, writer._reader = writer._reader, None
        await writer.drain()
        writer._reader = own_reader
        own_reader.set_exception(ValueError("of the reader"))
        try:
            with pytest.raises(ValueError, match="of the reader"):
                await writer.drain()
        finally:
            await finish(writer)
            done.set_result(None)

    async with serving(serve) as address:
        _, writer = await asyncio.open_connection(*address)
        await done
        await finish(writer)


@pytest.mark.pyreactor_only
async def test_connections_get_the_native_classes(loop):
    kinds = loop.create_future()

    async def serve(reader, writer):
        kinds.set_result([type(reader), type(writer), type(writer.transport.get_protocol())])
        await finish(writer)

    async with serving(serve) as address:
        reader, writer = await asyncio.open_connection(*address)
        native = [_streams.StreamReader, _streams.StreamWriter, _streams.StreamReaderProtocol]
        assert await kinds == native
        assert type(reader) is _streams.StreamReader
        await reader.read()
        await finish(writer)
