"""Five peers, each of which serves all others and asks them; then one dies, and four go on.

    python examples/mesh.py

starts them as processes of their own and prints what they say of each other.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
from typing import Any

import pyreactor
from pyreactor.peer import Peer

PEERS = 5


# --- One peer, which is told what to do by lines on its standard input ----------------------------


async def be_a_peer() -> None:
    """Tell the address, and then answer each line of JSON with one."""
    peer = Peer(lambda request: b"%d got %s" % (os.getpid(), request))
    host, port = await peer.listen()
    print(json.dumps({"pid": os.getpid(), "address": [host, port]}), flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    async with peer:
        while line := await reader.readline():
            print(json.dumps(await obey(peer, json.loads(line))), flush=True)


async def obey(peer: Peer, order: dict[str, Any]) -> dict[str, Any]:
    if order["do"] == "stats":
        return peer.stats()._asdict()
    replies = {}
    for host, port in order["addresses"]:
        try:
            reply = await peer.request((host, port), order["text"].encode())
            replies[f"{host}:{port}"] = reply.decode()
        except OSError as error:
            replies[f"{host}:{port}"] = f"is gone: {error}"
    return replies


# --- All of them ----------------------------------------------------------------------------------


class Node:
    """A peer in a process of its own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--node"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        first = self._answer()
        self.pid: int = first["pid"]
        self.address: tuple[str, int] = tuple(first["address"])

    def tell(self, do: str, **arguments: object) -> Any:
        """Have it do something, and return its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def kill(self) -> None:
        """End it without a word to anybody."""
        self._process.kill()
        self._process.communicate()

    def end(self) -> None:
        """Let it end."""
        self._process.communicate()


def ask_around(nodes: list[Node], text: str) -> None:
    for node in nodes:
        others = [other.address for other in nodes if other is not node]
        for address, reply in node.tell("ask", addresses=others, text=text).items():
            print(f"  {node.pid} to {address}: {reply}")


def main() -> None:
    nodes = [Node() for _ in range(PEERS)]
    print(f"{PEERS} peers ask each other:")
    ask_around(nodes, "hello")
    for node in nodes:
        print(f"  {node.pid} has", node.tell("stats"))
    victim = nodes.pop()
    victim.kill()
    print(f"{victim.pid} was killed; the others go on:")
    ask_around(nodes, "still there?")
    for node in nodes:
        node.end()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--node", action="store_true", help="be one of the peers")
    if parser.parse_args().node:
        pyreactor.run(be_a_peer())
    else:
        main()
