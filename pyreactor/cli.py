"""`python -m pyreactor`: runs an asyncio program, unchanged, on the pyreactor loop.

The program must not notice who started it.  It gets what `python` itself would give it: a fresh
`__main__` module, its own sys.argv and sys.path[0], its exit status, and tracebacks that begin
with its own first line.  The one difference is the loop (default_loop.py).
"""

from __future__ import annotations

import builtins
import io
import os
import pkgutil
import runpy
import sys
from importlib.machinery import BuiltinImporter, SourceFileLoader, SourcelessFileLoader
from types import CodeType, ModuleType, TracebackType
from typing import cast

import pyreactor
from pyreactor import default_loop

USAGE = """\
usage: python -m pyreactor script.py [argument ...]
       python -m pyreactor -m module [argument ...]
       python -m pyreactor -c code [argument ...]
       python -m pyreactor models [option ...]
       python -m pyreactor bench [option ...]
"""

HELP = f"""\
{USAGE}
Run an asyncio program, unchanged, on the pyreactor event loop.  The program is
started just as `python` would start it, and asyncio.run(), asyncio.Runner()
and asyncio.new_event_loop() give it a pyreactor loop.  A program that names
another loop gets the one it names.

options:
  -h, --help     show this help
  -V, --version  show the version
  --info         show version, Python, kernel and the I/O backend in use

`models` compares the concurrency models for services, with a load; `bench`
compares the event loops that are installed.  Both have options of their own.
A script of that name is run as ./models or ./bench.

The script may be a file, a directory or zip file with a __main__.py, or `-`
for standard input.  `pyreactor` alone is the same as `python -m pyreactor`;
options of python itself go before its -m.

examples:
  python -m pyreactor app.py --port 8080
  python -m pyreactor -m uvicorn --loop asyncio app:app
  python -X dev -m pyreactor app.py
"""

EXIT_USAGE = 2


def main(args: list[str] | None = None) -> int:
    """Run the command line `args` (default: the process's own) and return the exit status."""
    first, *rest = (sys.argv[1:] if args is None else args) or [""]
    match first:
        case "":
            print(HELP, end="", file=sys.stderr)
            return EXIT_USAGE
        case "-h" | "--help":
            print(HELP, end="")
        case "-V" | "--version":
            print(f"pyreactor {pyreactor.__version__}")
        case "--info":
            from pyreactor import info  # of no use to a program that runs

            print(info.report(), end="")
        case "models":
            from pyreactor import model_comparison  # of no use to a program that runs

            return model_comparison.main(rest)
        case "bench":
            from pyreactor import bench  # of no use to a program that runs

            return bench.main(rest)
        case "-c" | "-m" if not rest:
            return _usage_error(f"argument expected for the {first} option")
        case _ if first.startswith("-") and first not in ("-", "-c", "-m"):
            return _usage_error(f"unknown option {first}")
        case _:
            default_loop.replace()
            _hide_own_frames()
            return _run(first, rest)
    return 0


def _usage_error(message: str) -> int:
    print(f"{message}\n{USAGE}", end="", file=sys.stderr)
    return EXIT_USAGE


def _run(first: str, rest: list[str]) -> int:
    match first:
        case "-m":
            module, *sys.argv[1:] = rest
            sys.argv[0] = "-m"  # until the module is found, as in python
            _set_first_path(os.getcwd())
            _run_module(module)
        case "-c":
            source, *sys.argv[1:] = rest
            sys.argv[0] = "-c"
            _set_first_path("")
            _run_source(source, "<string>")
        case "-":
            sys.argv[:] = ["-", *rest]
            _set_first_path("")
            _run_source(sys.stdin.buffer.read(), "<stdin>", __file__="<stdin>")
        case _:
            sys.argv[:] = [first, *rest]
            return _run_path(os.path.join(os.getcwd(), first))
    return 0


def _run_path(path: str) -> int:
    if pkgutil.get_importer(path) is not None:  # a directory or a zip file
        _set_first_path(path, even_if_safe=True)
        _run_module("__main__", alter_argv=False)
        return 0
    try:
        code, loader = _load(path)
    except OSError as error:
        reason = f"[Errno {error.errno}] {error.strerror}"
        print(f"{sys.executable}: can't open file {path!r}: {reason}", file=sys.stderr)
        return EXIT_USAGE
    _set_first_path(os.path.dirname(os.path.realpath(path)))
    _execute(code, __file__=path, __loader__=loader)
    return 0


def _load(path: str) -> tuple[CodeType, object]:
    if path.endswith(".pyc"):
        compiled = SourcelessFileLoader("__main__", path)
        return cast(CodeType, compiled.get_code("__main__")), compiled
    with io.open_code(path) as file:
        code = compile(file.read(), path, "exec", dont_inherit=True)
    return code, SourceFileLoader("__main__", path)


def _run_source(source: str | bytes, name: str, **attributes: object) -> None:
    code = compile(source, name, "exec", dont_inherit=True)
    _execute(code, __loader__=BuiltinImporter, **attributes)


def _execute(code: CodeType, **attributes: object) -> None:
    exec(code, _new_main(**attributes).__dict__)


def _run_module(name: str, *, alter_argv: bool = True) -> None:
    _new_main()
    # What `python -m` itself calls: it reports an unknown module in python's words.
    runpy._run_module_as_main(name, alter_argv)  # type: ignore[attr-defined]


def _new_main(**attributes: object) -> ModuleType:
    main = sys.modules["__main__"] = ModuleType("__main__")
    main.__dict__.update(attributes, __builtins__=builtins)
    return main


def _set_first_path(path: str, *, even_if_safe: bool = False) -> None:
    """Put `path` where python had put the folder of our own start."""
    if not sys.flags.safe_path:
        sys.path[0] = path
    elif even_if_safe:
        sys.path.insert(0, path)


def _hide_own_frames() -> None:
    show = sys.excepthook

    def excepthook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        frame = traceback
        while frame is not None:
            if frame.tb_frame.f_code.co_filename == __file__:
                traceback = frame.tb_next
            frame = frame.tb_next
        show(kind, error.with_traceback(traceback), traceback)

    sys.excepthook = excepthook
