"""The CPU backend: BLAS for the products, vectorized NumPy for everything around them, nothing allocated.

Passes over memory run in blocks that stay in the L2 cache (`fcdense.emit`). Temporary arrays come from the workspace.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from fcdense import emit
from fcdense.activation import Activation
from fcdense.arena import Array, host_empty, host_zeros
from fcdense.backends.base import Backend, Mode, Reduction, draw_stream, uniform_stream
from fcdense.expression import Expr
from fcdense.program import Program, trace


@cache
def epilogue(act: Activation, has_bias: bool, with_derivative: bool) -> Program:
    """What follows the product: (z, b) -> f(z + b), and f'(z + b) where asked."""

    def function(z: Expr, *bias: Expr) -> tuple[Expr, ...]:
        pre_activation = z + bias[0] if has_bias else z
        value = act.program(pre_activation)
        return (*value, *act.derivative(pre_activation)) if with_derivative else value

    return trace(function, 2 if has_bias else 1, name=f"{act.name}_epilogue")


@cache
def chain(act: Activation) -> Program:
    """(dy, aux) -> dy * f'."""
    if act.aux == "output":
        assert act.gradient_from_aux is not None
        factor = act.gradient_from_aux
        return trace(lambda dy, y: dy * factor(y)[0], 2, name=f"{act.name}_grad")
    if act.aux == "derivative":
        return trace(lambda dy, slope: dy * slope, 2, name="act_grad")
    slope = act.derivative
    return trace(lambda dy: dy * slope(dy)[0], 1, name=f"{act.name}_grad")


@cache
def weighted(program: Program) -> Program:
    """(p, t, weight; ..., scale) -> (scale * weight * l, scale * weight * dl/dp)."""

    def function(p: Expr, t: Expr, weight: Expr, *scalars: Expr) -> tuple[Expr, Expr]:
        value, slope = program(p, t, *scalars[:-1])
        factor = weight * scalars[-1]
        return value * factor, slope * factor

    return trace(function, 3, program.n_scalars + 1, name=f"weighted_{program.name}")


PRODUCT = trace(lambda t, z: np.where(t == 0.0, 0.0, t * z), 2, name="product")
"""(t, z) -> t z, and 0 where t = 0 meets an infinite z."""


@lru_cache(maxsize=16)
def ones(count: int, dtype: np.dtype[Any]) -> Array:
    """`count` ones: BLAS sums the columns of a matrix by multiplying with them."""
    return np.ones(count, dtype)


@lru_cache(maxsize=16)
def row_numbers(count: int) -> Array:
    """0, 1, ... count - 1."""
    return np.arange(count, dtype=np.int64)


def sum_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What sums run in: float32 for float16, which cannot count beyond 2048."""
    return np.promote_types(dtype, np.float32)


def total_of(x: Array) -> Any:
    """The sum of all elements of a contiguous array, pairwise."""
    return np.add.reduce(x, axis=None, dtype=sum_dtype(x.dtype))


class CpuBackend(Backend):
    """NumPy over host memory."""

    name = "cpu"

    @property
    def implementation(self) -> str:
        return "NumPy" if find_spec("numba") else "NumPy: Numba is not installed"

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
        np.matmul(x_bi, w_io, out=out)
        if b_o is None and act.is_linear and aux is None:
            return
        inputs = (out,) if b_o is None else (out, b_o)
        outs = (out,) if aux is None else (out, aux)
        emit.run(epilogue(act, b_o is not None, aux is not None), inputs, (), outs)

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
        np.matmul(dz_bo, w_io.T, out=out)
        self.act_grad(out, aux_bi, act, out=out, db=db, mode=mode)

    def dense_grad_weight(self, x_bi: Array, dz_bo: Array, *, out: Array, mode: Mode = "overwrite") -> None:
        if mode == "overwrite":
            np.matmul(x_bi.T, dz_bo, out=out)
        else:
            product = self.workspace.empty(out.shape, out.dtype)
            np.matmul(x_bi.T, dz_bo, out=product)
            np.add(out, product, out=out)

    def act_grad(
        self,
        dy_bo: Array,
        aux_bo: Array | None,
        act: Activation,
        *,
        out: Array,
        db: Array | None = None,
        mode: Mode = "overwrite",
    ) -> None:
        if not act.is_linear:
            emit.run(chain(act), (dy_bo,) if aux_bo is None else (dy_bo, aux_bo), (), (out,))
        elif out is not dy_bo:
            np.copyto(out, dy_bo)
        if db is not None:
            self._column_sums(out, db, mode)

    def _column_sums(self, dz_bo: Array, db_o: Array, mode: Mode) -> None:
        sums = self.workspace.empty(db_o.shape, sum_dtype(db_o.dtype))
        if sums.dtype == dz_bo.dtype:
            np.matmul(ones(len(dz_bo), dz_bo.dtype), dz_bo, out=sums)  # 2 to 4 times as fast as np.add.reduce
        else:
            np.add.reduce(dz_bo, axis=0, dtype=sums.dtype, out=sums)
        if mode == "accumulate":
            np.add(db_o, sums, out=sums)
        np.copyto(db_o, sums, casting="same_kind")

    def softmax(self, z_bk: Array, *, out: Array, log: bool = False) -> None:
        column = self.workspace.empty((z_bk.shape[0], 1), z_bk.dtype)
        with np.errstate(invalid="ignore"):
            np.maximum.reduce(z_bk, axis=1, keepdims=True, out=column, initial=-np.inf)
            np.subtract(z_bk, column, out=out)
            if log:
                exps = self.workspace.empty(out.shape, out.dtype)
                np.exp(out, out=exps)
                np.add.reduce(exps, axis=1, keepdims=True, out=column)
                np.log(column, out=column)
                np.subtract(out, column, out=out)
            else:
                np.exp(out, out=out)
                np.add.reduce(out, axis=1, keepdims=True, out=column)
                np.divide(out, column, out=out)

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
        rows, classes = z_bk.shape
        empty, dtype = self.workspace.empty, z_bk.dtype
        exps = empty(z_bk.shape, dtype) if dz is None else dz
        total, terms, picked = (empty((rows, 1), dtype) for _ in range(3))
        weight: Any = 1.0 if weight_b is None else weight_b[:, None]
        mass: Any = 1.0
        has_strays = False
        with np.errstate(invalid="ignore"):
            np.maximum.reduce(z_bk, axis=1, keepdims=True, out=total, initial=-np.inf)
            np.subtract(z_bk, total, out=exps)
            if target.ndim == 1:
                hits, strays = empty((rows,), target.dtype), empty((rows,), np.dtype(np.bool_))
                np.greater_equal(target.view(np.uint64), classes, out=strays)  # a negative number is a huge one there
                has_strays = bool(np.count_nonzero(strays))
                np.multiply(row_numbers(rows), classes, out=hits)
                np.add(hits, target, out=hits, where=~strays if has_strays else True)
                np.take(exps.reshape(-1), hits, out=picked.reshape(-1), mode="clip")
            else:
                mass, products = empty((rows, 1), dtype), empty(z_bk.shape, dtype)
                np.add.reduce(target, axis=1, keepdims=True, out=mass)
                emit.run(PRODUCT, (target, exps), (), (products,))
                np.add.reduce(products, axis=1, keepdims=True, out=picked)
            np.exp(exps, out=exps)
            if has_strays:
                exps[strays] = np.nan
            np.add.reduce(exps, axis=1, keepdims=True, out=total)
            np.log(total, out=terms)
            np.multiply(terms, mass, out=terms)
            np.subtract(terms, picked, out=terms)
            np.multiply(terms, weight, out=terms)
            loss[...] = scale * total_of(terms)
            if dz is None:
                return
            np.divide(mass, total, out=total)
            np.multiply(weight, scale, out=terms)
            np.multiply(total, terms, out=total)
            np.multiply(exps, total, out=exps)
            if target.ndim == 1:
                flat, entries = exps.reshape(-1), picked.reshape(-1)
                np.take(flat, hits, out=entries, mode="clip")
                np.subtract(picked, terms, out=picked)
                flat[hits] = entries
            else:
                np.multiply(target, terms, out=products)
                np.subtract(exps, products, out=exps)

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
        shape, dtype = prediction.shape, prediction.dtype
        factor = np.ones((), dtype) if weight is None else weight
        values = self.workspace.empty(shape, dtype)
        slopes = self.workspace.empty(shape, dtype) if dz is None else dz
        emit.run(weighted(program), (prediction, target, factor), (*scalars, scale), (values, slopes))
        loss[...] = total_of(values)

    def map(
        self,
        program: Program,
        inputs: Sequence[Array],
        scalars: Sequence[float] | Array = (),
        *,
        out: Sequence[Array],
        when: Array | None = None,
    ) -> None:
        if when is None or when:
            emit.run(program, inputs, scalars.tolist() if isinstance(scalars, np.ndarray) else scalars, out)

    def next_stream(self, state: Array, *, out: Array) -> None:
        draw_stream(state, out)

    def dropout(self, x: Array, rate: float, stream: Array, *, out: Array) -> None:
        uniform = self.workspace.empty(x.shape, np.dtype(np.float32))
        uniform_stream(stream).random(dtype=np.float32, out=uniform)
        mask = self.workspace.empty(x.shape, x.dtype)
        np.greater_equal(uniform, np.float32(rate), out=mask)
        np.multiply(mask, 1.0 / (1.0 - rate), out=mask)
        np.multiply(x, mask, out=out)

    def reduce(self, operation: Reduction, x: Array, axes: tuple[int, ...], *, out: Array) -> None:
        if operation == "sum":
            sums = out if sum_dtype(x.dtype) == x.dtype else self.workspace.empty(out.shape, sum_dtype(x.dtype))
            np.add.reduce(x, axis=axes, dtype=sums.dtype, out=sums)
            if sums is not out:
                np.copyto(out, sums, casting="same_kind")
        else:
            ufunc, initial = (np.maximum, -np.inf) if operation == "max" else (np.minimum, np.inf)
            # Without `initial`, NumPy before 2.2 starts from a wrong element of a reversed axis when it is given `out`.
            ufunc.reduce(x, axis=axes, out=out, initial=initial)

    def matmul(self, a: Array, b: Array, *, out: Array) -> None:
        np.matmul(a, b, out=out)

    def copy(self, x: Array, *, out: Array) -> None:
        with np.errstate(over="ignore"):
            np.copyto(out, x, casting="unsafe")

    def fill(self, value: float, *, out: Array) -> None:
        out.fill(value)

    def gather_rows(self, x: Array, index: Array, *, out: Array) -> None:
        np.take(x, index, axis=0, out=out, mode="clip")

    def scatter_add_rows(self, x: Array, index: Array, *, out: Array) -> None:
        np.add.at(out, index, x)

    def norm2(self, x: Array, *, out: Array) -> None:
        if not x.flags.c_contiguous:
            x_copy = self.workspace.empty(x.shape, x.dtype)
            np.copyto(x_copy, x)
            x = x_copy
        flat = x.reshape(-1)
        with np.errstate(over="ignore"):
            total = np.dot(flat, flat) if flat.dtype.itemsize >= 4 else np.inf
        if not np.isfinite(total):
            wide = self.workspace.empty((emit.BLOCK,), np.dtype(np.float64))
            total = 0.0
            for start in range(0, flat.size, emit.BLOCK):
                block = flat[start : start + emit.BLOCK]
                part = wide[: block.size]
                np.copyto(part, block)
                total += np.dot(part, part)
        out[...] = total
