"""aiohttp and uvicorn applications answer on the loop as they do on asyncio's own."""

import asyncio
import importlib
import json
import socket
import struct

import pytest

# Each wait has a shorter limit of its own; a loaded machine takes long to start a framework.
pytestmark = pytest.mark.time_limit(180)

HELLO = b"Hello, world\n"
CHUNK = b"0123456789abcdef" * 1024


def run_on_loop(loop_name, main):
    """Run a client on the loop under test too: that is the connecting half of the transports."""
    new_event_loop = importlib.import_module(loop_name).new_event_loop
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(asyncio.wait_for(main, 60))


def request_head(server, path, method="GET", more=""):
    return f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{more}\r\n".encode()


def test_plain_text(server):
    response, body = server.request("GET", "/")
    assert response.status == 200
    assert response.headers["Content-Type"].startswith("text/plain")
    assert body == HELLO


def test_json_with_a_query(server):
    response, body = server.request("GET", "/json?a=1&b=two")
    assert response.status == 200
    assert response.headers["Content-Type"].startswith("application/json")
    assert json.loads(body)["query"] == {"a": "1", "b": "two"}


def test_unknown_path_is_404_and_the_server_goes_on(server):
    assert server.request("GET", "/nowhere")[0].status == 404
    assert server.request("GET", "/")[0].status == 200


def test_streaming_response_is_chunked_and_complete(server):
    response, body = server.request("GET", "/stream?chunks=64")
    assert response.status == 200
    assert response.headers["Transfer-Encoding"] == "chunked"
    assert body == CHUNK * 64


def test_streaming_to_a_slow_reader_waits_for_it(server):
    """32 MiB fit in no socket buffer, so the server must pause and resume its writing."""
    chunks = 2048
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(60)
        client.connect(server.address)
        client.sendall(
            request_head(server, f"/stream?chunks={chunks}", more="Connection: close\r\n")
        )
        first = client.recv(1024)
        assert first.startswith(b"HTTP/1.1 200")
        # Another client is served while the first one holds its response up.
        assert server.request("GET", "/")[1] == HELLO
        received = len(first)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        while data := client.recv(1 << 20):
            received += len(data)
    assert received > chunks * len(CHUNK)


@pytest.mark.parametrize("size", [0, 1, 1000, 65536, 65537, 5_000_000])
def test_post_echo(server, size):
    sent = bytes(i % 251 for i in range(size))
    response, body = server.request("POST", "/echo", sent)
    assert response.status == 200
    assert body == sent


def test_post_echo_of_a_chunked_upload(server):
    parts = [b"x" * n for n in (1, 100, 10_000, 100_000)]
    response, body = server.request("POST", "/echo", iter(parts))
    assert response.status == 200
    assert body == b"".join(parts)


def test_one_connection_serves_many_requests(server):
    connection = server.connection()
    connection.connect()
    first = connection.sock
    for _ in range(200):
        connection.request("GET", "/")
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, HELLO)
    assert connection.sock is first
    connection.close()


def test_pipelined_requests_are_answered_in_order(server):
    with socket.create_connection(server.address, timeout=60) as client:
        last = request_head(server, "/json?n=2", more="Connection: close\r\n")
        client.sendall(request_head(server, "/json?n=0") + request_head(server, "/json?n=1") + last)
        received = bytearray()
        while data := client.recv(65536):
            received += data
    positions = [received.find(b'"n": "%d"' % n) for n in range(3)]
    if -1 in positions:
        positions = [received.find(b'"n":"%d"' % n) for n in range(3)]
    assert -1 not in positions, bytes(received)
    assert positions == sorted(positions)


def test_request_that_arrives_byte_by_byte(server):
    with socket.create_connection(server.address, timeout=60) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request_head(server, "/", more="Connection: close\r\n"):
            client.sendall(bytes([byte]))
        received = bytearray()
        while data := client.recv(65536):
            received += data
    assert received.startswith(b"HTTP/1.1 200")
    assert received.endswith(HELLO)


def test_client_that_resets_mid_response_leaves_the_server_well(server):
    for _ in range(20):
        client = socket.create_connection(server.address, timeout=60)
        client.sendall(request_head(server, "/stream?chunks=512"))
        client.recv(1024)
        # A zero linger time turns close() into a reset.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    assert server.request("GET", "/")[1] == HELLO
    assert server.process.poll() is None


def test_client_that_half_closes_does_not_hang_the_server(server):
    with socket.create_connection(server.address, timeout=60) as client:
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1024) == b""
    assert server.request("GET", "/")[1] == HELLO


def test_aiohttp_client_on_the_same_loop(server, loop_name, aiohttp):
    async def fetch(session, n):
        async with session.get(f"{server.url}/json", params={"n": str(n)}) as response:
            assert response.status == 200
            return (await response.json())["query"]["n"]

    async def main():
        async with aiohttp.ClientSession() as session:
            numbers = await asyncio.gather(*(fetch(session, n) for n in range(200)))
            assert numbers == [str(n) for n in range(200)]
            async with session.post(f"{server.url}/echo", data=CHUNK * 60) as response:
                assert await response.read() == CHUNK * 60
            async with session.get(f"{server.url}/stream?chunks=100") as response:
                parts = [part async for part in response.content.iter_any()]
                assert b"".join(parts) == CHUNK * 100

    run_on_loop(loop_name, main())


def test_websocket_echo(server, loop_name, aiohttp, require):
    async def main():
        async with aiohttp.ClientSession() as session:
            try:
                websocket = await session.ws_connect(f"{server.url}/websocket")
            except aiohttp.WSServerHandshakeError:
                require("uvicorn has no websocket library (pip install wsproto)")
            async with websocket:
                for text in ("", "a", "grüße", "x" * 70_000):
                    await websocket.send_str(text)
                    assert await websocket.receive_str() == text
                for payload in (b"\0", CHUNK * 40):
                    await websocket.send_bytes(payload)
                    assert await websocket.receive_bytes() == payload
                for n in range(100):
                    await websocket.send_str(str(n))
                assert [await websocket.receive_str() for _ in range(100)] == [
                    str(n) for n in range(100)
                ]
            assert websocket.close_code == 1000

    run_on_loop(loop_name, main())


LAUNCHES = ["aiohttp", "uvicorn", "uvicorn-h11", "uvicorn-embedded"]
COMMAND_LAUNCHES = ["aiohttp-command", "uvicorn-command"]


@pytest.mark.parametrize("name", LAUNCHES + COMMAND_LAUNCHES)
def test_each_way_of_starting_ends_on_sigint(start, loop_name, name):
    if name in COMMAND_LAUNCHES and loop_name != "pyreactor":
        pytest.skip("only pyreactor has a command that runs other programs")
    application = start(name)
    loop_class = application.request("GET", "/loop")[1].decode()
    assert loop_class.partition(".")[0] == loop_name
    # An idle keep-alive connection must not hold the shutdown up.
    idle = application.connection()
    idle.request("GET", "/")
    assert idle.getresponse().read() == HELLO
    assert application.interrupt() == 0, application.output
    idle.close()
    assert "Traceback" not in application.output, application.output
