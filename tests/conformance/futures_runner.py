"""Runs CPython's tests of concurrent.futures with one of our pools in an executor's place.

    python futures_runner.py POOL MODULE WORD NAME...

runs the tests of test.test_concurrent_futures.MODULE whose class has WORD in its name, but for
those called NAME (or Class.NAME), with pyreactor.pools.POOL instead of the executor that it stands
for.
"""

import concurrent.futures
import concurrent.futures.process
import concurrent.futures.thread
import functools
import importlib
import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

REPLACES = {"ThreadPool": "ThreadPoolExecutor", "ProcessPool": "ProcessPoolExecutor"}
PRELUDE = """
import sys
sys.path.insert(0, {path!r})
import futures_runner
futures_runner.replace({pool!r})
"""


def replace(pool_name):
    """Put the pool where programs look for the executor."""
    import pyreactor.pools

    executor_name = REPLACES[pool_name]
    pool = getattr(pyreactor.pools, pool_name)
    # Under the executor's name, which the tests import and see in the names of threads; and with
    # the policy that is the stdlib's only one.
    members = {"__module__": __name__}
    if pool_name == "ProcessPool":
        members["__init__"] = functools.partialmethod(pool.__init__, break_on_death=True)
        # Some tests wait for its end.
        members["_executor_manager_thread"] = property(lambda self: self._state.manager)
    executor = type(executor_name, (pool,), members)
    globals()[executor_name] = executor
    setattr(concurrent.futures, executor_name, executor)
    return executor


def replace_in_children(module, pool_name):
    """Have the programs that a test module runs do the same."""
    run = module.assert_python_ok
    prelude = PRELUDE.format(path=str(pathlib.Path(__file__).resolve().parent), pool=pool_name)

    def assert_python_ok(*arguments, **options):
        *others, code = arguments
        return run(*others, prelude + code, **options)

    module.assert_python_ok = assert_python_ok


def tests_in(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from tests_in(test)
        else:
            yield test


def main(pool_name, module_name, word, *not_applicable):
    """Run the tests; return the exit status."""
    # So that the module is found by the name that pickles of what is defined here carry.
    sys.modules["futures_runner"] = sys.modules[__name__]
    replace(pool_name)
    module = importlib.import_module(f"test.test_concurrent_futures.{module_name}")
    if hasattr(module, "assert_python_ok"):
        replace_in_children(module, pool_name)
    tests = [
        test
        for test in tests_in(unittest.defaultTestLoader.loadTestsFromModule(module))
        if word in type(test).__name__
        and not any(f".{test.id()}".endswith(f".{name}") for name in not_applicable)
    ]
    from test import support

    support.use_resources = ["walltime", "cpu"]
    result = unittest.TextTestRunner(verbosity=2).run(unittest.TestSuite(tests))
    return 0 if result.wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
