"""The workloads of a folder, by name, each with the number of operations to be done."""


class Registry(dict):
    """Of `micro` or `transfers`: name -> (coroutine function, count)."""

    def workload(self, count):
        """Register a workload that is to do `count` operations."""

        def register(function):
            self[function.__name__] = (function, count)
            return function

        return register
