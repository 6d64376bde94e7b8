"""Instruction kernels that share the rows or columns of a matrix among the threads."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from fcdense.kernels.numba.calls import call_rows, call_tile
from fcdense.kernels.numba.memory import load, store
from fcdense.kernels.numba.simd import itemsize, lanes

# Words of the arguments of `spread`.
(TILE, TILE_ARGS, Z, Z_ROW, ROWS, COLUMNS, BY_COLUMNS, SUMS, WHEN) = range(9)

# Words of the arguments of `rows`.
(KERNEL, KERNEL_ARGS, COUNT, CHUNK) = range(4)


@njit(inline="always")
def spread(args: int, thread: int, threads: int, real: Any) -> None:
    """A tile kernel over a matrix. SUMS: the address of column sums that are set to 0 first, or 0.

    WHEN: the address of a float64; where it holds 0, nothing is done.
    """
    when = load(np.int64, args, WHEN)
    if when != 0 and load(np.float64, when, 0) == 0.0:
        return
    rows, columns = load(np.int64, args, ROWS), load(np.int64, args, COLUMNS)
    z, z_row = load(np.int64, args, Z), load(np.int64, args, Z_ROW)
    r0, r1, c0, c1 = 0, rows, 0, columns
    if load(np.int64, args, BY_COLUMNS):
        units = (columns + lanes(real) - 1) // lanes(real)
        c0, c1 = units * thread // threads * lanes(real), min(c1, units * (thread + 1) // threads * lanes(real))
    else:
        r0, r1 = rows * thread // threads, rows * (thread + 1) // threads
    sums = load(np.int64, args, SUMS)
    if sums != 0:
        for j in range(c0, c1):
            store(real, sums, j, real(0.0))
    if r0 < r1 and c0 < c1:
        call_tile(
            load(np.int64, args, TILE),
            load(np.int64, args, TILE_ARGS),
            z + (r0 * z_row + c0) * itemsize(real),
            z_row,
            r0,
            r1,
            c0,
            c1,
        )


@njit
def rows(args: int, thread: int, threads: int, real: Any) -> None:
    """A row kernel over COUNT rows in chunks of CHUNK, which do not depend on the threads."""
    count, chunk = load(np.int64, args, COUNT), load(np.int64, args, CHUNK)
    chunks = (count + chunk - 1) // chunk
    for i in range(chunks * thread // threads, chunks * (thread + 1) // threads):
        call_rows(
            load(np.int64, args, KERNEL), load(np.int64, args, KERNEL_ARGS), i * chunk, min(count, (i + 1) * chunk), i
        )
