"""Counts the visits of names, by a server that is composed of its four units.

    python examples/visits.py [--port 8200] [--dispatcher reactor] [--logic process]
                              [--storage sqlite] [--folder .]

A client sends names, a line each, and gets for each how often it was sent until now.  What does the
input and output, whether threads or processes count, and where the counts are kept is chosen by the
options; visit() is the same.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable

import pyreactor
from pyreactor.models import MODELS
from pyreactor.storage import Session
from pyreactor.units import CacheStorage, FileStorage, SQLiteStorage, StorageUnit

STORAGES: dict[str, Callable[[pathlib.Path], StorageUnit]] = {
    "sqlite": lambda folder: SQLiteStorage(folder / "visits.db"),
    "file": lambda folder: FileStorage(folder / "visits"),
    "cache": lambda folder: CacheStorage(10_000),
}


def visit(name: bytes, storage: StorageUnit) -> bytes:
    """Count a visit, in a thread or a process of the logic unit."""
    session: Session
    with storage.acquire() as session:
        return b"%d" % session.update(name.hex(), lambda visits: (visits or 0) + 1)


def say(server: pyreactor.Server) -> None:
    for host, port, *_ in server.addresses:
        print(f"Counting at {host}, port {port}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=8200)
    parser.add_argument("--dispatcher", choices=MODELS, default="reactor")
    parser.add_argument("--logic", choices=["thread", "process"], default="process")
    parser.add_argument("--storage", choices=STORAGES, default="sqlite")
    parser.add_argument("--folder", type=pathlib.Path, default=".")
    options = parser.parse_args()
    with STORAGES[options.storage](pathlib.Path(options.folder)) as storage:
        server = pyreactor.Server(
            pyreactor.Service(visit),
            ("127.0.0.1", options.port),
            options.dispatcher,
            logic=options.logic,
            storage=storage,
        )
        server.run(ready=say)
    print("Stopped.")


if __name__ == "__main__":
    main()
