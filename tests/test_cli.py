"""`python -m pyreactor`: a program notices nothing but the loop.

Most tests run the same command line with `python` and with `python -m pyreactor` and compare what
can be seen from outside: output, errors and exit status.
"""

import errno
import os
import pathlib
import py_compile
import re
import signal
import ssl
import subprocess
import sys
import zipfile

import pytest

import pyreactor
from pyreactor import info

PACKAGE_PARENT = str(pathlib.Path(pyreactor.__file__).parents[1])
PYTHON = os.path.abspath(sys.executable)  # as the interpreter names itself in its messages

SHOW_SELF = """
import sys
main = sys.modules["__main__"]
print(sys.argv, sys.path[0], sys.path[1] == sys.path[0])
print(__name__, main.__dict__ is globals(), globals().get("__file__"), __package__)
print(__spec__ and __spec__.name, getattr(__loader__, "__name__", type(__loader__).__name__))
print(sorted(name for name in globals() if not name.startswith("__")))
"""

SHOW_LOOPS = """
import asyncio

def show(loop):
    print(type(loop).__module__.split(".")[0], end=" ")

def show_and_close(loop):
    show(loop)
    loop.close()

async def main():
    show(asyncio.get_running_loop())

asyncio.run(main())
with asyncio.Runner() as runner:
    runner.run(main())
show_and_close(asyncio.new_event_loop())
show_and_close(asyncio.SelectorEventLoop())
show_and_close(getattr(asyncio, "EventLoop", asyncio.SelectorEventLoop)())
"""


def run(*arguments, cwd, stdin=None, python_options=(), **options):
    environment = dict(os.environ, PYTHONPATH=PACKAGE_PARENT, PYTHONDONTWRITEBYTECODE="1")
    environment.pop("PYTHONSAFEPATH", None)
    return subprocess.run(
        [PYTHON, *python_options, *arguments],
        cwd=cwd,
        env=environment,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
        **options,
    )


def run_pyreactor(*arguments, **options):
    return run("-m", "pyreactor", *arguments, **options)


def seen(process):
    return process.returncode, process.stdout, process.stderr


@pytest.fixture
def programs(tmp_path):
    """A folder of programs of every kind that python can start."""
    (tmp_path / "script.py").write_text(SHOW_SELF)
    (tmp_path / "link.py").symlink_to("folder/__main__.py")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "__init__.py").write_text("")
    (tmp_path / "folder" / "__main__.py").write_text(SHOW_SELF)
    (tmp_path / "folder" / "inner.py").write_text(SHOW_SELF)
    (tmp_path / "empty").mkdir()
    with zipfile.ZipFile(tmp_path / "program.zip", "w") as archive:
        archive.writestr("__main__.py", SHOW_SELF)
    py_compile.compile(str(tmp_path / "script.py"), cfile=str(tmp_path / "compiled.pyc"))
    (tmp_path / "raises.py").write_text("def f():\n    1 / 0\n\nf()\n")
    (tmp_path / "chained.py").write_text("try:\n    1 / 0\nexcept OSError as e:\n    raise\n")
    (tmp_path / "syntax.py").write_text("def f(:\n")
    (tmp_path / "exits.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "says.py").write_text("raise SystemExit('no good')\n")
    (tmp_path / "interrupted.py").write_text("raise KeyboardInterrupt\n")
    return tmp_path


COMMAND_LINES = [
    "script.py",
    "script.py -m x --info -- y",
    "./folder/../script.py x",
    "folder",
    "folder/",
    "folder/inner.py",
    "link.py",
    "program.zip x",
    "compiled.pyc x",
    "-m script x",
    "-m folder x",
    "-m folder.inner x",
    "-c import&sys;print(sys.argv,sys.path[0]) x",
    "raises.py",
    "chained.py",
    "syntax.py",
    "exits.py",
    "says.py",
    "interrupted.py",
    "-m raises",
    "-m syntax",
    "-m exits",
    "-m interrupted",
    "-c raise&SystemExit(4)",
    "missing.py",
    "missing/script.py",
    "script.py/x",
    "empty",
    "program.zip/x",
    "-m missing",
    "-m empty",
    "-m folder.missing",
]


@pytest.mark.parametrize("command_line", COMMAND_LINES)
def test_program_sees_what_it_sees_under_python(programs, command_line):
    arguments = [word.replace("&", " ") for word in command_line.split()]
    assert seen(run_pyreactor(*arguments, cwd=programs)) == seen(run(*arguments, cwd=programs))


@pytest.mark.parametrize("command_line", ["script.py", "folder", "program.zip", "-m script"])
def test_safe_path_is_kept(programs, command_line):
    words = command_line.split()
    expected = seen(run(*words, cwd=programs, python_options=["-P"]))
    assert seen(run_pyreactor(*words, cwd=programs, python_options=["-P"])) == expected


def test_script_from_standard_input(tmp_path):
    expected = seen(run("-", "x", cwd=tmp_path, stdin=SHOW_SELF))
    assert seen(run_pyreactor("-", "x", cwd=tmp_path, stdin=SHOW_SELF)) == expected


def test_unreadable_script_is_reported_as_python_does(programs):
    script = programs / "script.py"
    script.chmod(0)
    if os.access(script, os.R_OK):
        script.unlink()
        script.symlink_to("script.py")  # root reads everything, but not a link to itself
    process = run_pyreactor("script.py", cwd=programs)
    assert seen(process) == seen(run("script.py", cwd=programs))
    assert process.returncode == 2
    assert "can't open file" in process.stderr


def test_script_killed_by_interrupt_dies_of_the_signal(programs):
    process = run_pyreactor("interrupted.py", cwd=programs)
    assert process.returncode == -signal.SIGINT


def test_excepthook_of_the_program_is_called(tmp_path):
    (tmp_path / "hook.py").write_text(
        "import sys\nsys.excepthook = lambda *error: print(error[0].__name__)\n1 / 0\n"
    )
    process = run_pyreactor("hook.py", cwd=tmp_path)
    assert (process.returncode, process.stdout) == (1, "ZeroDivisionError\n")


def test_console_command_does_the_same(programs):
    starter = "import sys; from pyreactor.__main__ import main; sys.exit(main())"
    for words in (["script.py", "x"], ["-m", "script"], ["raises.py"], ["missing.py"]):
        (programs / "starter.py").write_text(starter)
        process = run(str(programs / "starter.py"), *words, cwd=programs)
        assert seen(process) == seen(run(*words, cwd=programs))


# --- The loop -------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [["loops.py"], ["-m", "loops"], ["-c", SHOW_LOOPS]])
def test_every_way_to_the_default_loop_leads_to_pyreactor(tmp_path, start):
    (tmp_path / "loops.py").write_text(SHOW_LOOPS)
    process = run_pyreactor(*start, cwd=tmp_path, python_options=["-W", "error"])
    assert seen(process) == (0, "pyreactor " * 5, "")


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="get_event_loop() makes no loop from 3.14")
def test_get_event_loop_makes_a_pyreactor_loop(tmp_path):
    program = (
        "import asyncio, warnings; warnings.simplefilter('ignore');"
        "loop = asyncio.get_event_loop(); print(type(loop).__module__); loop.close()"
    )
    process = run_pyreactor("-c", program, cwd=tmp_path)
    assert seen(process) == (0, f"{pyreactor.Loop.__module__}\n", "")


def test_loop_is_replaced_where_asyncio_has_no_policies(tmp_path):
    # As on Python 3.16.
    program = (
        "import asyncio.events; del asyncio.events.set_event_loop_policy;"
        f"from pyreactor.cli import main; main(['-c', {SHOW_LOOPS!r}])"
    )
    process = run("-c", program, cwd=tmp_path)
    assert seen(process) == (0, "pyreactor " * 5, "")


def test_selector_loop_asked_for_by_its_inside_is_the_selector_loop(tmp_path):
    program = """
import asyncio, selectors

class Derived(asyncio.SelectorEventLoop):
    pass

for make in (lambda: asyncio.SelectorEventLoop(selectors.SelectSelector()), Derived):
    loop = make()
    print(isinstance(loop, asyncio.SelectorEventLoop), isinstance(loop, Derived))
    print(issubclass(Derived, asyncio.SelectorEventLoop), isinstance(3, asyncio.SelectorEventLoop))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
"""
    process = run_pyreactor("-c", program, cwd=tmp_path)
    expected = "True False\nTrue False\nTrue True\nTrue False\n"
    assert seen(process) == (0, expected, "")


# --- Options --------------------------------------------------------------------------------------


def test_help_names_every_option_and_gives_examples(tmp_path):
    process = run_pyreactor("--help", cwd=tmp_path)
    assert (process.returncode, process.stderr) == (0, "")
    for text in ("-m module", "-c code", "--info", "--version", "examples:"):
        assert text in process.stdout


def test_no_arguments_print_the_help_and_fail(tmp_path):
    process = run_pyreactor(cwd=tmp_path)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == run_pyreactor("-h", cwd=tmp_path).stdout


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_version(tmp_path, option):
    expected = (0, f"pyreactor {pyreactor.__version__}\n", "")
    assert seen(run_pyreactor(option, cwd=tmp_path)) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--frobnicate"], "unknown option --frobnicate"),
        (["-x", "script.py"], "unknown option -x"),
        (["--"], "unknown option --"),
        (["-m"], "argument expected for the -m option"),
        (["-c"], "argument expected for the -c option"),
    ],
)
def test_wrong_option_is_a_usage_error(tmp_path, arguments, message):
    process = run_pyreactor(*arguments, cwd=tmp_path)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith(f"{message}\nusage: python -m pyreactor ")


# --- --info ---------------------------------------------------------------------------------------


def test_info_reports_versions_backend_and_kernel(tmp_path):
    process = run_pyreactor("--info", cwd=tmp_path)
    assert (process.returncode, process.stderr) == (0, "")
    values = dict(re.findall(r"^ *(\S(?:.*\S)?) {2,}(\S.*)$", process.stdout, re.MULTILINE))
    assert values["pyreactor"] == pyreactor.__version__
    assert values["backend"] == os.environ["PYREACTOR_BACKEND"]
    assert values["epoll"] == "yes"
    assert values["tls"] == f"openssl, {ssl.OPENSSL_VERSION}"
    assert "GIL o" in values["python"]
    assert os.uname().release in values["kernel"]
    assert values["io_uring"] == "yes" or values["io_uring"].startswith("no: ")


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("openssl", f"openssl, {ssl.OPENSSL_VERSION}"),
        (
            "memorybio",
            f"memorybio, {ssl.OPENSSL_VERSION}; no openssl engine: PYREACTOR_TLS says so",
        ),
        ("rot13", "none: PYREACTOR_TLS must be one of auto, openssl, memorybio, not 'rot13'"),
    ],
)
def test_info_tells_the_tls_engine(monkeypatch, choice, expected):
    monkeypatch.setenv("PYREACTOR_TLS", choice)
    assert info._tls() == expected


@pytest.mark.parametrize(
    ("answer", "epoll_pwait2"),
    [
        (errno.EBADF, "yes"),
        (errno.EFAULT, "yes"),
        (errno.ENOSYS, "no: the kernel is older than 5.11"),
        (errno.EPERM, "no: Operation not permitted (a seccomp filter"),
        (None, "unknown: this Python has no ctypes"),
    ],
)
def test_info_gives_the_reason_for_what_the_kernel_lacks(monkeypatch, answer, epoll_pwait2):
    monkeypatch.setattr(info, "_probe", lambda *call: answer)
    report = info.report()
    assert re.search(rf"^  epoll_pwait2 +{re.escape(epoll_pwait2)}", report, re.MULTILINE)
