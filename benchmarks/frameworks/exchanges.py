"""What the load generator sends to a framework's server, and what has to come back.

The server itself is asked once, its answer is checked, and that answer, with any date in it blanked
out, is what every other one is compared with.
"""

import base64
import hashlib
import re
import socket

GREETING = b"Hello, world\n"
HOST = "127.0.0.1"
PATIENCE_SECONDS = 30
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
DATE = re.compile(rb"(?<=\r\nDate: )[^\r]+", re.IGNORECASE)
LENGTH = re.compile(rb"\r\nContent-Length: (\d+)", re.IGNORECASE)

KEY = base64.b64encode(bytes(range(16)))  # of a WebSocket; what it proves is nothing to us
MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3
ACCEPTANCE = base64.b64encode(hashlib.sha1(KEY + MAGIC).digest())
HANDSHAKE = b"\r\n".join(
    [
        b"GET / HTTP/1.1",
        b"Host: localhost",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: " + KEY,
        b"\r\n",
    ]
)
MASK = bytes.fromhex("37fa213d")  # any four bytes
TEXT = b"Hello, world. " * 8  # a length below 126, which fits into the first two bytes of a frame
TEXT_FRAME = 0x81  # the whole of a message
MASKED = 0x80


def connect(port):
    connection = socket.create_connection((HOST, port), PATIENCE_SECONDS)
    return connection, connection.makefile("rb")


def head(reader):
    """The header of a response, up to the empty line."""
    lines = []
    while not lines or lines[-1] not in (b"\r\n", b""):
        lines.append(reader.readline())
    return b"".join(lines)


def expect(condition, answer):
    if not condition:
        raise ValueError(f"not the answer that was expected: {answer!r}")


def blanked(answer):
    """With a zero byte, which stands for any, for each byte of a date."""
    return DATE.sub(lambda match: bytes(len(match[0])), answer)


def http(port):
    """The greeting, in whatever form the server has for it."""
    connection, reader = connect(port)
    with connection, reader:
        connection.sendall(REQUEST)
        header = head(reader)
        length = LENGTH.search(header)
        expect(header.startswith(b"HTTP/1.1 200 ") and length is not None, header)
        body = reader.read(int(length[1]))
        expect(GREETING.strip() in body, body)
    return {"request": REQUEST, "response": blanked(header + body)}


def websocket(port):
    """A text, there and back, after the handshake."""
    masked = bytes(byte ^ MASK[i % len(MASK)] for i, byte in enumerate(TEXT))
    request = bytes([TEXT_FRAME, MASKED | len(TEXT)]) + MASK + masked
    response = bytes([TEXT_FRAME, len(TEXT)]) + TEXT
    connection, reader = connect(port)
    with connection, reader:
        connection.sendall(HANDSHAKE)
        header = head(reader)
        expect(header.startswith(b"HTTP/1.1 101 ") and ACCEPTANCE in header, header)
        connection.sendall(request)
        answer = reader.read(len(response))
        expect(answer == response, answer)
    return {
        "opening_request": HANDSHAKE,
        "opening_response": blanked(header),
        "request": request,
        "response": response,
    }


def write(exchange, folder):
    """One file for each part, as the load generator reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in exchange.items():
        (folder / name).write_bytes(data)
    return folder
