"""Sums over long vectors in chunks: each chunk in float64, the chunks in their order, so that threads change no bit.

Partial sums are added with their rounding errors kept aside (Neumaier 1974), so that long sums lose no digits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fcdense.kernels.numba.compiled import jitted
from fcdense.kernels.numba.memory import load, store

CHUNK = 16384

# Words of the arguments of `total`: the vector, and where the sum of each chunk goes (float64).
X, PARTS = 0, 1

# Words of the arguments of `finish`.
(FINISH_PARTS, COUNT, OUT) = range(3)


BLOCK = 64
"""Elements that are summed up in vectors, in any order."""


@jitted()
def add(total: float, error: float, value: float) -> tuple[float, float]:
    """total + value, and `error` with what that sum lost."""
    new = total + value
    lost = (total - new) + value if abs(total) >= abs(value) else (value - new) + total
    return new, error + (lost if lost == lost else 0.0)


@jitted(fastmath={"reassoc", "contract", "nsz"})
def _block(x: int, start: int, stop: int, real: Any) -> float:
    value = 0.0
    for i in range(start, stop):
        value += load(real, x, i)
    return value


@jitted()
def total(args: int, start: int, stop: int, chunk: int, real: Any) -> None:
    """Row kernel: the sum of one chunk."""
    x, value, error = load(np.int64, args, X), 0.0, 0.0
    for i in range(start, stop, BLOCK):
        value, error = add(value, error, _block(x, i, min(i + BLOCK, stop), real))
    store(np.float64, load(np.int64, args, PARTS), chunk, value + error)


@jitted()
def finish(args: int, share: int, shares: int, thread: int, real: Any) -> None:
    """The sum of COUNT parts, on one thread."""
    parts, value, error = load(np.int64, args, FINISH_PARTS), 0.0, 0.0
    for i in range(load(np.int64, args, COUNT)):
        value, error = add(value, error, load(np.float64, parts, i))
    store(real, load(np.int64, args, OUT), 0, real(value + error))
