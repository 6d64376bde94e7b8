"""Which kernel serves which product, and how it is cut."""

from __future__ import annotations

from typing import Any

import numpy as np

from fcdense.cuda.source import Tiling

LARGE = Tiling(128, 128, 8, 8, 8)
SMALL = Tiling(64, 64, 16, 4, 4)
DOUBLE = Tiling(64, 64, 8, 4, 4)


def tiling_of(dtype: np.dtype[Any], rows: int, columns: int, depth: int) -> Tiling:
    """How C (rows, columns) = A (rows, depth) @ B is cut."""
    if dtype == np.float64:
        return DOUBLE
    return LARGE if rows >= 1024 and columns >= 1024 else SMALL
