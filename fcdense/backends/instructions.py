"""Instructions: kernels of `fcdense.kernels.numba` with addresses for arguments, and how the work is shared."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from fcdense import loops
from fcdense.arena import Array
from fcdense.kernels.numba import compiled, gemm, spread, sums
from fcdense.kernels.numba.pool import address, available_threads, pool
from fcdense.log import logger
from fcdense.program import Program

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
MANY_FLOPS = 500_000
"""From here on a product is shared among the threads: it takes 2.5 us on one of them, their meeting 0.5 us."""
MANY_BYTES = 256 * 1024
"""The same for the matrix that it reads, of which a product of few rows is a pass."""
MANY_ELEMENTS = 32_768
"""The same for passes over memory, about 3 us."""


class Instruction(NamedTuple):
    """One row of a program's table.

    Attributes
    ----------
    kernel : int
        Address of an instruction kernel.
    arguments : array of int64
        What it is given.
    is_shared : bool
        Whether all threads take part.
    keeps : tuple
        What has to live as long as the instruction.
    """

    kernel: int
    arguments: Array
    is_shared: bool
    keeps: tuple[Any, ...]


def served(arrays: Sequence[Array]) -> bool:
    """Whether the kernels know these arrays: one dtype of theirs, aligned, not empty, rows contiguous."""
    dtype = arrays[0].dtype
    return dtype in FLOATS and all(
        a.dtype == dtype
        and a.size
        and a.flags.aligned
        and (a.ndim == 0 or a.shape[-1] == 1 or a.strides[-1] == a.itemsize)
        for a in arrays
    )


def row_distance(matrix: Array) -> int:
    """Distance of the rows in elements; that of a vector, or a single row, is its length."""
    if matrix.ndim == 0:
        return 1
    distance: int = (
        matrix.shape[-1] if matrix.ndim == 1 or matrix.shape[0] == 1 else matrix.strides[0] // matrix.itemsize
    )
    return distance


@cache
def compiled_kernel(module: ModuleType, name: str, dtype: np.dtype[Any], arguments: int = 3) -> int:
    """The address of an instruction kernel (of 3 arguments) or row kernel (of 4), compiled or read from the cache."""
    return _load(compiled.call_source(module.__name__, name, dtype, arguments))


@cache
def _tile_kernel(program: Program, dtype: np.dtype[Any], patterns: str, summed: bool) -> int:
    return _load(loops.tile_source(program, dtype, patterns, sums=summed))


def _load(source: str) -> int:
    folder = Path(os.environ.get("FCDENSE_CACHE") or "~/.cache/fcdense").expanduser() / "numba"
    return int(compiled.load(source, folder, logger.warning).address)


class Tile(NamedTuple):
    """A tile kernel with its arguments."""

    kernel: int
    arguments: Array
    keeps: tuple[Any, ...]


def tile_of(
    program: Program,
    dtype: np.dtype[Any],
    operands: Sequence[tuple[Array, str]],
    outs: Sequence[Array | None],
    scalars: Any = (),
    summed: Array | None = None,
) -> Tile:
    """A tile kernel with its arguments; operand 0 and an output None are the matrix that it is called for."""
    words: list[int] = []
    for array, pattern in operands:
        words += (
            address(array),
            row_distance(array) if pattern == "m" else int(array.strides[0]) // array.itemsize if pattern == "c" else 0,
        )
    for out in outs:
        words += (0, 0) if out is None else (address(out), row_distance(out))
    values = scalars if isinstance(scalars, np.ndarray) else np.array(scalars, np.float64)
    words.append(address(values))
    if summed is not None:
        words.append(address(summed))
    kernel = _tile_kernel(program, dtype, "".join(pattern for _, pattern in operands), summed is not None)
    return Tile(kernel, np.array(words, np.int64), (operands, outs, values, summed))


def product(
    a: Array,
    b: Array,
    out: Array | None,
    *,
    tile: Tile | None = None,
    accumulate: bool = False,
    totals: Array | None = None,
    shape: tuple[int, ...] = (),
) -> list[Instruction]:
    """The product `a @ b` into `out`, or into scratch memory for `tile` to consume, of this `shape`.

    `totals` is set to 0 first; `tile` adds the column sums of its result to it.
    """
    m, n = shape if out is None else out.shape
    k = a.shape[1]
    dtype = a.dtype
    size, threads = dtype.itemsize, available_threads()
    flipped = b.shape[1] > 1 and b.strides[1] != size
    a_row, a_column = (step // size if length > 1 else 1 for step, length in zip(a.strides, a.shape, strict=True))
    line = 64 // size
    work = 2 * m * (-(-n // line) * line) * k >= MANY_FLOPS or k * n * size >= MANY_BYTES
    shared = work and (n >= line * threads or (m >= threads and totals is None))
    by_columns = totals is not None or n >= 4 * line * threads
    pool().reserve(gemm.space(n, k, size), threads)
    words = (
        *(m, n, k),
        *(address(a), a_row, a_column),
        *(address(b), row_distance(b.T) if flipped else row_distance(b), flipped),
        *((0, 0) if out is None else (address(out), row_distance(out))),
        accumulate,
        *((0, 0) if tile is None else (tile.kernel, address(tile.arguments))),
        address(pool().space),
        by_columns,
        0 if totals is None else address(totals),
    )
    arguments = np.array(words, np.int64)
    return [Instruction(compiled_kernel(gemm, "gemm", dtype), arguments, shared, (a, b, out, tile, totals))]


def share(tile: Tile, z: Array, *, totals: Array | None = None, when: Array | None = None) -> list[Instruction]:
    """The tile kernel over the matrix `z`; `totals` as in `product`, `when` as in `Backend.map`."""
    height, width = z.shape
    line, threads = 64 // z.itemsize, available_threads()
    by_columns = totals is not None or height < threads
    shared = z.size >= MANY_ELEMENTS and (not by_columns or width >= line * threads)
    words = (
        *(tile.kernel, address(tile.arguments)),
        *(address(z), row_distance(z), height, width, by_columns),
        0 if totals is None else address(totals),
        0 if when is None else address(when),
    )
    arguments = np.array(words, np.int64)
    return [Instruction(compiled_kernel(spread, "spread", z.dtype), arguments, shared, (tile, z, totals, when))]


def chunks(kernel: int, words: Array, count: int, chunk: int, shared: bool, keeps: tuple[Any, ...]) -> Instruction:
    """A row kernel over `count` rows in chunks of `chunk`."""
    arguments = np.array((kernel, address(words), count, chunk), np.int64)
    return Instruction(compiled_kernel(spread, "rows", FLOATS[0]), arguments, shared, (words, *keeps))


def total(module: ModuleType, name: str, x: Array, out: Array) -> list[Instruction]:
    """The sum that kernel `name` of `module` makes of each chunk of a vector, all chunks added into `out`."""
    parts = np.empty(-(-x.size // sums.CHUNK))
    words = np.array((address(x), address(parts)), np.int64)
    shared = x.size >= MANY_ELEMENTS
    return [
        chunks(compiled_kernel(module, name, x.dtype, 4), words, x.size, sums.CHUNK, shared, (x,)),
        finish(parts, out),
    ]


def finish(parts: Array, out: Array) -> Instruction:
    """The sum of `parts` into `out`."""
    arguments = np.array((address(parts), parts.size, address(out)), np.int64)
    return Instruction(compiled_kernel(sums, "finish", out.dtype), arguments, False, (parts, out))
