"""The public names as a type checker sees them.  Checked by `make lint`, never run."""

import asyncio
import sys
from typing import assert_type

import pyreactor


async def answer() -> int:
    return 42


assert_type(pyreactor.__version__, str)
assert_type(pyreactor.run(answer()), int)
assert_type(pyreactor.run(answer(), debug=True), int)
assert_type(pyreactor.new_event_loop(), pyreactor.Loop)
assert_type(pyreactor.new_event_loop().backend, str)

loop: asyncio.AbstractEventLoop = pyreactor.Loop()
assert_type(loop.run_until_complete(answer()), int)

with asyncio.Runner(loop_factory=pyreactor.new_event_loop) as runner:
    assert_type(runner.run(answer()), int)

if sys.version_info >= (3, 12):
    assert_type(asyncio.run(answer(), loop_factory=pyreactor.new_event_loop), int)

if sys.version_info < (3, 16):
    policy: asyncio.AbstractEventLoopPolicy = pyreactor.EventLoopPolicy()
    pyreactor.install()


class Upper(pyreactor.Service):
    def handle(self, request: bytes) -> bytes:
        return request.upper()


with pyreactor.Server(Upper(), ("127.0.0.1", 0), "reactor", workers=2) as server:
    assert_type(server.stats(), dict[str, int])
    server.stop(drain=False, timeout=1.0)
