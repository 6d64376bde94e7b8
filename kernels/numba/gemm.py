"""The matrix product of all three passes of a dense layer, with whatever follows it done while it is in the cache.

C = A @ B in tiles of `simd.ROWS` x `simd.VECTORS` vectors that are summed up in registers. Blocks of MC x KC of A and
KC columns of B stay in the L2 cache; NC columns of B are packed into panels first, so that the rows of a panel follow
each other in memory (Goto & van de Geijn 2008, Anatomy of high-performance matrix multiplication). A is read where it
lies, unless its columns are contiguous (weight gradients) and it is large.

The tile kernel at TILE is called for each block of C when it is done. With C = 0 there is no matrix C: each block lies
in scratch memory until the tile kernel has consumed it, as a weight gradient whose only reader is the optimizer.

Every element of C is summed up in the order of k, in blocks of KC, whoever computes it: threads change no bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fcdense.kernels.numba.calls import call_tile
from fcdense.kernels.numba.columns import map_columns
from fcdense.kernels.numba.compiled import jitted
from fcdense.kernels.numba.memory import load, store
from fcdense.kernels.numba.simd import (
    DOTS,
    ROWS,
    VECTOR_BYTES,
    VECTORS,
    dots,
    itemsize,
    lanes,
    product,
    transpose,
)
from fcdense.kernels.numba.spread import ROW_UNIT, cut

KC, MC, NC = 256, 192, 256
HIGH = 2 * MC
"""Rows of a block where A is read as it lies."""
LEFT_ROW = MC + 16
"""Distance of packed rows of A: an odd number of cache lines, so that a column of them spreads over the whole cache."""
FEW_ROWS = 2 * ROWS
"""Up to here B is read where it lies: packing would cost as much as it saves."""
FEW_DOTS = 4
"""Up to here a flipped B is read as it lies, in dot products: packing it would cost more than the product."""
FAR = 512 * 1024
"""From here on a few rows of A read B in whole rows, as fast as memory gives them."""
NEAR = 32 * 1024
"""Bytes that stay in the L1 cache: matrices up to here need no packing."""

WIDE = 256 * 1024
"""Bytes of packed columns of B with which the blocks of a consumed C are wider than NC and less high: what its tile
kernel reads and writes beside them, the weights and the slots of an optimizer, lies in longer pieces then."""

# Words of the arguments.
(M, N, K, A, A_ROW, A_COLUMN, B, B_ROW, B_FLIPPED, C, C_ROW, ACCUMULATE, TILE, TILE_ARGS, SPACE, BY_COLUMNS, SUMS) = (
    range(17)
)


def space(n: int, k: int, size: int) -> int:
    """Bytes of scratch memory that a thread needs for a product with K = k and N = n, numbers of `size` bytes."""
    columns = min(n, max(NC, WIDE // (k * size))) + VECTORS * VECTOR_BYTES // size
    return (LEFT_ROW * KC + k * columns + MC * NC) * size


@jitted()
def pack_rows(b: int, b_row: int, k0: int, k1: int, j0: int, j1: int, to: int, width: int, real: Any) -> None:
    """Columns j0 to j1 of B as panels [k][width]; each row is read in one piece."""
    size = itemsize(real)
    for k in range(k0, k1):
        source, target = b + (k * b_row + j0) * size, to + (k - k0) * width * size
        for p in range(j0, j1, width):
            for j in range(min(width, j1 - p)):
                store(real, target, j, load(real, source, j))
            source += width * size
            target += (k1 - k0) * width * size


@jitted(inline="always")
def pack_flipped(b: int, b_row: int, k0: int, k1: int, j0: int, j1: int, to: int, width: int, real: Any) -> None:
    """The same where element (k, j) lies at b + j b_row + k."""
    size, n = itemsize(real), lanes(real)
    for p in range(j0, j1, width):
        columns = min(width, j1 - p)
        for j in range(0, columns, n):
            some = min(n, columns - j)
            k = k0
            while some == n and k + n <= k1:
                transpose(b + ((p + j) * b_row + k) * size, b_row, to + ((k - k0) * width + j) * size, width, real)
                k += n
            for rest in range(k, k1):
                for i in range(some):
                    store(real, to, (rest - k0) * width + j + i, load(real, b, (p + j + i) * b_row + rest))
        to += (k1 - k0) * width * size


@jitted()
def pack(flipped: int, b: int, b_row: int, k0: int, k1: int, j0: int, j1: int, to: int, width: int, real: Any) -> None:
    """Rows k0 to k1 of columns j0 to j1 of B as panels."""
    if flipped != 0:
        pack_flipped(b, b_row, k0, k1, j0, j1, to, width, real)
    else:
        pack_rows(b, b_row, k0, k1, j0, j1, to, width, real)


@jitted()
def pack_left(a: int, a_column: int, i0: int, i1: int, k0: int, k1: int, to: int, real: Any) -> None:
    """Rows i0 to i1 of A as [k][LEFT_ROW], where element (i, k) lies at a + i + k a_column."""
    size = itemsize(real)
    for k in range(k0, k1):
        source = a + (k * a_column + i0) * size
        for i in range(i1 - i0):
            store(real, to, i, load(real, source, i))
        to += LEFT_ROW * size


@jitted(inline="always")
def dot_products(
    a: int, a_row: int, b: int, b_row: int, c: int, c_row: int,
    rows: int, columns: int, depth: int, accumulate: int, real: Any,
) -> None:  # fmt: skip
    """A few rows of A times a flipped B, which is read once and as it lies."""
    size = itemsize(real)
    for i in range(0, rows, 2):
        some = min(2, rows - i)
        j = 0
        while j < columns:
            beside = DOTS if j + DOTS <= columns else 1
            left, right, target = a + i * a_row * size, b + j * b_row * size, c + (i * c_row + j) * size
            dots(some, beside, left, a_row, right, b_row, target, c_row, depth, accumulate, real)
            j += beside


@jitted(fastmath={"contract"})
def _four_products(y: Any, b0: Any, b1: Any, b2: Any, b3: Any, a0: Any, a1: Any, a2: Any, a3: Any) -> Any:
    return a3 * b3 + (a2 * b2 + (a1 * b1 + (a0 * b0 + y)))


@jitted(fastmath={"contract"})
def _one_product(y: Any, b: Any, a: Any) -> Any:
    return a * b + y


@jitted()
def _sum(x: Any, y: Any) -> Any:
    return x + y


@jitted()
def row_products(
    a: int, a_row: int, a_column: int, b: int, b_row: int, c: int, c_row: int,
    rows: int, columns: int, depth: int, accumulate: int, partial: int, real: Any,
) -> None:  # fmt: skip
    """A few rows of A times B, of which each row is read once, in one piece. `partial` has room for as many of C."""
    size = itemsize(real)
    for k0 in range(0, depth, KC):
        k1 = min(k0 + KC, depth)
        apart = accumulate or k0 > 0
        sums, sums_row = (partial, columns) if apart else (c, c_row)
        for i in range(rows):
            for j in range(columns):
                store(real, sums, i * sums_row + j, real(0.0))
        k = k0
        while k < k1:
            b0 = b + k * b_row * size
            some = 4 if k + 4 <= k1 else 1
            for i in range(rows):
                y, at = sums + i * sums_row * size, i * a_row + k * a_column
                if some == 4:
                    b1, b2, b3 = b0 + b_row * size, b0 + 2 * b_row * size, b0 + 3 * b_row * size
                    values = (
                        load(real, a, at),
                        load(real, a, at + a_column),
                        load(real, a, at + 2 * a_column),
                        load(real, a, at + 3 * a_column),
                    )
                    map_columns(_four_products, real, columns, (y, b0, b1, b2, b3), values, (y,), ())
                else:
                    map_columns(_one_product, real, columns, (y, b0), (load(real, a, at),), (y,), ())
            k += some
        if apart:
            for i in range(rows):
                y = c + i * c_row * size
                map_columns(_sum, real, columns, (y, sums + i * columns * size), (), (y,), ())


@jitted(inline="always")
def blocks(args: int, r0: int, r1: int, c0: int, c1: int, left: int, real: Any) -> None:
    """Rows r0 to r1 of columns c0 to c1 in blocks that stay in the cache; `left` is this thread's scratch memory."""
    size, width = itemsize(real), VECTORS * lanes(real)
    depth = load(np.int64, args, K)
    a, a_row, a_column = load(np.int64, args, A), load(np.int64, args, A_ROW), load(np.int64, args, A_COLUMN)
    b, b_row, flipped = load(np.int64, args, B), load(np.int64, args, B_ROW), load(np.int64, args, B_FLIPPED)
    c, c_row, accumulate = load(np.int64, args, C), load(np.int64, args, C_ROW), load(np.int64, args, ACCUMULATE)
    tile, tile_args = load(np.int64, args, TILE), load(np.int64, args, TILE_ARGS)
    right = left + LEFT_ROW * KC * size
    block = right + depth * (min(c1 - c0, max(NC, WIDE // (depth * size))) + width) * size
    consumed = c == 0
    pack_b = flipped != 0 or (r1 - r0 > FEW_ROWS and depth * b_row * size > NEAR)
    pack_a = a_column != 1 and depth * a_column * size > NEAR and c1 - c0 > width
    mc, nc = MC, NC
    if consumed:
        nc = max(NC, min(WIDE // (depth * size), MC * NC // ROW_UNIT) // width * width)
        nc = min(nc, (c1 - c0 + width - 1) // width * width)
        mc = min(MC, MC * NC // max(nc, 1))
        c_row = nc
    elif not pack_a:
        mc = HIGH
        if depth >= 2 * KC and r1 - r0 <= mc:
            nc = 2 * NC
    pack_late = r1 - r0 <= mc  # one block of rows: what was packed is used up at once, and stays in the L2 cache
    for j0 in range(c0, c1, nc):
        j1 = min(j0 + nc, c1)
        padded = (j1 - j0 + width - 1) // width * width
        if pack_b and not pack_late:
            for k0 in range(0, depth, KC):
                pack(flipped, b, b_row, k0, min(k0 + KC, depth), j0, j1, right + k0 * padded * size, width, real)
        for i0 in range(r0, r1, mc):
            i1 = min(i0 + mc, r1)
            if consumed:
                c = block - (i0 * c_row + j0) * size
            for k0 in range(0, depth, KC):
                k1 = min(k0 + KC, depth)
                packed = right if pack_late else right + k0 * padded * size
                if pack_b and pack_late:
                    pack(flipped, b, b_row, k0, k1, j0, j1, packed, width, real)
                if pack_a:
                    pack_left(a, a_column, i0, i1, k0, k1, left, real)
                for p in range(j0, j1, width):
                    columns = min(width, j1 - p)
                    vectors = (columns + lanes(real) - 1) // lanes(real)
                    tail = columns - (vectors - 1) * lanes(real)
                    panel, panel_row = b + (k0 * b_row + p) * size, b_row
                    if pack_b:
                        panel, panel_row = packed + (p - j0) * (k1 - k0) * size, width
                    i = i0
                    while i < i1:
                        rows = min(ROWS, i1 - i)
                        start, row, column = a + (i * a_row + k0 * a_column) * size, a_row, a_column
                        if pack_a:
                            start, row, column = left + (i - i0) * size, 1, LEFT_ROW
                        elif ROWS < i1 - i < 2 * ROWS:  # two even tiles instead of a full one and a thin one
                            rows = (i1 - i + 1) // 2
                        product(
                            rows,
                            vectors,
                            start,
                            row,
                            column,
                            panel,
                            panel_row,
                            c + (i * c_row + p) * size,
                            c_row,
                            k1 - k0,
                            accumulate or k0 > 0,
                            tail,
                            real,
                        )
                        i += rows
            if tile != 0:
                call_tile(tile, tile_args, c + (i0 * c_row + j0) * size, c_row, i0, i1, j0, j1)


@jitted()
def gemm(args: int, share: int, shares: int, thread: int, real: Any) -> None:
    """This share: some columns of C, or some rows."""
    size = itemsize(real)
    r0, r1, c0, c1 = 0, load(np.int64, args, M), 0, load(np.int64, args, N)
    few = r1 <= FEW_DOTS and load(np.int64, args, C) != 0
    if load(np.int64, args, BY_COLUMNS):
        c0, c1 = cut(c1, lanes(real), share, shares)
    else:
        r0, r1 = cut(r1, ROW_UNIT, share, shares)
    rows, columns, depth = r1 - r0, c1 - c0, load(np.int64, args, K)
    a_row, a_column = load(np.int64, args, A_ROW), load(np.int64, args, A_COLUMN)
    b, b_row, flipped = load(np.int64, args, B), load(np.int64, args, B_ROW), load(np.int64, args, B_FLIPPED)
    c, c_row, accumulate = load(np.int64, args, C), load(np.int64, args, C_ROW), load(np.int64, args, ACCUMULATE)
    tile, tile_args, sums = load(np.int64, args, TILE), load(np.int64, args, TILE_ARGS), load(np.int64, args, SUMS)
    scratch = load(np.int64, args, SPACE)
    left = load(np.int64, scratch, 0) + thread * load(np.int64, scratch, 1)
    if sums != 0:
        for j in range(c0, c1):
            store(real, sums, j, real(0.0))
    a, target = load(np.int64, args, A) + r0 * a_row * size, c + (r0 * c_row + c0) * size
    if few and flipped != 0 and a_column == 1:
        dot_products(a, a_row, b + c0 * b_row * size, b_row, target, c_row, rows, columns, depth, accumulate, real)
    elif few and flipped == 0 and depth * b_row * size >= FAR and rows * columns <= LEFT_ROW * KC:
        b += c0 * size
        row_products(a, a_row, a_column, b, b_row, target, c_row, rows, columns, depth, accumulate, left, real)
    else:
        blocks(args, r0, r1, c0, c1, left, real)
        return
    if tile != 0 and rows > 0 and columns > 0:
        call_tile(tile, tile_args, target, c_row, r0, r1, c0, c1)
