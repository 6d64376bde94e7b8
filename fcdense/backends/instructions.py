"""From primitive calls to instructions: kernels of `fcdense.kernels.numba`, and addresses for arguments.

Each public function serves one primitive: it returns the instructions that do the call's work, or None where NumPy has
to do it (numbers that are neither float32 nor float64, strides that the kernels do not know, nothing to do).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from fcdense import loops
from fcdense.activation import Activation
from fcdense.arena import Array
from fcdense.backends.base import Mode
from fcdense.backends.cpu import chain, epilogue, weighted
from fcdense.backends.fusion import Update
from fcdense.kernels.numba import compiled, gemm, rows, spread, sums
from fcdense.kernels.numba.pool import address, available_threads, pool
from fcdense.log import logger
from fcdense.program import Program, trace

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
MANY_FLOPS = 1_000_000
"""From here on a product is shared among the threads: it takes 5 us on one of them, their meeting 0.5 us."""
MANY_BYTES = 256 * 1024
"""The same for the matrix that it reads, of which a product of few rows is a pass."""
MANY_ELEMENTS = 32_768
"""The same for passes over memory, about 3 us."""
XENT_ROWS = 64
"""Rows of one chunk of the cross entropy, whose loss is summed up by chunks."""

SAME = trace(lambda x: x, 1, name="same")
SUM = trace(lambda x, y: x + y, 2, name="sum")


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


Instructions = list[Instruction] | None


def dense(
    x_bi: Array, w_io: Array, b_o: Array | None, act: Activation, *, out: Array, aux: Array | None = None
) -> Instructions:
    """Product, then f(z + b) in place and f' beside it."""
    operands = (x_bi, w_io, out, *(a for a in (b_o, aux) if a is not None))
    if not _served(operands):
        return None
    tile = None
    if b_o is not None or aux is not None or not act.is_linear:
        program = epilogue(act, b_o is not None, aux is not None)
        bias = () if b_o is None else ((b_o, "r"),)
        tile = _tile(program, out.dtype, bias, (None,) if aux is None else (None, aux))
    return _product(x_bi, w_io, out, tile=tile)


def dense_grad_input(
    dz_bo: Array,
    w_io: Array,
    act: Activation,
    aux_bi: Array | None,
    *,
    out: Array,
    db: Array | None = None,
    mode: Mode = "overwrite",
) -> Instructions:
    """Product with the transposed kernel, then times f' with its column sums."""
    if not _served([a for a in (dz_bo, w_io, out, aux_bi, db) if a is not None]):
        return None
    totals, added = _column_sums(db, mode)
    tile = None
    if db is not None or not act.is_linear:
        tile = _gradient_tile(act, aux_bi, out.dtype, None, totals)
    return [*_product(dz_bo, w_io.T, out, tile=tile, totals=totals), *added]


def dense_grad_weight(x_bi: Array, dz_bo: Array, *, out: Array, mode: Mode = "overwrite") -> Instructions:
    """Product of the transposed input."""
    if not _served((x_bi, dz_bo, out)):
        return None
    return _product(x_bi.T, dz_bo, out, accumulate=mode == "accumulate")


def updated_weight(x_bi: Array, dz_bo: Array, update: Update) -> Instructions:
    """`fusion.consume_gradients`."""
    weight = update.arrays[update.outputs[0]]
    operands = [(array, "m") for array in update.arrays]
    tile = _tile(update.program, weight.dtype, operands, [update.arrays[i] for i in update.outputs], update.scalars)
    return _product(x_bi.T, dz_bo, None, tile=tile, shape=weight.shape)


def act_grad(
    dy_bo: Array,
    aux_bo: Array | None,
    act: Activation,
    *,
    out: Array,
    db: Array | None = None,
    mode: Mode = "overwrite",
) -> Instructions:
    """dy * f' and its column sums."""
    if not _served([a for a in (dy_bo, aux_bo, out, db) if a is not None]):
        return None
    totals, added = _column_sums(db, mode)
    return [*_spread(_gradient_tile(act, aux_bo, out.dtype, out, totals), dy_bo, totals=totals), *added]


def map(
    program: Program,
    inputs: Sequence[Array],
    scalars: Sequence[float] | Array = (),
    *,
    out: Sequence[Array],
    when: Array | None = None,
) -> Instructions:
    """An elementwise program over arrays of one shape, rows, columns and single elements."""
    shape, dtype = out[0].shape, out[0].dtype
    arrays = [*inputs, *out]
    if dtype not in FLOATS or any(a.dtype != dtype or not a.flags.aligned for a in arrays) or not out[0].size:
        return None
    given = [scalars] if isinstance(scalars, np.ndarray) else []
    if not loops.supports(program, dtype) or not all(a.flags.c_contiguous for a in (*out, *given)):
        return None
    whole = [a.shape == shape for a in inputs]
    if all(full or a.size == 1 for a, full in zip(inputs, whole, strict=True)):
        flat = all(a.flags.c_contiguous for a in inputs)
        views = [a.reshape(1, -1) for a in arrays] if flat else None
        patterns = ["m" if full else "s" for full in whole]
    else:
        views, patterns = _matrices(arrays, len(inputs), shape)
    if views is None or not inputs:
        return None
    order = sorted(range(len(inputs)), key=lambda i: patterns[i] != "m")
    if patterns[order[0]] != "m":
        if out[0].size != 1:
            return None
        patterns[order[0]] = "m"
    operands = [(views[i], patterns[i]) for i in order[1:]]
    tile = _tile(program.reordered(order), dtype, operands, views[len(inputs) :], scalars)
    return _spread(tile, views[order[0]], when=when)


def softmax_xent(
    z_bk: Array,
    target: Array,
    weight_b: Array | None,
    scale: float,
    *,
    loss: Array,
    dz: Array | None = None,
) -> Instructions:
    """Rows in chunks, then the sum of the chunks' losses."""
    given = [a for a in (z_bk, weight_b, loss, dz) if a is not None]
    if not _served(given) or not target.flags.c_contiguous or not target.flags.aligned:
        return None
    if target.ndim == 2 and target.dtype != z_bk.dtype:
        return None
    count = z_bk.shape[0]
    parts = np.empty(-(-count // XENT_ROWS))
    words = np.zeros(10, np.int64)
    words[:] = (
        *(address(z_bk), _row(z_bk), z_bk.shape[1]),
        *(address(target), _row(target) if target.ndim == 2 else 0),
        *(0 if weight_b is None else address(weight_b), 0, address(parts)),
        *((0, 0) if dz is None else (address(dz), _row(dz))),
    )
    words.view(np.float64)[6] = scale
    keeps = (z_bk, target, weight_b, loss, dz)
    shared = z_bk.size >= MANY_ELEMENTS // 4
    kernel = _kernel(rows, "softmax_xent", z_bk.dtype, 4)
    return [_rows(kernel, words, count, XENT_ROWS, shared, keeps), _finish(parts, loss)]


def elementwise_loss(
    program: Program,
    prediction: Array,
    target: Array,
    weight: Array | None,
    scale: float,
    scalars: Sequence[float] = (),
    *,
    loss: Array,
    dz: Array | None = None,
) -> Instructions:
    """Values and slopes in one pass, then the sum of the values."""
    values = np.empty(prediction.shape, prediction.dtype)
    slopes = np.empty(prediction.shape, prediction.dtype) if dz is None else dz
    factor = np.ones((), prediction.dtype) if weight is None else weight
    outs = (values, slopes)
    passed = map(weighted(program), (prediction, target, factor), (*scalars, scale), out=outs)
    return None if passed is None or not _served((loss,)) else [*passed, *_total(sums, "total", values, loss)]


def norm2(x: Array, *, out: Array) -> Instructions:
    """Squares in float64."""
    return _total(rows, "norm2", x, out) if _served((x,)) and x.flags.c_contiguous else None


def _served(arrays: Sequence[Array]) -> bool:
    """Whether the kernels know these arrays: one dtype of theirs, aligned, not empty, rows contiguous."""
    dtype = arrays[0].dtype
    return dtype in FLOATS and all(
        a.dtype == dtype
        and a.size
        and a.flags.aligned
        and (a.ndim == 0 or a.shape[-1] == 1 or a.strides[-1] == a.itemsize)
        for a in arrays
    )


def _row(matrix: Array) -> int:
    """Distance of the rows in elements; that of a vector, or a single row, is its length."""
    if matrix.ndim == 0:
        return 1
    distance: int = (
        matrix.shape[-1] if matrix.ndim == 1 or matrix.shape[0] == 1 else matrix.strides[0] // matrix.itemsize
    )
    return distance


@cache
def _kernel(module: ModuleType, name: str, dtype: np.dtype[Any], arguments: int = 3) -> int:
    """The address of an instruction kernel (of 3 arguments) or row kernel (of 4), compiled or read from the cache."""
    return _load(compiled.call_source(module.__name__, name, dtype, arguments))


@cache
def _tile_kernel(program: Program, dtype: np.dtype[Any], patterns: str, summed: bool) -> int:
    return _load(loops.tile_source(program, dtype, patterns, sums=summed))


def _load(source: str) -> int:
    folder = Path(os.environ.get("FCDENSE_CACHE") or "~/.cache/fcdense").expanduser() / "numba"
    return int(compiled.load(source, folder, logger.warning).address)


class _Tile(NamedTuple):
    kernel: int
    arguments: Array
    keeps: tuple[Any, ...]


def _tile(
    program: Program,
    dtype: np.dtype[Any],
    operands: Sequence[tuple[Array, str]],
    outs: Sequence[Array | None],
    scalars: Any = (),
    summed: Array | None = None,
) -> _Tile:
    """A tile kernel with its arguments; operand 0 and an output None are the matrix that it is called for."""
    words: list[int] = []
    for array, pattern in operands:
        words += (
            address(array),
            _row(array) if pattern == "m" else int(array.strides[0]) // array.itemsize if pattern == "c" else 0,
        )
    for out in outs:
        words += (0, 0) if out is None else (address(out), _row(out))
    values = scalars if isinstance(scalars, np.ndarray) else np.array(scalars, np.float64)
    words.append(address(values))
    if summed is not None:
        words.append(address(summed))
    kernel = _tile_kernel(program, dtype, "".join(pattern for _, pattern in operands), summed is not None)
    return _Tile(kernel, np.array(words, np.int64), (operands, outs, values, summed))


def _gradient_tile(
    act: Activation, aux: Array | None, dtype: np.dtype[Any], out: Array | None, db: Array | None
) -> _Tile:
    program = SAME if act.is_linear else chain(act)
    return _tile(program, dtype, () if aux is None or act.is_linear else ((aux, "m"),), (out,), summed=db)


def _column_sums(db: Array | None, mode: Mode) -> tuple[Array | None, list[Instruction]]:
    """Where the column totals go, and what adds them to `db` if it is not there."""
    if db is None or mode == "overwrite":
        return db, []
    totals = np.empty(db.shape, db.dtype)
    return totals, map(SUM, (db, totals), out=(db,)) or []


def _product(
    a: Array,
    b: Array,
    out: Array | None,
    *,
    tile: _Tile | None = None,
    accumulate: bool = False,
    totals: Array | None = None,
    shape: tuple[int, ...] = (),
) -> list[Instruction]:
    m, n = shape if out is None else out.shape
    k = a.shape[1]
    dtype = a.dtype
    size, threads = dtype.itemsize, available_threads()
    flipped = b.shape[1] > 1 and b.strides[1] != size
    a_row, a_column = (step // size if length > 1 else 1 for step, length in zip(a.strides, a.shape, strict=True))
    line = 64 // size
    work = 2 * m * n * k >= MANY_FLOPS or k * n * size >= MANY_BYTES
    shared = work and (n >= line * threads or (m >= threads and totals is None))
    by_columns = totals is not None or n >= 4 * line * threads
    pool().reserve(gemm.space(n, k, size), threads)
    words = (
        *(m, n, k),
        *(address(a), a_row, a_column),
        *(address(b), _row(b.T) if flipped else _row(b), flipped),
        *((0, 0) if out is None else (address(out), _row(out))),
        accumulate,
        *((0, 0) if tile is None else (tile.kernel, address(tile.arguments))),
        address(pool().space),
        by_columns,
        0 if totals is None else address(totals),
    )
    arguments = np.array(words, np.int64)
    return [Instruction(_kernel(gemm, "gemm", dtype), arguments, shared, (a, b, out, tile, totals))]


def _spread(tile: _Tile, z: Array, *, totals: Array | None = None, when: Array | None = None) -> list[Instruction]:
    height, width = z.shape
    line, threads = 64 // z.itemsize, available_threads()
    by_columns = totals is not None or height < threads
    shared = z.size >= MANY_ELEMENTS and (not by_columns or width >= line * threads)
    words = (
        *(tile.kernel, address(tile.arguments)),
        *(address(z), _row(z), height, width, by_columns),
        0 if totals is None else address(totals),
        0 if when is None else address(when),
    )
    arguments = np.array(words, np.int64)
    return [Instruction(_kernel(spread, "spread", z.dtype), arguments, shared, (tile, z, totals, when))]


def _rows(kernel: int, words: Array, count: int, chunk: int, shared: bool, keeps: tuple[Any, ...]) -> Instruction:
    arguments = np.array((kernel, address(words), count, chunk), np.int64)
    return Instruction(_kernel(spread, "rows", FLOATS[0]), arguments, shared, (words, *keeps))


def _total(module: ModuleType, name: str, x: Array, out: Array) -> list[Instruction]:
    parts = np.empty(-(-x.size // sums.CHUNK))
    words = np.array((address(x), address(parts)), np.int64)
    shared = x.size >= MANY_ELEMENTS
    return [_rows(_kernel(module, name, x.dtype, 4), words, x.size, sums.CHUNK, shared, (x,)), _finish(parts, out)]


def _finish(parts: Array, out: Array) -> Instruction:
    arguments = np.array((address(parts), parts.size, address(out)), np.int64)
    return Instruction(_kernel(sums, "finish", out.dtype), arguments, False, (parts, out))


def _matrices(arrays: Sequence[Array], n_inputs: int, shape: tuple[int, ...]) -> tuple[list[Array] | None, list[str]]:
    """All arrays as matrices, inputs that broadcast as rows and columns; None where they are something else."""
    if not shape:
        return None, []
    columns = shape[-1]
    count = int(np.prod(shape[:-1], dtype=int))
    views: list[Array] = []
    patterns: list[str] = []
    for i, a in enumerate(arrays):
        if not a.flags.c_contiguous:
            return None, []
        if a.shape == shape:
            views.append(a.reshape(count, columns))
            patterns.append("m")
        elif i < n_inputs and a.size == 1:
            views.append(a.reshape(1))
            patterns.append("s")
        elif i < n_inputs and a.size == columns == a.shape[-1]:
            views.append(a.reshape(columns))
            patterns.append("r")
        elif i < n_inputs and a.shape == (*shape[:-1], 1):
            views.append(a.reshape(count))
            patterns.append("c")
        else:
            return None, []
    return views, patterns
