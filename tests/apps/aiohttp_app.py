"""An aiohttp application that touches each kind of traffic a web server sees.

    python aiohttp_app.py [LOOP] [PORT]

LOOP is `asyncio` or any module with `new_event_loop()`; port 0, the default, means a free one.
aiohttp prints the address it serves, and SIGINT ends it.
"""

import asyncio
import contextlib
import functools
import gc
import importlib
import socket
import sys

from aiohttp import WSMsgType, web

CHUNK = b"0123456789abcdef" * 1024


async def hello(request):
    return web.Response(text="Hello, world\n")


async def running_loop(request):
    """Name the loop's class, so that a test can tell which loop answered it."""
    loop = type(asyncio.get_running_loop())
    return web.Response(text=f"{loop.__module__}.{loop.__qualname__}")


async def collect(request):
    """Run the garbage collector, for a test that measures memory."""
    return web.Response(text=str(gc.collect()))


async def json_reply(request):
    return web.json_response({"framework": "aiohttp", "query": dict(request.query)})


async def stream(request):
    response = web.StreamResponse()
    response.enable_chunked_encoding()
    await response.prepare(request)
    # aiohttp tells the handler when the client has gone; there is nobody left to answer then.
    with contextlib.suppress(ConnectionError):
        for _ in range(int(request.query.get("chunks", "8"))):
            await response.write(CHUNK)
        await response.write_eof()
    return response


async def echo(request):
    return web.Response(body=await request.read(), content_type="application/octet-stream")


async def websocket_echo(request):
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await socket.send_bytes(message.data)
    return socket


def make_app():
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_get("/", hello)
    app.router.add_get("/loop", running_loop)
    app.router.add_get("/collect", collect)
    app.router.add_get("/json", json_reply)
    app.router.add_get("/stream", stream)
    app.router.add_post("/echo", echo)
    app.router.add_get("/websocket", websocket_echo)
    return app


def main(loop_name="pyreactor", port="0"):
    new_event_loop = importlib.import_module(loop_name).new_event_loop
    listener = socket.create_server(("127.0.0.1", int(port)), backlog=1024)
    web.run_app(
        make_app(),
        # A socket rather than a port: aiohttp then prints the port that the kernel chose.
        sock=listener,
        backlog=1024,
        loop=new_event_loop(),
        access_log=None,
        shutdown_timeout=2,
        print=functools.partial(print, flush=True),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
