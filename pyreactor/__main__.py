"""`python -m pyreactor`: see cli.py."""

import sys

from pyreactor.cli import main

if __name__ == "__main__":
    sys.exit(main())
