"""The reference backend: every primitive as its formula reads, in float64, one rounding into the result.

It is the oracle of the contract suite, and a whole backend: a network can be trained on it. Nothing here is fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fcdense.activation import Activation
from fcdense.arena import Array, host_empty, host_zeros
from fcdense.backends.base import Backend, Mode, Reduction, draw_stream, uniform_stream
from fcdense.expression import evaluate
from fcdense.program import Program


def f64(array: Array) -> Array:
    """A float64 copy: whatever is aliased or narrow stops being so."""
    return np.array(array, dtype=np.float64)


def write(out: Array, value: Array, mode: Mode = "overwrite") -> None:
    """Round `value` into `out`, once."""
    with np.errstate(over="ignore"):
        out[...] = value if mode == "overwrite" else f64(out) + value


def factor(act: Activation, aux: Array | None) -> Array:
    """f' as `act.aux` lets it be read from `aux`."""
    if act.aux == "none":
        return evaluate(act.derivative.outputs, [np.zeros(())], [])[0]
    assert aux is not None
    if act.aux == "output":
        assert act.gradient_from_aux is not None
        return evaluate(act.gradient_from_aux.outputs, [f64(aux)], [])[0]
    return f64(aux)


def one_hot(target: Array, classes: int) -> Array:
    """A row for each class number: 1 at its place; NaN for a number that is no class."""
    rows = np.equal.outer(target, np.arange(classes)).astype(np.float64)
    rows[(target < 0) | (target >= classes)] = np.nan
    return rows


class ReferenceBackend(Backend):
    """float64 arithmetic over NumPy arrays of any float dtype."""

    name = "reference"

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return host_empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return host_zeros(shape, dtype)

    def from_host(self, array: np.ndarray[Any, Any]) -> Array:
        return array

    def to_host(self, array: Array) -> np.ndarray[Any, Any]:
        return np.asarray(array)

    def dense(
        self, x_bi: Array, w_io: Array, b_o: Array | None, act: Activation, *, out: Array, aux: Array | None = None
    ) -> None:
        z_bo = f64(x_bi) @ f64(w_io)
        if b_o is not None:
            z_bo = z_bo + f64(b_o)
        write(out, evaluate(act.program.outputs, [z_bo], [])[0])
        if aux is not None:
            write(aux, evaluate(act.derivative.outputs, [z_bo], [])[0])

    def dense_grad_input(
        self,
        dz_bo: Array,
        w_io: Array,
        act: Activation,
        aux_bi: Array | None,
        *,
        out: Array,
        db: Array | None = None,
        mode: Mode = "overwrite",
    ) -> None:
        dz_bi = (f64(dz_bo) @ f64(w_io).T) * factor(act, aux_bi)
        write(out, dz_bi)
        if db is not None:
            write(db, dz_bi.sum(axis=0), mode)

    def dense_grad_weight(self, x_bi: Array, dz_bo: Array, *, out: Array, mode: Mode = "overwrite") -> None:
        write(out, f64(x_bi).T @ f64(dz_bo), mode)

    def act_grad(
        self,
        dy_bo: Array,
        aux_bo: Array | None,
        act: Activation,
        *,
        out: Array | None,
        db: Array | None = None,
        mode: Mode = "overwrite",
    ) -> None:
        dz_bo = f64(dy_bo) * factor(act, aux_bo)
        if out is not None:
            write(out, dz_bo)
        if db is not None:
            write(db, dz_bo.sum(axis=0), mode)

    def softmax(self, z_bk: Array, *, out: Array, log: bool = False) -> None:
        with np.errstate(invalid="ignore"):
            shifted = f64(z_bk) - f64(z_bk).max(axis=1, keepdims=True)
        total = np.exp(shifted).sum(axis=1, keepdims=True)
        write(out, shifted - np.log(total) if log else np.exp(shifted) / total)

    def softmax_xent(
        self,
        z_bk: Array,
        target: Array,
        weight_b: Array | None,
        scale: float,
        *,
        loss: Array,
        dz: Array | None = None,
    ) -> None:
        z = f64(z_bk)
        t = one_hot(target, z.shape[1]) if target.ndim == 1 else f64(target)
        weight = np.ones(len(z)) if weight_b is None else f64(weight_b)
        with np.errstate(invalid="ignore"):
            shifted = z - z.max(axis=1, keepdims=True)
            total = np.exp(shifted).sum(axis=1, keepdims=True)
            terms = np.where(t == 0, 0.0, t * (np.log(total) - shifted))
        write(loss, scale * (weight * terms.sum(axis=1)).sum())
        if dz is not None:
            write(dz, scale * weight[:, None] * (np.exp(shifted) / total * t.sum(axis=1, keepdims=True) - t))

    def elementwise_loss(
        self,
        program: Program,
        prediction: Array,
        target: Array,
        weight: Array | None,
        scale: float,
        scalars: Sequence[float] = (),
        *,
        loss: Array,
        dz: Array | None = None,
    ) -> None:
        value, slope = evaluate(program.outputs, [f64(prediction), f64(target)], list(scalars))
        factors = np.broadcast_to(1.0 if weight is None else f64(weight), prediction.shape) * scale
        write(loss, (value * factors).sum())
        if dz is not None:
            write(dz, slope * factors)

    def map(
        self,
        program: Program,
        inputs: Sequence[Array],
        scalars: Sequence[float] | Array = (),
        *,
        out: Sequence[Array],
        when: Array | None = None,
    ) -> None:
        if when is not None and when == 0.0:
            return
        values = evaluate(program.outputs, [f64(x) for x in inputs], [float(s) for s in scalars])
        for target, value in zip(out, values, strict=True):
            write(target, value)

    def next_stream(self, state: Array, *, out: Array) -> None:
        draw_stream(state, out)

    def dropout(self, x: Array, rate: float, stream: Array, *, out: Array) -> None:
        uniform = uniform_stream(stream).random(x.shape, dtype=np.float32)
        write(out, np.where(uniform >= np.float32(rate), f64(x) / (1.0 - rate), 0.0 * f64(x)))

    def reduce(self, operation: Reduction, x: Array, axes: tuple[int, ...], *, out: Array) -> None:
        write(out, getattr(np, operation)(f64(x), axis=axes))

    def matmul(self, a: Array, b: Array, *, out: Array) -> None:
        write(out, f64(a) @ f64(b))

    def copy(self, x: Array, *, out: Array) -> None:
        with np.errstate(over="ignore"):
            out[...] = x.copy()

    def fill(self, value: float, *, out: Array) -> None:
        out[...] = value

    def gather_rows(self, x: Array, index: Array, *, out: Array) -> None:
        out[...] = x[index]

    def scatter_add_rows(self, x: Array, index: Array, *, out: Array) -> None:
        total = f64(out)
        np.add.at(total, index, f64(x))
        write(out, total)

    def norm2(self, x: Array, *, out: Array) -> None:
        write(out, np.square(f64(x)).sum())
