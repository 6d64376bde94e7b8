"""Instructions: kernels of `fcdense.kernels.numba` with addresses for arguments, and how their work may be shared."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from fcdense import loops
from fcdense.arena import Array
from fcdense.kernels.numba import compiled, gemm, spread, sums
from fcdense.kernels.numba.pool import address, available_threads, pool
from fcdense.program import Program

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
MANY_FLOPS = 500_000
"""A product that costs 1: it takes 2.5 us on one thread, where the meeting of threads takes 0.5 us."""
MANY_BYTES = 256 * 1024
"""The same for the matrix that it reads, of which a product of few rows is a pass."""
MANY_ELEMENTS = 32_768
"""The same for passes over memory, about 3 us."""


class Instruction(NamedTuple):
    """A kernel with its arguments.

    Attributes
    ----------
    kernel : int
        Address of an instruction kernel.
    arguments : array of int64
        What it is given.
    reads, writes : tuple of Array
        The arrays that it uses.
    cost : float
        What is worth sharing costs 1 or more.
    is_divisible : bool
        Whether it can be shared among threads.
    rows : int
        Where shares are rows, in units of `spread.ROW_UNIT`: how many there are, else 0. Of arrays with so many, a
        share uses its own rows alone;
    whole : tuple of Array
        of these ones all.
    tables : tuple of array of int64
        What the kernels that it calls are given.
    """

    kernel: int
    arguments: Array
    reads: tuple[Array, ...]
    writes: tuple[Array, ...]
    cost: float = 0.0
    is_divisible: bool = False
    rows: int = 0
    whole: tuple[Array, ...] = ()
    tables: tuple[Array, ...] = ()


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
def compiled_kernel(module: ModuleType, name: str, dtype: np.dtype[Any]) -> int:
    """The address of an instruction kernel or a row kernel, compiled or read from the cache."""
    return int(compiled.load(compiled.call_source(module.__name__, name, dtype)).address)


@cache
def _tile_kernel(program: Program, dtype: np.dtype[Any], patterns: str, summed: bool) -> int:
    return int(compiled.load(loops.tile_source(program, dtype, patterns, sums=summed)).address)


class Tile(NamedTuple):
    """A tile kernel with its arguments."""

    kernel: int
    arguments: Array
    reads: tuple[Array, ...] = ()
    writes: tuple[Array, ...] = ()
    is_in_place: bool = False


NO_TILE = Tile(0, np.zeros(1, np.int64))


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
    reads = (*(array for array, _ in operands), values)
    writes = tuple(out for out in outs if out is not None)
    return Tile(kernel, np.array(words, np.int64), reads, writes, outs[0] is None)


def by_columns(shape: tuple[int, ...], size: int) -> bool:
    """Whether a product of this shape is shared by columns: then no thread packs what another one has."""
    m, n = shape
    line, threads = 64 // size, available_threads()
    return n >= 4 * line * threads or (m < 2 * spread.ROW_UNIT and n >= line * threads)


def product(
    a: Array,
    b: Array,
    out: Array | None,
    *,
    tile: Tile = NO_TILE,
    accumulate: bool = False,
    totals: Array | None = None,
    shape: tuple[int, ...] = (),
    by_rows: bool = False,
) -> list[Instruction]:
    """The product `a @ b` into `out`, or into scratch memory for `tile` to consume, of this `shape`.

    `totals` is set to 0 first; `tile` adds the column sums of its result to it. Only where shares are columns: see
    `by_columns`, unless told `by_rows`.
    """
    m, n = shape if out is None else out.shape
    k = a.shape[1]
    dtype = a.dtype
    size, threads = dtype.itemsize, available_threads()
    flipped = b.shape[1] > 1 and b.strides[1] != size
    a_row, a_column = (step // size if length > 1 else 1 for step, length in zip(a.strides, a.shape, strict=True))
    columns = not by_rows and by_columns((m, n), size)
    pool().reserve(gemm.space(n, k, size), threads)
    words = (
        *(m, n, k),
        *(address(a), a_row, a_column),
        *(address(b), row_distance(b.T) if flipped else row_distance(b), flipped),
        *((0, 0) if out is None else (address(out), row_distance(out))),
        accumulate,
        *(tile.kernel, address(tile.arguments)),
        address(pool().space),
        columns,
        0 if totals is None else address(totals),
    )
    line = 64 // size
    results = tuple(array for array in (out, totals) if array is not None)
    return [
        Instruction(
            compiled_kernel(gemm, "gemm", dtype),
            np.array(words, np.int64),
            (a, b, *tile.reads, *(results if accumulate else ())),
            (*results, *tile.writes),
            cost=max(2 * m * (-(-n // line) * line) * k / MANY_FLOPS, k * n * size / MANY_BYTES),
            is_divisible=columns or m >= 2 * spread.ROW_UNIT,
            rows=0 if columns else m,
            whole=(b,),
            tables=(tile.arguments,),
        )
    ]


def share(tile: Tile, z: Array, *, totals: Array | None = None, when: Array | None = None) -> list[Instruction]:
    """The tile kernel over the matrix `z`; `totals` as in `product`, `when` as in `Backend.map`."""
    height, width = z.shape
    columns = totals is not None or height < 2 * spread.ROW_UNIT
    words = (
        *(tile.kernel, address(tile.arguments)),
        *(address(z), row_distance(z), height, width, columns),
        0 if totals is None else address(totals),
        0 if when is None else address(when),
    )
    return [
        Instruction(
            compiled_kernel(spread, "spread", z.dtype),
            np.array(words, np.int64),
            (z, *tile.reads, *(() if when is None else (when,))),
            (*((z,) if tile.is_in_place else ()), *tile.writes, *(() if totals is None else (totals,))),
            cost=z.size / MANY_ELEMENTS,
            is_divisible=not columns or width >= 2 * 64 // z.itemsize,
            rows=0 if columns else height,
            tables=(tile.arguments,),
        )
    ]


def column_sums(x: Array, totals: Array) -> list[Instruction]:
    """The sums over the rows of `x`, in their order: what `totals` of `product` and `share` gives."""
    words = np.array((address(x), row_distance(x), *x.shape, address(totals)), np.int64)
    kernel = compiled_kernel(spread, "column_sums", x.dtype)
    divisible = x.shape[1] >= 2 * 64 // x.itemsize
    return [Instruction(kernel, words, (x,), (totals,), x.size / MANY_ELEMENTS, divisible)]


def alternating(instructions: Sequence[Instruction], units: int) -> Instruction:
    """The instructions in turn on each unit of their work; a unit of one must need that unit of those before alone."""
    steps = np.array([word for one in instructions for word in (one.kernel, address(one.arguments))], np.int64)
    return Instruction(
        compiled_kernel(spread, "alternate", FLOATS[0]),
        np.array((address(steps), len(instructions), units), np.int64),
        tuple(array for one in instructions for array in one.reads),
        tuple(array for one in instructions for array in one.writes),
        cost=sum(one.cost for one in instructions),
        is_divisible=units > 1,
        tables=(steps, *(table for one in instructions for table in (one.arguments, *one.tables))),
    )


def chunks(
    kernel: int,
    words: Array,
    count: int,
    chunk: int,
    *,
    cost: float,
    reads: tuple[Array, ...],
    writes: tuple[Array, ...],
) -> Instruction:
    """A row kernel over `count` rows in chunks of `chunk`."""
    arguments = np.array((kernel, address(words), count, chunk), np.int64)
    walk = compiled_kernel(spread, "rows", FLOATS[0])
    rows = count if chunk == spread.ROW_UNIT else 0
    return Instruction(walk, arguments, reads, writes, cost, count >= 2 * chunk, rows, tables=(words,))


def total(module: ModuleType, name: str, x: Array, out: Array) -> list[Instruction]:
    """The sum that kernel `name` of `module` makes of each chunk of a vector, all chunks added into `out`."""
    parts = np.empty(-(-x.size // sums.CHUNK))
    words = np.array((address(x), address(parts)), np.int64)
    cost = x.size / MANY_ELEMENTS
    kernel = compiled_kernel(module, name, x.dtype)
    return [
        chunks(kernel, words, x.size, sums.CHUNK, cost=cost, reads=(x,), writes=(parts,)),
        finish(parts, out),
    ]


def finish(parts: Array, out: Array) -> Instruction:
    """The sum of `parts` into `out`."""
    arguments = np.array((address(parts), parts.size, address(out)), np.int64)
    return Instruction(compiled_kernel(sums, "finish", out.dtype), arguments, (parts,), (out,))
