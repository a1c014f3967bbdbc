"""A plain ASGI application, for uvicorn, with the endpoints of aiohttp_app.py.

    uvicorn uvicorn_app:app --loop pyreactor:new_event_loop     (uvicorn 0.36 or newer)
    python uvicorn_app.py [LOOP] [PORT]

The second form embeds the server in a program that has a loop of its own, which every version
of uvicorn allows. LOOP is `asyncio` or any module with `new_event_loop()`; port 0, the default,
means a free one. uvicorn logs the address it serves, and SIGINT ends it.
"""

import asyncio
import contextlib
import gc
import importlib
import json
import sys
import urllib.parse

CHUNK = b"0123456789abcdef" * 1024


async def read_body(receive):
    parts = []
    more = True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


async def reply(send, body, content_type=b"text/plain; charset=utf-8", status=200):
    headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def hello(query, receive, send):
    await reply(send, b"Hello, world\n")


async def running_loop(query, receive, send):
    """Name the loop's class, so that a test can tell which loop answered it."""
    loop = type(asyncio.get_running_loop())
    await reply(send, f"{loop.__module__}.{loop.__qualname__}".encode())


async def collect(query, receive, send):
    """Run the garbage collector, for a test that measures memory."""
    await reply(send, b"%d" % gc.collect())


async def json_reply(query, receive, send):
    body = json.dumps({"framework": "asgi", "query": query}).encode()
    await reply(send, body, b"application/json")


async def stream(query, receive, send):
    # Without a content-length the server has to use chunked encoding.
    headers = [(b"content-type", b"application/octet-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for _ in range(int(query.get("chunks", "8"))):
        await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def echo(query, receive, send):
    await reply(send, await read_body(receive), b"application/octet-stream")


ROUTES = {
    ("GET", "/"): hello,
    ("GET", "/loop"): running_loop,
    ("GET", "/collect"): collect,
    ("GET", "/json"): json_reply,
    ("GET", "/stream"): stream,
    ("POST", "/echo"): echo,
}


async def websocket_echo(receive, send):
    while True:
        message = await receive()
        if message["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
        elif message["type"] == "websocket.receive":
            text = message.get("text")
            payload = {"text": text} if text is not None else {"bytes": message["bytes"]}
            await send({"type": "websocket.send", **payload})
        else:
            return


async def lifespan(receive, send):
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "websocket":
        await websocket_echo(receive, send)
    else:
        handler = ROUTES.get((scope["method"], scope["path"]))
        if handler is None:
            await reply(send, b"Not found\n", status=404)
            return
        query = dict(urllib.parse.parse_qsl(scope["query_string"].decode()))
        await handler(query, receive, send)


def main(loop_name="pyreactor", port="0"):
    import uvicorn

    new_event_loop = importlib.import_module(loop_name).new_event_loop
    config = uvicorn.Config(app, port=int(port), loop="none", access_log=False)
    with (
        # uvicorn raises the signal again once its server has closed.
        contextlib.suppress(KeyboardInterrupt),
        asyncio.Runner(loop_factory=new_event_loop) as runner,
    ):
        runner.run(uvicorn.Server(config).serve())


if __name__ == "__main__":
    main(*sys.argv[1:])
