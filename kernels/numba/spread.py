"""Instruction kernels that share the rows or columns of a matrix among the threads."""

from __future__ import annotations

from typing import Any

import numpy as np

from fcdense.kernels.numba.calls import call_kernel, call_rows, call_tile
from fcdense.kernels.numba.columns import map_columns
from fcdense.kernels.numba.compiled import jitted
from fcdense.kernels.numba.memory import load, offset, store
from fcdense.kernels.numba.simd import itemsize, lanes

# Words of the arguments of `spread`.
(TILE, TILE_ARGS, Z, Z_ROW, ROWS, COLUMNS, BY_COLUMNS, SUMS, WHEN) = range(9)

# Words of the arguments of `rows`.
(KERNEL, KERNEL_ARGS, COUNT, CHUNK) = range(4)

# Words of the arguments of `column_sums`.
(X, X_ROW, X_ROWS, X_COLUMNS, TOTALS) = range(5)

# Words of the arguments of `alternate`.
(STEPS, STEP_COUNT, UNITS) = range(3)

ROW_UNIT = 16
"""Rows that stay together: what shares rows in such units shares them as all others do, and waits for none of them."""


@jitted()
def cut(count: int, unit: int, share: int, shares: int) -> tuple[int, int]:
    """First and last (exclusive) of `count` that belong to a share, in whole units."""
    units = (count + unit - 1) // unit
    return units * share // shares * unit, min(count, units * (share + 1) // shares * unit)


@jitted()
def spread(args: int, share: int, shares: int, thread: int, real: Any) -> None:
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
        c0, c1 = cut(columns, lanes(real), share, shares)
    else:
        r0, r1 = cut(rows, ROW_UNIT, share, shares)
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


@jitted()
def rows(args: int, share: int, shares: int, thread: int, real: Any) -> None:
    """A row kernel over COUNT rows in chunks of CHUNK, which do not depend on the threads."""
    count, chunk = load(np.int64, args, COUNT), load(np.int64, args, CHUNK)
    start, stop = cut(count, chunk, share, shares)
    for r in range(start, stop, chunk):
        kernel, kernel_args = load(np.int64, args, KERNEL), load(np.int64, args, KERNEL_ARGS)
        call_rows(kernel, kernel_args, r, min(stop, r + chunk), r // chunk)


@jitted()
def _sum(x: Any, total: Any) -> Any:
    return total + x


@jitted()
def column_sums(args: int, share: int, shares: int, thread: int, real: Any) -> None:
    """The sums over the rows of each column, in the order of the rows."""
    x_row, height = load(np.int64, args, X_ROW), load(np.int64, args, X_ROWS)
    start, stop = cut(load(np.int64, args, X_COLUMNS), lanes(real), share, shares)
    x, totals = offset(real, load(np.int64, args, X), start), offset(real, load(np.int64, args, TOTALS), start)
    for j in range(stop - start):
        store(real, totals, j, real(0.0))
    for _ in range(height):
        map_columns(_sum, real, stop - start, (x, totals), (), (totals,), ())
        x = offset(real, x, x_row)


@jitted()
def alternate(args: int, share: int, shares: int, thread: int, real: Any) -> None:
    """Several kernels, all of them on one unit of the work before the next unit: what they read of it is near by then.

    STEPS: the address of kernels and their arguments, for which a share of UNITS is the unit.
    """
    steps, units = load(np.int64, args, STEPS), load(np.int64, args, UNITS)
    start, stop = cut(units, 1, share, shares)
    for unit in range(start, stop):
        for i in range(load(np.int64, args, STEP_COUNT)):
            kernel, kernel_args = load(np.int64, steps, 2 * i), load(np.int64, steps, 2 * i + 1)
            call_kernel(kernel, kernel_args, unit, units, thread)
