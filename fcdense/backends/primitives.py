"""From primitive calls to instructions.

Each public function serves one primitive: it returns the instructions that do the call's work, or None where NumPy has
to do it (numbers that are neither float32 nor float64, strides that the kernels do not know, nothing to do).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fcdense import loops
from fcdense.activation import Activation
from fcdense.arena import Array
from fcdense.backends.base import Mode
from fcdense.backends.fusion import Update
from fcdense.backends.instructions import (
    FLOATS,
    NO_TILE,
    Instruction,
    Tile,
    alternating,
    by_columns,
    chunks,
    column_sums,
    compiled_kernel,
    finish,
    product,
    row_distance,
    served,
    share,
    tile_of,
    total,
)
from fcdense.backends.programs import chain, epilogue, weighted
from fcdense.kernels.numba import gemm, rows, sums
from fcdense.kernels.numba.pool import address
from fcdense.kernels.numba.simd import VECTOR_BYTES
from fcdense.kernels.numba.spread import ROW_UNIT
from fcdense.program import Program, trace

MANY_LOGITS = 4096
"""Softmax, or the cross entropy, of so many costs 1: about 3 us."""

DROPOUT_CHUNK = 4096
"""Elements of one chunk of dropout, about 7 us."""

SAME = trace(lambda x: x, 1, name="same")
VALUE = trace(lambda x, value: value, 1, 1, name="value")
SUM = trace(lambda x, y: x + y, 2, name="sum")


Instructions = list[Instruction] | None


def dense(
    x_bi: Array, w_io: Array, b_o: Array | None, act: Activation, *, out: Array, aux: Array | None = None
) -> Instructions:
    """Product, then f(z + b) in place and f' beside it."""
    operands = (x_bi, w_io, out, *(a for a in (b_o, aux) if a is not None))
    if not served(operands):
        return None
    tile = NO_TILE
    if b_o is not None or aux is not None or not act.is_linear:
        program = epilogue(act, b_o is not None, aux is not None)
        bias = () if b_o is None else ((b_o, "r"),)
        tile = tile_of(program, out.dtype, bias, (None,) if aux is None else (None, aux))
    return product(x_bi, w_io, out, tile=tile)


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
    if not served([a for a in (dz_bo, w_io, out, aux_bi, db) if a is not None]):
        return None
    totals, added = _bias_gradient(db, mode)
    if not by_columns(out.shape, out.itemsize):
        tile = NO_TILE if act.is_linear else _gradient_tile(act, aux_bi, out.dtype, None, None)
        sums = [] if totals is None else column_sums(out, totals)
        return [*product(dz_bo, w_io.T, out, tile=tile), *sums, *added]
    tile = NO_TILE
    if db is not None or not act.is_linear:
        tile = _gradient_tile(act, aux_bi, out.dtype, None, totals)
    return [*product(dz_bo, w_io.T, out, tile=tile, totals=totals), *added]


def dense_grad_weight(x_bi: Array, dz_bo: Array, *, out: Array, mode: Mode = "overwrite") -> Instructions:
    """Product of the transposed input."""
    if not served((x_bi, dz_bo, out)):
        return None
    return product(x_bi.T, dz_bo, out, accumulate=mode == "accumulate")


def updated_weight(x_bi: Array, dz_bo: Array, update: Update) -> list[Instruction]:
    """`fusion.consume_gradients`."""
    weight = update.arrays[update.outputs[0]]
    operands = [(array, "m") for array in update.arrays]
    outs = [update.arrays[i] for i in update.outputs]
    if len(x_bi) == 1:  # each element of the gradient is a product of two numbers: no matrix of it is needed
        program = update.program.of_product(0).reordered([1, 0, *range(2, len(operands) + 2)])
        tile = tile_of(program, weight.dtype, [(x_bi[0], "c"), *operands[1:], (dz_bo[0], "r")], outs, update.scalars)
        return share(tile, update.arrays[0])
    tile = tile_of(update.program, weight.dtype, operands, outs, update.scalars)
    by_rows = dz_bo.nbytes <= gemm.WIDE  # long rows are worth more than what all threads pack of it
    return product(x_bi.T, dz_bo, None, tile=tile, shape=weight.shape, by_rows=by_rows)


def passed_weight(grad_input: Mapping[str, Any], updated: Mapping[str, Any]) -> list[Instruction]:
    """`fusion.join_passes`: rows of the kernel serve the input gradient, and are updated while they are near."""
    before, out = dense_grad_input(**grad_input) or [], grad_input["out"]
    features, line = out.shape[1], VECTOR_BYTES // out.itemsize
    units = -(-features // ROW_UNIT)
    # The product is cut in vectors of its columns, the update in units of the kernel's rows: the same places?
    alike = features >= 2 * ROW_UNIT and -(-features // line) == units * ROW_UNIT // line
    few = len(out) <= gemm.FEW_DOTS and grad_input["dz_bo"].nbytes <= gemm.NEAR
    if not alike or not few or not by_columns(out.shape, out.itemsize):
        return [*before, *updated_weight(**updated)]
    first, *rest = before
    return [alternating([first, *updated_weight(**updated)], units), *rest]


def act_grad(
    dy_bo: Array,
    aux_bo: Array | None,
    act: Activation,
    *,
    out: Array | None,
    db: Array | None = None,
    mode: Mode = "overwrite",
) -> Instructions:
    """dy * f' and its column sums."""
    if not served([a for a in (dy_bo, aux_bo, out, db) if a is not None]):
        return None
    totals, added = _bias_gradient(db, mode)
    if out is None:
        return None if totals is None else [*column_sums(dy_bo, totals), *added]
    if not by_columns(out.shape, out.itemsize):
        sums = [] if totals is None else column_sums(out, totals)
        return [*share(_gradient_tile(act, aux_bo, out.dtype, out, None), dy_bo), *sums, *added]
    return [*share(_gradient_tile(act, aux_bo, out.dtype, out, totals), dy_bo, totals=totals), *added]


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
    if views is None:
        return None
    if not inputs:  # numbers of scalars alone
        return share(tile_of(program, dtype, (), views, scalars), views[0], when=when)
    order = sorted(range(len(inputs)), key=lambda i: patterns[i] != "m")
    if patterns[order[0]] != "m":
        if out[0].size != 1:
            return None
        patterns[order[0]] = "m"
    operands = [(views[i], patterns[i]) for i in order[1:]]
    tile = tile_of(program.reordered(order), dtype, operands, views[len(inputs) :], scalars)
    return share(tile, views[order[0]], when=when)


def softmax(z_bk: Array, *, out: Array, log: bool = False) -> Instructions:
    """Rows in chunks."""
    if not served((z_bk, out)):
        return None
    words = (address(z_bk), row_distance(z_bk), z_bk.shape[1], address(out), row_distance(out))
    kernel = compiled_kernel(rows, "log_softmax" if log else "softmax", z_bk.dtype)
    given = np.array(words, np.int64)
    cost = z_bk.size / MANY_LOGITS
    return [chunks(kernel, given, z_bk.shape[0], ROW_UNIT, cost=cost, reads=(z_bk,), writes=(out,))]


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
    if not served(given) or not target.flags.c_contiguous or not target.flags.aligned:
        return None
    if target.ndim == 2 and target.dtype != z_bk.dtype:
        return None
    count = z_bk.shape[0]
    parts, scratch = np.empty(-(-count // ROW_UNIT)), np.empty(4 * count)
    words = np.zeros(12, np.int64)
    words[:] = (
        *(address(z_bk), row_distance(z_bk), z_bk.shape[1]),
        *(address(target), row_distance(target) if target.ndim == 2 else 0),
        *(0 if weight_b is None else address(weight_b), 0, address(parts)),
        *((0, 0) if dz is None else (address(dz), row_distance(dz))),
        *(address(scratch), count),
    )
    words.view(np.float64)[6] = scale
    reads = (z_bk, target) if weight_b is None else (z_bk, target, weight_b)
    writes = (scratch, parts) if dz is None else (scratch, parts, dz)
    kernel = compiled_kernel(rows, "softmax_xent", z_bk.dtype)
    cost = z_bk.size / MANY_LOGITS
    return [chunks(kernel, words, count, ROW_UNIT, cost=cost, reads=reads, writes=writes), finish(parts, loss)]


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
    return None if passed is None or not served((loss,)) else [*passed, *total(sums, "total", values, loss)]


def next_stream(state: Array, *, out: Array) -> Instructions:
    """One instruction, so that no two threads draw the same stream."""
    if not all(a.flags.c_contiguous and a.flags.aligned for a in (state, out)):
        return None
    words = np.array((address(state), address(out)), np.int64)
    return [Instruction(compiled_kernel(rows, "next_stream", FLOATS[0]), words, (state,), (state, out))]


def dropout(x: Array, rate: float, stream: Array, *, out: Array) -> Instructions:
    """Philox in blocks of 8 numbers, each element the one of its place."""
    flat = all(a.flags.c_contiguous for a in (x, out, stream))
    if not served((x, out)) or not flat or not stream.flags.aligned:
        return None
    words = np.array((address(x), address(out), address(stream), 0), np.int64)
    words.view(np.float64)[3] = rate
    kernel = compiled_kernel(rows, "dropout", x.dtype)
    cost = x.size / DROPOUT_CHUNK
    return [chunks(kernel, words, x.size, DROPOUT_CHUNK, cost=cost, reads=(x, stream), writes=(out,))]


def copy(x: Array, *, out: Array) -> Instructions:
    """Contiguous arrays of one dtype, and the one float32 that a step wants in float64."""
    if not served((x,)) or not served((out,)) or not (x.flags.c_contiguous and out.flags.c_contiguous):
        return None
    if x.dtype == out.dtype and x.shape == out.shape and not np.may_share_memory(x, out):
        return map(SAME, (x,), out=(out,))
    if x.size == out.size == 1 and out.dtype == FLOATS[1]:
        words = np.array((address(x), address(out)), np.int64)
        kernel = compiled_kernel(sums, "total", x.dtype)  # of one number
        return [chunks(kernel, words, 1, 1, cost=0.0, reads=(x,), writes=(out,))]
    return None


def fill(value: float, *, out: Array) -> Instructions:
    """A constant over one flat pass."""
    if not served((out,)) or not out.flags.c_contiguous:
        return None
    flat = out.reshape(1, -1)
    return share(tile_of(VALUE, out.dtype, (), (None,), (value,)), flat)


def norm2(x: Array, *, out: Array) -> Instructions:
    """Squares in float64."""
    return total(rows, "norm2", x, out) if served((x,)) and x.flags.c_contiguous else None


def _gradient_tile(
    act: Activation, aux: Array | None, dtype: np.dtype[Any], out: Array | None, db: Array | None
) -> Tile:
    program = SAME if act.is_linear else chain(act)
    return tile_of(program, dtype, () if aux is None or act.is_linear else ((aux, "m"),), (out,), summed=db)


def _bias_gradient(db: Array | None, mode: Mode) -> tuple[Array | None, list[Instruction]]:
    """Where the column totals go, and what adds them to `db` if it is not there."""
    if db is None or mode == "overwrite":
        return db, []
    totals = np.empty(db.shape, db.dtype)
    return totals, map(SUM, (db, totals), out=(db,)) or []


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
