"""House rules that no linter knows.  A failure says what to do."""

import ast
import collections
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
import types

import pytest
import setuptools

import pyreactor

ROOT = pathlib.Path(__file__).resolve().parents[1]

LINE_LENGTH_MAX = 100
FUNCTION_LINES_MAX = 80
# Functions that are longer for a good reason.  Nothing is added here to make a test pass.
LONG_FUNCTIONS = frozenset()

NAMES_OF_NOTHING = {"common", "helper", "helpers", "misc", "util", "utils"}
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX)\b")
MACHINE_PATH = re.compile(r"(?<![\w.*])/(work|root|home|farm)/")
REGISTRY = re.compile(r"\b(pypi\.org|pythonhosted\.org|deb\.debian\.org|registry\.npmjs\.org)\b")

CODE_SUFFIXES = {".c", ".h", ".py", ".pyi", ".pyx", ".pxd"}


def tracked_files():
    """What the repository holds, or would hold after `git add`; in a bare copy, what lies there."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        paths = [ROOT / name for name in names.split("\0") if name]
    else:
        tops = ("csrc", "pyreactor", "tests", "docs", "examples", "benchmarks")
        paths = [path for top in tops for path in (ROOT / top).rglob("*")]
        made = {".so", ".pyc", ".html"}
        paths = [path for path in paths if path.suffix not in made and not is_generated(path)]
    return sorted(path for path in paths if path.is_file() and not path.is_symlink())


def is_generated(path):
    return path.suffix == ".c" and path.with_suffix(".pyx").exists()


FILES = tracked_files()
CODE = [path for path in FILES if path.suffix in CODE_SUFFIXES]
CORE = [path for path in FILES if path.is_relative_to(ROOT / "csrc")]
HEADERS = [path for path in CORE if path.suffix == ".h"]
SOURCES = [path for path in CORE if path.suffix == ".c"]
PACKAGE = [path for path in FILES if path.is_relative_to(ROOT / "pyreactor")]


def name_of(path):
    return str(path.relative_to(ROOT))


def lines_matching(paths, pattern):
    return [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in paths
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]


# --- Files ----------------------------------------------------------------------------------------


def test_file_names_are_nouns_that_mean_something():
    parts = [(path, path.stem.lstrip("_").removeprefix("test_")) for path in CODE]
    assert [name_of(path) for path, stem in parts if stem in NAMES_OF_NOTHING] == []


def test_lines_fit():
    too_long = re.compile(rf"^.{{{LINE_LENGTH_MAX + 1}}}")
    assert lines_matching(CODE, too_long) == []


def test_nothing_is_marked_unfinished():
    assert lines_matching([*CORE, *PACKAGE], UNFINISHED) == []


def test_no_path_of_one_machine_and_no_registry():
    texts = [path for path in FILES if path.name != pathlib.Path(__file__).name]
    assert lines_matching(texts, MACHINE_PATH) == []
    assert lines_matching(texts, REGISTRY) == []


def test_cython_modules_are_compiled_one_by_one():
    include = re.compile(r"^\s*include\s+[\"']")
    assert lines_matching(PACKAGE, include) == []


# --- The native core ------------------------------------------------------------------------------


def extensions():
    """What setup.py passes to setup(), without building anything."""
    passed = {}
    fake_cython = types.ModuleType("Cython.Build")
    fake_cython.cythonize = lambda modules, **options: modules
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(setuptools, "setup", lambda **options: passed.update(options))
        patch.setitem(sys.modules, "Cython", types.ModuleType("Cython"))
        patch.setitem(sys.modules, "Cython.Build", fake_cython)
        runpy.run_path("setup.py", run_name="__main__")
    return passed["ext_modules"]


def test_core_does_not_know_python():
    assert lines_matching(CORE, re.compile(r"#\s*include\s*[<\"]Python\.h|\bPyObject\b")) == []


def has_state(source):
    """Whether a C file has variables that outlive its functions' calls."""
    variable = re.compile(r"^(static |_Thread_local |_Atomic|\w+ )(?!.*\bconst\b)[^(]*(=|;|\[)")
    inner = re.compile(r"^\s+static (?!const\b|inline\b|_Noreturn\b)")
    return bool(
        [line for line in lines_matching([source], inner) if " const " not in line]
        or [
            line
            for line in lines_matching([source], variable)
            if not re.search(r": (typedef|struct|union|enum|return|goto)\b[^=]*[;{]?$", line)
        ]
    )


def test_every_core_source_belongs_to_an_extension_and_its_state_to_one():
    # Linked twice, a file has its static state twice.
    linked = collections.Counter(
        source
        for extension in extensions()
        for source in extension.sources
        if source.startswith("csrc/")
    )
    assert set(linked) == set(map(name_of, SOURCES))
    assert has_state(ROOT / "csrc" / "demux" / "sigio.c")
    twice = [ROOT / source for source, count in linked.items() if count > 1]
    assert [name_of(source) for source in twice if has_state(source)] == []


def test_every_core_source_has_a_test():
    tests = {path.stem for path in (ROOT / "tests" / "c").glob("test_*.c")}
    untested = [
        name_of(path)
        for path in SOURCES
        if not {f"test_{path.stem}", f"test_{path.parent.name}"} & tests
    ]
    assert untested == []


def comment_above(lines, index):
    """The comment over the group of declarations that line `index` belongs to, or ""."""
    above = []
    for line in reversed(lines[:index]):
        inside = bool(above)
        if not line.strip() or (inside and above[-1].startswith("/*")):
            break
        if inside or re.fullmatch(r"\s*(/\*.*)?(\*.*)?\*/", line):
            above.append(line.strip())
    return " ".join(reversed(above))


def undocumented_functions(header):
    text = header.read_text()
    lines = text.splitlines()
    head = " ".join(re.match(r"\s*/\*(.*?)\*/", text, re.DOTALL)[1].replace("*", " ").split())
    says_thread = re.compile(r"\b(threads?\b|in the child\b)", re.IGNORECASE)
    all_say_thread = re.search(r"All functions: [^.]*thread", head, re.IGNORECASE)
    for index, line in enumerate(lines):
        function = re.match(r"(?!typedef|#)\w.*?\b(pr_\w+)\(", line)
        if not function:
            continue
        comment = comment_above(lines, index)
        if not comment or not (all_say_thread or says_thread.search(comment)):
            yield f"{name_of(header)}:{index + 1}: {function[1]}"


def test_every_core_function_has_a_comment_that_names_its_thread():
    assert HEADERS
    assert [name for header in HEADERS for name in undocumented_functions(header)] == []


def long_functions(source):
    start = None
    lines = source.read_text().splitlines()
    for index, line in enumerate(lines):
        if line == "{":
            start = index
        elif line == "}" and start is not None:
            if index - start - 1 > FUNCTION_LINES_MAX:
                signature = " ".join(lines[max(0, start - 3) : start])
                yield re.findall(r"(\w+)\(", signature)[-1]
            start = None


def test_functions_stay_short():
    # A ratchet: what is short may not grow; LONG_FUNCTIONS may only lose names.
    found = {name for source in SOURCES for name in long_functions(source)}
    assert found == LONG_FUNCTIONS


# --- The package ----------------------------------------------------------------------------------


def names_in_stub(path):
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.ImportFrom() | ast.Import():
                names |= {alias.asname or alias.name for alias in node.names}
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
    return names


def test_every_public_name_has_a_stub():
    stub = names_in_stub(ROOT / "pyreactor" / "__init__.pyi")
    assert {*pyreactor.__all__, "EventLoopPolicy", "install"} <= stub


def test_every_compiled_module_has_a_stub_or_is_private():
    modules = [path for path in PACKAGE if path.suffix == ".pyx"]
    assert [
        name_of(path)
        for path in modules
        if not path.stem.startswith("_") and not path.with_suffix(".pyi").exists()
    ] == []
