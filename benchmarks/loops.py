"""The event loops that are compared, by name: where each comes from, and its version."""

import importlib
import importlib.metadata
import importlib.util
import platform

NAMES = ["pyreactor", "asyncio", "uvloop", "rloop", "rsloop", "zuvloop", "aiofastnet"]
DISTRIBUTIONS = {"pyreactor": "pyreactor-loop"}  # where it is not the module's name
FASTNET_BASE = "uvloop"  # aiofastnet puts its transports on another loop


def is_installed(name):
    """Whether the module is there; its native part may fail yet."""
    return importlib.util.find_spec(name) is not None


def new_event_loop(name):
    """Make a loop: of `asyncio`, or of any module with new_event_loop()."""
    if name == "aiofastnet":
        base = importlib.import_module(FASTNET_BASE).new_event_loop
        return importlib.import_module(name).loop_factory(base)()
    return importlib.import_module(name).new_event_loop()


def version(name):
    """The version of the distribution, of the module, or of Python itself."""
    try:
        return importlib.metadata.version(DISTRIBUTIONS.get(name, name))
    except importlib.metadata.PackageNotFoundError:
        return getattr(importlib.import_module(name), "__version__", platform.python_version())
