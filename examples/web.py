"""A small web application on pyreactor: pages, JSON, a WebSocket.  `make run` starts it.

Nothing in it knows the loop but the line that starts it: the handlers are plain aiohttp.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import signal
import time

from aiohttp import WSMsgType, web

import pyreactor

PAGE = """\
<!doctype html>
<title>pyreactor</title>
<h1>Served by {backend}</h1>
<p>Type, and the server answers over a WebSocket:</p>
<input autofocus>
<pre></pre>
<script>
const socket = new WebSocket(`ws://${{location.host}}/echo`);
socket.onmessage = event => document.querySelector("pre").textContent = event.data;
document.querySelector("input").oninput = event => socket.send(event.target.value);
</script>
"""

BACKEND = web.AppKey("backend", str)


async def page(request: web.Request) -> web.Response:
    return web.Response(text=PAGE.format(backend=request.app[BACKEND]), content_type="text/html")


async def status(request: web.Request) -> web.Response:
    return web.json_response({"backend": request.app[BACKEND], "time": time.time()})


async def echo(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
    return socket


def make_application(backend: str) -> web.Application:
    application = web.Application()
    application[BACKEND] = backend
    application.add_routes([web.get("/", page), web.get("/status", status), web.get("/echo", echo)])
    return application


async def listen(runner: web.AppRunner, host: str, port: int) -> None:
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        print(f"Port {port} is in use; taking a free one.")
        await web.TCPSite(runner, host, 0).start()


async def main(host: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)

    backend = f"{type(loop).__module__}.{type(loop).__name__} ({getattr(loop, 'backend', '?')})"
    # An open WebSocket would otherwise hold up the end for a minute.
    runner = web.AppRunner(make_application(backend), shutdown_timeout=1)
    await runner.setup()
    try:
        await listen(runner, host, port)
        host, port = runner.addresses[0][:2]
        print(f"Serving on http://{host}:{port}/ with {backend}; Ctrl-C stops it.", flush=True)
        await stop.wait()
    finally:
        await runner.cleanup()
    print("Stopped.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    options = parser.parse_args()
    pyreactor.run(main(options.host, options.port))
