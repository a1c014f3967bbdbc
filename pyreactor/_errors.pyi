# For other compiled modules only: nothing is visible from Python.
