"""The workloads of a folder, by name, each with the number of operations to be done."""


class Registry(dict):
    """Of `micro`, `transfers` and others: name -> (coroutine function, count)."""

    def __init__(self):
        super().__init__()
        self.surroundings = {}  # name -> asynchronous context manager, for those that have one

    def workload(self, count, within=None):
        """Register a workload that is to do `count` operations.

        What the asynchronous context manager `within` gives is its second argument; entering and
        leaving it are not measured.
        """

        def register(function):
            self[function.__name__] = (function, count)
            if within is not None:
                self.surroundings[function.__name__] = within
            return function

        return register
