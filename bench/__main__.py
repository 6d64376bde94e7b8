"""`python -m bench`."""

from __future__ import annotations

import sys

from .cli import main

# The guard matters: a peer's process imports this file again.
if __name__ == "__main__":
    sys.exit(main())
