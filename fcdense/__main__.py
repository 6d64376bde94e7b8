"""`python -m fcdense` is the command `fcdense`."""

import sys

from fcdense.cli import main

sys.exit(main())
