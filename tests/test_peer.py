"""Peer: serving and asking on one loop."""

import asyncio
import socket

import pytest

from pyreactor.framing import FramingError, LengthPrefixed, Lines
from pyreactor.peer import Peer


def upper(request):
    return request.upper()


async def closed(*peers):
    await asyncio.gather(*(peer.close() for peer in peers))


async def test_each_serves_and_asks(loop):
    one, two = Peer(upper), Peer(lambda request: request[::-1])
    await one.listen()
    await two.listen()
    assert await one.request(two.address, b"hello") == b"olleh"
    assert await two.request(one.address, b"hello") == b"HELLO"
    for peer in (one, two):
        assert peer.stats() == (1, 1, 1, 1)
    await closed(one, two)
    assert one.stats()[:2] == two.stats()[:2] == (0, 0)


async def test_many_requests_on_their_way_are_answered_in_order(loop):
    async def slow(request):
        await asyncio.sleep(0)
        return request

    one, two = Peer(upper), Peer(slow)
    await two.listen()
    numbers = [str(n).encode() for n in range(1000)]
    assert await asyncio.gather(*(one.request(two.address, n) for n in numbers)) == numbers
    assert one.stats().initiated == 1 and two.stats().accepted == 1
    await closed(one, two)


async def test_a_cancelled_request_does_not_disturb_the_others(loop):
    go_on = asyncio.Event()

    async def held(request):
        await go_on.wait()
        return request

    one, two = Peer(upper), Peer(held)
    await two.listen()
    first, second = (
        asyncio.ensure_future(one.request(two.address, word)) for word in (b"first", b"second")
    )
    while two.stats().accepted == 0:
        await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    go_on.set()
    assert await second == b"second"
    await closed(one, two)


async def test_a_request_that_is_cancelled_while_it_leaves_is_forgotten(loop):
    peer = Peer(upper, LengthPrefixed(max_bytes=64 << 20))
    with socket.create_server(("127.0.0.1", 0)) as silent:  # never reads
        address = silent.getsockname()
        await peer.connect(address)
        asking = asyncio.ensure_future(peer.request(address, bytes(32 << 20)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not asking.done()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    while peer.stats().initiated:
        await asyncio.sleep(0)
    with pytest.raises(OSError):
        await peer.request(address, b"hello")
    await peer.close()


async def test_who_is_gone_is_an_error_and_found_again_when_back(loop):
    one, two = Peer(upper), Peer(lambda request: asyncio.sleep(3600, request))
    address = await two.listen()
    asking = asyncio.ensure_future(one.request(address, b"hello"))
    while two.stats().accepted == 0:
        await asyncio.sleep(0)
    await two.close()
    with pytest.raises(ConnectionError):
        await asking
    with pytest.raises(ConnectionRefusedError):
        await one.request(address, b"hello")
    assert one.stats().initiated == 0
    again = Peer(upper)
    await again.listen(*address)
    assert await one.request(address, b"hello") == b"HELLO"
    await closed(one, again)


async def test_a_handler_that_fails_ends_its_connection_and_no_other(loop, reported_errors):
    def fragile(request):
        if request == b"bad":
            raise ZeroDivisionError
        return request

    one, other, two = Peer(upper), Peer(upper), Peer(fragile)
    await two.listen()
    assert await other.request(two.address, b"fine") == b"fine"
    with pytest.raises(ConnectionError):
        await one.request(two.address, b"bad")
    assert await other.request(two.address, b"fine") == b"fine"
    assert await one.request(two.address, b"fine") == b"fine"
    (report,) = reported_errors
    assert isinstance(report["exception"], ZeroDivisionError)
    await closed(one, other, two)


async def test_who_does_not_speak_as_agreed_is_cut_off(loop):
    one, two = Peer(upper, Lines(10)), Peer(lambda request: b"x", Lines(10))
    with pytest.raises(FramingError):
        await one.request(("127.0.0.1", 1), b"too long a line")
    await one.listen()
    reader, writer = await asyncio.open_connection(*one.address)
    writer.write(b"hello\nmuch too long a line\n")
    assert await reader.read() == b"HELLO\n"
    writer.close()

    # And who answers what was not asked.
    def talk(reader, writer):
        writer.write(b"a\nb\n")
        writer.close()

    talkative = await asyncio.start_server(talk, "127.0.0.1", 0)
    address = talkative.sockets[0].getsockname()
    try:
        await two.request(address, b"hello")
    except ConnectionError:
        pass  # the second answer was there first
    while two.stats().initiated:
        await asyncio.sleep(0)
    talkative.close()
    await closed(one, two)


async def test_a_closed_peer_is_closed(loop):
    peer = Peer(upper)
    with pytest.raises(RuntimeError, match="does not listen"):
        _ = peer.address
    async with peer:
        await peer.listen()
        with pytest.raises(RuntimeError, match="listens already"):
            await peer.listen()
        address = peer.address
    await peer.close()
    with pytest.raises(RuntimeError, match="closed"):
        await peer.listen()
    with pytest.raises(RuntimeError, match="closed"):
        await peer.request(address, b"hello")
    with socket.socket() as sock:
        assert sock.connect_ex(address) != 0
