"""Web servers of well-known frameworks, in the smallest form in which they do anything.

    python -m frameworks.server LOOP NAME

LOOP is one of loops.py, NAME one of SERVERS.  The port it listens on is printed; then it serves
until it is killed.
"""

import asyncio
import functools
import socket
import sys

import loops
from frameworks.exchanges import GREETING


async def plain_text(scope, receive, send):
    """An ASGI application without a framework."""
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(GREETING))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": GREETING})


async def serve_asgi(listener, application):
    import uvicorn

    config = uvicorn.Config(
        application,
        loop="none",  # the one that runs already
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="error",
    )
    await uvicorn.Server(config).serve(sockets=[listener])


async def uvicorn_plain(listener):
    await serve_asgi(listener, plain_text)


async def fastapi_json(listener):
    import fastapi

    application = fastapi.FastAPI()

    @application.get("/")
    async def greet():
        return {"message": GREETING.decode()}

    await serve_asgi(listener, application)


async def aiohttp_hello(listener):
    from aiohttp import web

    async def greet(request):
        return web.Response(body=GREETING, content_type="text/plain")

    application = web.Application()
    application.router.add_get("/", greet)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    await asyncio.get_running_loop().create_future()


async def websockets_echo(listener):
    from websockets.asyncio.server import serve

    async def echo(connection):
        async for message in connection:
            await connection.send(message)

    async with serve(echo, sock=listener, compression=None) as server:
        await server.serve_forever()


SERVERS = {
    function.__name__: function
    for function in (uvicorn_plain, fastapi_json, aiohttp_hello, websockets_echo)
}


def main(loop_name, name):
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setblocking(False)
    print(listener.getsockname()[1], flush=True)
    factory = functools.partial(loops.new_event_loop, loop_name)
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(SERVERS[name](listener))


if __name__ == "__main__":
    main(*sys.argv[1:])
