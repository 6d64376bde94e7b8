"""Kernels over whole rows, and those that are no elementwise program: softmax, cross entropy, norms, dropout, gathers.

`compiled.call_source` makes a module of one of them; nothing is compiled by importing this file.
Each is a C function `kernel(args, start, stop, part)`: `args` is the address of the int64 words that its docstring
lists, `start` .. `stop` - 1 the rows (or columns, or elements) to do, `part` the place of its partial results. Strides
count elements. Words called "float64" hold the bits of one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fcdense.kernels.numba import vector_math
from fcdense.kernels.numba.atomics import fetch_add
from fcdense.kernels.numba.columns import map_columns, max_columns, sum_columns
from fcdense.kernels.numba.compiled import jitted
from fcdense.kernels.numba.memory import load, number, offset, store, word

compiled = jitted(fastmath={"contract"})
"""A product and a sum may share a rounding."""


# ---- elements --------------------------------------------------------------------------------------------------------


@compiled
def _itself(x: Any) -> Any:
    return x


@compiled
def _sum(x: Any, y: Any) -> Any:
    return x + y


@compiled
def _ratio(x: Any, total: Any) -> Any:
    return x / total


@compiled
def _scaled(x: Any, factor: Any) -> Any:
    return x * factor


@compiled
def _wide_square(x: Any) -> Any:
    return np.float64(x) * np.float64(x)


@compiled
def _exp_below(z: Any, largest: Any) -> Any:
    return vector_math.exp(z - largest)


@compiled
def _log_ratio(z: Any, largest: Any, log_total: Any) -> Any:
    return (z - largest) - log_total


@compiled
def _picked(t: Any, z: Any, largest: Any) -> Any:
    return vector_math.select(t == t - t, t, t * (z - largest))


@compiled
def _slope(e: Any, t: Any, factor: Any, weight: Any) -> Any:
    return e * factor - t * weight


@compiled
def _entropy(total: Any, mass: Any, picked: Any) -> Any:
    return vector_math.log(total) * mass - picked


# ---- rows of logits --------------------------------------------------------------------------------------------------


@compiled
def softmax(args: int, start: int, stop: int, part: int, real: Any) -> None:
    """out_k = exp(z_k - m) / sum_j exp(z_j - m), m the largest of its row. `out` may be `z`.

    Words: z, row stride, classes, out, row stride. A row that is -inf everywhere, or has NaN or +inf, becomes NaN.
    """
    z, z_stride, classes, out, out_stride = word(args, 0), word(args, 1), word(args, 2), word(args, 3), word(args, 4)
    for r in range(start, stop):
        logits, row = offset(real, z, r * z_stride), offset(real, out, r * out_stride)
        largest = max_columns(_itself, real, classes, (logits,), ())
        total = sum_columns(_exp_below, real, classes, (logits,), (largest,), (row,))
        map_columns(_ratio, real, classes, (row,), (total,), (row,), ())


@compiled
def log_softmax(args: int, start: int, stop: int, part: int, real: Any) -> None:
    """out_k = z_k - m - log sum_j exp(z_j - m). The words, and NaN, are those of `softmax`."""
    z, z_stride, classes, out, out_stride = word(args, 0), word(args, 1), word(args, 2), word(args, 3), word(args, 4)
    for r in range(start, stop):
        logits, row = offset(real, z, r * z_stride), offset(real, out, r * out_stride)
        largest = max_columns(_itself, real, classes, (logits,), ())
        total = sum_columns(_exp_below, real, classes, (logits,), (largest,), ())
        map_columns(_log_ratio, real, classes, (logits,), (largest, vector_math.log(total)), (row,), ())


@compiled
def softmax_xent(args: int, start: int, stop: int, part: int, real: Any) -> None:
    """Cross entropy after softmax, and its gradient::

        loss[part] = scale * sum_b weight_b * sum_k t_bk * (logsumexp(z_b) - z_bk)       over rows start .. stop - 1
        dz_bk = scale * weight_b * (softmax(z_b)_k * sum_j t_bj - t_bk)

    Words: z, row stride, classes, target, row stride, weight, scale (float64), loss (float64 array), dz, row stride,
    scratch memory (4 float64 for each row of z), rows of z. The target's row stride is 0 if it holds class numbers
    (int64). `weight` and `dz` are 0 where there are none; `dz` may be `z`. Sums over rows run in float64. A term with
    t_bk = 0 contributes 0. A class number that does not exist makes the loss, and its row of dz, NaN.

    The passes are separate, so that the processor works at several rows of few classes at a time.
    """
    z, z_stride, classes = word(args, 0), word(args, 1), word(args, 2)
    target, target_stride, weights, scale = word(args, 3), word(args, 4), word(args, 5), number(args, 6)
    dz, dz_stride, count = word(args, 8), word(args, 9), word(args, 11)
    totals = word(args, 10)
    masses = offset(np.float64, totals, count)
    picks = offset(np.float64, masses, count)
    factors = offset(np.float64, picks, count)
    for r in range(start, stop):
        largest = max_columns(_itself, real, classes, (offset(real, z, r * z_stride),), ())
        store(np.float64, totals, r, np.float64(largest))
    for r in range(start, stop):
        logits, row = offset(real, z, r * z_stride), offset(real, dz, r * dz_stride)
        top = real(load(np.float64, totals, r))
        mass, picked = 1.0, math.nan
        if target_stride == 0:
            wanted = load(np.int64, target, r)
            if 0 <= wanted < classes:
                picked = np.float64(load(real, logits, wanted) - top)
        else:
            goal = offset(real, target, r * target_stride)
            mass = np.float64(sum_columns(_itself, real, classes, (goal,), (), ()))
            picked = np.float64(sum_columns(_picked, real, classes, (goal, logits), (top,), ()))
        if dz == 0:
            total = np.float64(sum_columns(_exp_below, real, classes, (logits,), (top,), ()))
        else:
            total = np.float64(sum_columns(_exp_below, real, classes, (logits,), (top,), (row,)))
        weight = 1.0 if weights == 0 else np.float64(load(real, weights, r))
        store(np.float64, factors, r, scale * weight * mass / total)
        if mass == 0.0:
            total, picked = np.float64(1.0), 0.0
        store(np.float64, totals, r, total)
        store(np.float64, masses, r, weight * mass)
        store(np.float64, picks, r, weight * picked)
    for r in range(start, stop if dz != 0 else start):
        row = offset(real, dz, r * dz_stride)
        factor = real(load(np.float64, factors, r))
        weight = real(scale if weights == 0 else scale * np.float64(load(real, weights, r)))
        if target_stride != 0:
            goal = offset(real, target, r * target_stride)
            map_columns(_slope, real, classes, (row, goal), (factor, weight), (row,), ())
            continue
        wanted = load(np.int64, target, r)
        if 0 <= wanted < classes:
            map_columns(_scaled, real, classes, (row,), (factor,), (row,), ())
            store(real, row, wanted, load(real, row, wanted) - weight)
        else:
            map_columns(_scaled, real, classes, (row,), (real(math.nan),), (row,), ())
    some = (offset(np.float64, totals, start), offset(np.float64, masses, start), offset(np.float64, picks, start))
    loss = sum_columns(_entropy, np.float64, stop - start, some, (), ())
    store(np.float64, word(args, 7), part, scale * loss)


# ---- sums and copies -------------------------------------------------------------------------------------------------


@compiled
def norm2(args: int, start: int, stop: int, part: int, real: Any) -> None:
    """total[part] = sum of the squares of elements start .. stop - 1, in float64.

    Words: x (contiguous), total (float64 array).
    """
    squares = sum_columns(_wide_square, real, stop - start, (offset(real, word(args, 0), start),), (), ())
    store(np.float64, word(args, 1), part, squares)


@compiled
def take_rows(args: int, start: int, stop: int, part: int, real: Any) -> None:
    """out[k] = x[order[round * count + k]] for rows start .. stop - 1 of out.

    Words: x (contiguous), columns, order (int64, in range), address of the round's number, count, out (contiguous).
    """
    x, columns, order, out = word(args, 0), word(args, 1), word(args, 2), word(args, 5)
    first = load(np.int64, word(args, 3), 0) * word(args, 4)
    for k in range(start, stop):
        row = offset(real, x, load(np.int64, order, first + k) * columns)
        map_columns(_itself, real, columns, (row,), (), (offset(real, out, k * columns),), ())


@compiled
def keep(args: int, start: int, stop: int, part: int, real: Any) -> None:
    """out[round] = x, for elements start .. stop - 1 of x.

    Words: x (contiguous), size of x, address of the round's number, out (contiguous).
    """
    first = load(np.int64, word(args, 2), 0) * word(args, 1) + start
    source, target = offset(real, word(args, 0), start), offset(real, word(args, 3), first)
    map_columns(_itself, real, stop - start, (source,), (), (target,), ())


@compiled
def next_round(args: int, share: int, shares: int, thread: int, real: Any) -> None:
    """round += 1. Words: address of the round's number."""
    store(np.int64, word(args, 0), 0, load(np.int64, word(args, 0), 0) + 1)


# ---- dropout ---------------------------------------------------------------------------------------------------------


@compiled
def next_stream(args: int, share: int, shares: int, thread: int, real: Any) -> None:
    """out = state, then state[1] += 1, in one piece. Words: state, out (uint64 of two words)."""
    state, out = word(args, 0), word(args, 1)
    store(np.int64, out, 0, load(np.int64, state, 0))
    store(np.int64, out, 1, fetch_add(state, 1, 1))


_MULTIPLIERS = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_WEYL = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)


@intrinsic
def _high_product(typing_context: Any, a: Any, b: Any) -> Any:
    """The upper 64 bits of the product of two uint64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(*(builder.zext(v, wide) for v in args))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), generate


@compiled
def _philox(block: int, key: Any, counter: Any) -> tuple[Any, Any, Any, Any]:
    """Four random uint64: Philox4x64-10 at position `block`."""
    a, b, c, d = np.uint64(block), np.uint64(0), np.uint64(0), np.uint64(0)
    for _ in range(10):
        a, b, c, d = (
            _high_product(_MULTIPLIERS[1], c) ^ b ^ key,
            _MULTIPLIERS[1] * c,
            _high_product(_MULTIPLIERS[0], a) ^ d ^ counter,
            _MULTIPLIERS[0] * a,
        )
        key += _WEYL[0]
        counter += _WEYL[1]
    return a, b, c, d


@compiled
def _kept(half: Any, limit: Any, scale: Any) -> Any:
    """What an element is multiplied with, from the uint32 in the lower bits of `half`; NumPy uses its upper 24."""
    uniform = np.float32(np.int32((half >> np.uint64(8)) & np.uint64(0xFFFFFF))) * np.float32(2.0**-24)
    return vector_math.select(uniform >= limit, scale, scale - scale)


@compiled
def _keep_two(x: int, out: int, i: int, bits: Any, limit: Any, scale: Any, real: Any) -> None:
    store(real, out, i, load(real, x, i) * _kept(bits, limit, scale))
    store(real, out, i + 1, load(real, x, i + 1) * _kept(bits >> np.uint64(32), limit, scale))


@compiled
def dropout(args: int, start: int, stop: int, part: int, real: Any) -> None:
    """out_i = x_i / (1 - rate) where u_i >= rate, else 0 x_i, for elements start .. stop - 1. `out` may be `x`.

    u is what ``numpy.random.Generator(numpy.random.Philox(key=(counter << 64) | key)).random(dtype=numpy.float32)``
    draws: element i has half i % 2 of number i % 8 // 2 of block i // 8 + 1, whichever elements are asked for.

    Words: x (contiguous), out (contiguous), address of uint64 (key, counter), rate (float64).

    Source: J. Salmon, M. Moraes, R. Dror, D. Shaw (2011), Parallel random numbers: as easy as 1, 2, 3, SC.
    """
    x, out, keys, rate = word(args, 0), word(args, 1), word(args, 2), number(args, 3)
    key, counter = load(np.uint64, keys, 0), load(np.uint64, keys, 1)
    limit, scale = np.float32(rate), real(1.0 / (1.0 - rate))
    for block in range(start // 8, (stop + 7) // 8):
        a, b, c, d = _philox(block + 1, key, counter)
        i = 8 * block
        if start <= i and i + 8 <= stop:
            _keep_two(x, out, i, a, limit, scale, real)
            _keep_two(x, out, i + 2, b, limit, scale, real)
            _keep_two(x, out, i + 4, c, limit, scale, real)
            _keep_two(x, out, i + 6, d, limit, scale, real)
        else:
            for j in range(max(start - i, 0), min(stop - i, 8)):
                bits = (a, b, c, d)[j // 2] >> np.uint64(32 * (j % 2))
                store(real, out, i + j, load(real, x, i + j) * _kept(bits, limit, scale))
