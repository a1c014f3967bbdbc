"""One system call that fails at a chosen place, and what the loop makes of it."""

import textwrap

import pytest

PREAMBLE = """
import asyncio, errno, socket
import pyreactor
from faults import Faults

faults = Faults()
reports = []

class Recorder(asyncio.Protocol):
    def __init__(self):
        self.lost = asyncio.get_running_loop().create_future()
        self.received = bytearray()
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.received += data
    def connection_lost(self, exc):
        self.lost.set_result(exc)

async def serve():
    accepted = []
    def factory():
        accepted.append(Recorder())
        return accepted[-1]
    server = await loop.create_server(factory, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname(), accepted

def run(main):
    global loop
    with asyncio.Runner(loop_factory=pyreactor.Loop) as runner:
        loop = runner.get_loop()
        loop.set_exception_handler(lambda loop, context: reports.append(context))
        runner.run(asyncio.wait_for(main(), 20))
"""


@pytest.fixture
def run_program(run_under_faults):
    """A function that runs the body of a coroutine function `main` on a pyreactor loop."""

    def run_program(body):
        main = "async def main():\n" + textwrap.indent(textwrap.dedent(body), "    ")
        run_under_faults("faults.py", "-c", f"{PREAMBLE}\n{main}\nrun(main)\n")

    return run_program


def test_an_accepted_connection_that_cannot_be_watched_is_ended(run_program):
    run_program(
        """
        server, address, accepted = await serve()
        faults.fail("epoll_ctl", errno.ENOSPC)
        client = await asyncio.to_thread(socket.create_connection, address)
        with client:
            assert await asyncio.to_thread(client.recv, 1) == b""
        exc = await accepted[0].lost
        assert isinstance(exc, OSError) and exc.errno == errno.ENOSPC, exc
        with await asyncio.to_thread(socket.create_connection, address) as client:
            client.send(b"the next one")
            while len(accepted) < 2 or not accepted[1].received:
                await asyncio.sleep(0.001)
            server.close()
            accepted[1].transport.abort()
            await accepted[1].lost
        """
    )


def test_a_listener_that_cannot_be_watched_again_tries_until_it_can(run_program):
    run_program(
        """
        server, address, accepted = await serve()
        faults.fail("accept4", errno.EMFILE)
        client = await asyncio.to_thread(socket.create_connection, address)
        while not reports:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)  # the kernel is told that nobody listens
        faults.fail("epoll_ctl", errno.ENOSPC)
        with client:
            while not accepted:
                await asyncio.sleep(0.01)
        assert faults.count(errno.ENOSPC) == 1
        assert "out of system resource" in reports[0]["message"]
        await accepted[0].lost
        server.close()
        """
    )


def test_a_connection_that_cannot_be_watched_is_ended(run_program):
    run_program(
        """
        near, far = socket.socketpair()
        near.setblocking(False)
        faults.fail("epoll_ctl", errno.ENOMEM)
        transport, protocol = await loop.create_connection(Recorder, sock=near)
        exc = await protocol.lost
        assert isinstance(exc, OSError) and exc.errno == errno.ENOMEM, exc
        assert transport.is_closing()
        with far:
            assert far.recv(1) == b""
        """
    )


@pytest.mark.parametrize("call", ["epoll_pwait2", "epoll_wait"])
def test_an_interrupted_wait_makes_no_timer_early(run_program, call):
    run_program(
        f"""
        for nth in range(1, 20):
            faults.fail({call!r}, errno.EINTR)
            deadline = loop.time() + 0.01
            rung = loop.create_future()
            loop.call_at(deadline, rung.set_result, None)
            if {call!r} == "epoll_wait":
                for _ in range(10):
                    await asyncio.sleep(0)
            await rung
            assert loop.time() >= deadline
        assert faults.count(errno.EINTR) > 0
        """
    )


@pytest.mark.parametrize("error", ["EINTR", "EAGAIN"])
@pytest.mark.parametrize("call", ["recv", "send", "sendmsg"])
def test_a_call_that_has_to_be_tried_again_loses_no_byte(run_program, call, error):
    run_program(
        f"""
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        transport, protocol = await loop.create_connection(Recorder, sock=near)
        other, peer = await loop.create_connection(Recorder, sock=far)
        for number in range(100):
            faults.fail({call!r}, errno.{error}, 1 + number % 3)
            parts = [b"%d first, " % number, b"%d second;" % number]
            transport.writelines(parts)
            sent = b"".join(parts)
            while len(peer.received) < len(sent):
                await asyncio.sleep(0)
            assert peer.received == sent
            peer.received.clear()
        other.abort()
        transport.abort()
        await peer.lost
        await protocol.lost
        if {call!r} != "send":
            assert faults.count(errno.{error}) > 0
        """
    )
