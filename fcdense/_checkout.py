"""Makes a bare checkout importable as it stands.

An installation has ``fcdense.kernels`` and ``fcdense.bench`` inside the package. A checkout keeps them beside it, as
``kernels/`` and ``bench/``, where Python does not look.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

PACKAGE = Path(__file__).parent
ROOMS = ("fcdense.kernels", "fcdense.bench")


class CheckoutFinder:
    """Finds the two packages that a checkout keeps beside ``fcdense/``."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        """Look beside the package, for those two names only."""
        return PathFinder.find_spec(fullname, [str(PACKAGE.parent)]) if fullname in ROOMS else None


if not (PACKAGE / "kernels").is_dir():
    sys.meta_path.append(CheckoutFinder())
