"""The CPU backend: BLAS for the products, vectorized NumPy for everything around them, nothing allocated.

Passes over memory run in blocks that stay in the L2 cache (`fcdense.emit`). Temporary arrays come from the workspace.

Each primitive hands NumPy's functions to `do` and elementwise programs to `_run`, which call them at once. A replay
(`NumpyReplay`) has them noted instead, so no primitive looks at values, or computes outside of the two.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from fcdense import emit
from fcdense.activation import Activation
from fcdense.arena import Array, host_empty, host_zeros
from fcdense.backends.base import Backend, Mode, Reduction, draw_stream, uniform_stream
from fcdense.backends.programs import chain, epilogue, weighted
from fcdense.backends.replay import Call, Replay
from fcdense.errors import DTypeError
from fcdense.program import Program, trace

PRODUCT = trace(lambda t, z: np.where(t == 0.0, 0.0, t * z), 2, name="product")
"""(t, z) -> t z, and 0 where t = 0 meets an infinite z."""


@lru_cache(maxsize=16)
def ones(count: int, dtype: np.dtype[Any]) -> Array:
    """`count` ones: BLAS sums the columns of a matrix by multiplying with them."""
    return np.ones(count, dtype)


@lru_cache(maxsize=16)
def row_starts(rows: int, columns: int) -> Array:
    """Where the rows of a contiguous matrix begin: 0, columns, 2 columns, ..."""
    return np.arange(rows, dtype=np.int64) * columns


def sum_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What sums run in: float32 for float16, which cannot count beyond 2048."""
    return np.promote_types(dtype, np.float32)


def draw_uniform(stream: Array, out: Array) -> None:
    """Numbers of the stream, uniform from 0 to 1."""
    uniform_stream(stream).random(dtype=np.float32, out=out)


def sum_squares(x: Array, wide: Array, out: Array) -> None:
    """The sum of the squares of a contiguous vector; block by block in `wide` (float64) where its dtype overflows."""
    with np.errstate(over="ignore"):
        total = np.dot(x, x) if x.dtype.itemsize >= 4 else np.inf
    if not np.isfinite(total):
        total = 0.0
        for start in range(0, x.size, wide.size):
            block = x[start : start + wide.size]
            part = wide[: block.size]
            np.copyto(part, block)
            total += np.dot(part, part)
    out[...] = total


class CpuBackend(Backend):
    """NumPy over host memory."""

    name = "cpu"
    mixed_precision = False
    do: Callable[..., Any] = operator.call
    """Calls its first argument with the others; what comes back is not looked at."""

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

    def replay(self, calls: Sequence[Call], kept: Sequence[Array] = ()) -> Replay:
        from fcdense.backends.numpy_replay import NumpyReplay

        return NumpyReplay(calls, self.implementation)

    def _run(
        self,
        program: Program,
        inputs: Sequence[Array],
        scalars: Sequence[float] | Array,
        outs: Sequence[Array],
        when: Array | None = None,
    ) -> None:
        """`map`, whatever a subclass makes of that."""
        if when is None or when:
            emit.run(program, inputs, scalars.tolist() if isinstance(scalars, np.ndarray) else scalars, outs)

    def dense(
        self, x_bi: Array, w_io: Array, b_o: Array | None, act: Activation, *, out: Array, aux: Array | None = None
    ) -> None:
        self.do(np.dot, x_bi, w_io, out)
        if b_o is None and act.is_linear and aux is None:
            return
        inputs = (out,) if b_o is None else (out, b_o)
        outs = (out,) if aux is None else (out, aux)
        self._run(epilogue(act, b_o is not None, aux is not None), inputs, (), outs)

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
        self.do(np.dot, dz_bo, w_io.T, out)
        CpuBackend.act_grad(self, out, aux_bi, act, out=out, db=db, mode=mode)

    def dense_grad_weight(self, x_bi: Array, dz_bo: Array, *, out: Array, mode: Mode = "overwrite") -> None:
        if out.dtype != x_bi.dtype:
            raise DTypeError(f"The CPU has no {out.dtype} gradient of {x_bi.dtype} operands; a GPU has.")
        if mode == "overwrite":
            self.do(np.dot, x_bi.T, dz_bo, out)
        else:
            product = self.workspace.empty(out.shape, out.dtype)
            self.do(np.dot, x_bi.T, dz_bo, product)
            self.do(np.add, out, product, out)

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
        dz_bo = dy_bo if out is None else out
        if not act.is_linear:
            self._run(chain(act), (dy_bo,) if aux_bo is None else (dy_bo, aux_bo), (), (dz_bo,))
        elif dz_bo is not dy_bo:
            self.do(np.copyto, dz_bo, dy_bo)
        if db is not None:
            self._column_sums(dz_bo, db, mode)

    def _column_sums(self, dz_bo: Array, db_o: Array, mode: Mode) -> None:
        dtype = sum_dtype(db_o.dtype)
        sums = db_o if mode == "overwrite" and dtype == db_o.dtype else self.workspace.empty(db_o.shape, dtype)
        if dtype == dz_bo.dtype:
            self.do(np.dot, ones(len(dz_bo), dtype), dz_bo, sums)  # 2 to 4 times as fast as np.add.reduce
        else:
            self.do(np.add.reduce, dz_bo, 0, dtype, sums)
        if mode == "accumulate":
            self.do(np.add, db_o, sums, sums)
        if sums is not db_o:
            self.do(np.copyto, db_o, sums, casting="same_kind")

    def _row_maxima(self, x: Array, out: Array) -> None:
        """By the places of the maxima, which NumPy finds in a quarter of the time; NaN wins. `x` is contiguous."""
        rows, columns = x.shape
        if not columns:
            self.do(out.fill, -np.inf)
            return
        first, places = (self.workspace.empty((rows,), np.dtype(np.int64)) for _ in range(2))
        self.do(x.argmax, 1, first)
        self.do(np.add, first, row_starts(rows, columns), places)
        self.do(x.reshape(-1).take, places, None, out.reshape(-1), "clip")

    def _row_sums(self, x: Array, out: Array) -> None:
        if sum_dtype(x.dtype) == x.dtype:
            self.do(np.dot, x, ones(x.shape[1], x.dtype), out.reshape(-1))
        else:
            self.do(np.add.reduce, x, 1, None, out, True)

    def softmax(self, z_bk: Array, *, out: Array, log: bool = False) -> None:
        do = self.do
        column = self.workspace.empty((z_bk.shape[0], 1), z_bk.dtype)
        with np.errstate(invalid="ignore"):
            if not z_bk.flags.c_contiguous:
                do(np.copyto, out, z_bk)
                z_bk = out
            self._row_maxima(z_bk, column)
            do(np.subtract, z_bk, column, out)
            if log:
                exps = self.workspace.empty(out.shape, out.dtype)
                do(np.exp, out, exps)
                self._row_sums(exps, column)
                do(np.log, column, column)
                do(np.subtract, out, column, out)
            else:
                do(np.exp, out, out)
                self._row_sums(out, column)
                do(np.divide, out, column, out)

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
        do, empty, dtype = self.do, self.workspace.empty, z_bk.dtype
        exps = empty(z_bk.shape, dtype) if dz is None else dz
        # On a single element NumPy takes three times as long where it writes over an operand, so columns take turns.
        total, terms, picked, column = (empty((rows, 1), dtype) for _ in range(4))
        factor = np.array(scale, dtype)
        flat, entries = exps.reshape(-1), picked.reshape(-1)
        with np.errstate(invalid="ignore"):
            if weight_b is not None:
                given, factor = factor, empty((rows, 1), dtype)
                do(np.multiply, weight_b[:, None], given, factor)
            if not z_bk.flags.c_contiguous:
                do(np.copyto, exps, z_bk)
                z_bk = exps
            self._row_maxima(z_bk, total)
            do(np.subtract, z_bk, total, exps)
            if target.ndim == 1:
                number = target.view(np.uint64)  # a negative one is huge there
                strays, valid, hits = (
                    empty((rows,), np.dtype(np.bool_)),
                    empty((rows,), number.dtype),
                    empty((rows,), target.dtype),
                )
                do(np.greater_equal, number, np.array(classes, number.dtype), strays)
                do(np.minimum, number, np.array(classes - 1, number.dtype), out=valid)
                do(np.add, valid.view(hits.dtype), row_starts(rows, classes), hits)
                do(flat.take, hits, None, entries, "clip")
            else:
                mass, products = empty((rows, 1), dtype), empty(z_bk.shape, dtype)
                self._row_sums(target, mass)
                self._run(PRODUCT, (target, exps), (), (products,))
                self._row_sums(products, picked)
            do(np.exp, exps, exps)
            self._row_sums(exps, total)
            if target.ndim == 1:
                do(np.putmask, total.reshape(-1), strays, np.array(np.nan, dtype))
            do(np.log, total, terms)
            if target.ndim == 2:
                do(np.multiply, terms, mass, terms)
            do(np.subtract, terms, picked, column)
            do(np.multiply, column, factor, terms)
            do(np.add.reduce, terms, None, sum_dtype(dtype), loss)
            if dz is None:
                return
            if target.ndim == 1:
                do(np.divide, factor, total, column)
                do(np.multiply, exps, column, exps)
                do(flat.take, hits, None, entries, "clip")
                do(np.subtract, picked, factor, terms)
                do(flat.__setitem__, hits, terms.reshape(-1))
            else:
                do(np.multiply, mass, factor, terms)
                do(np.divide, terms, total, column)
                do(np.multiply, exps, column, exps)
                do(np.multiply, target, factor, products)
                do(np.subtract, exps, products, exps)

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
        self._run(weighted(program), (prediction, target, factor), (*scalars, scale), (values, slopes))
        self.do(np.add.reduce, values, None, sum_dtype(dtype), loss)

    def map(
        self,
        program: Program,
        inputs: Sequence[Array],
        scalars: Sequence[float] | Array = (),
        *,
        out: Sequence[Array],
        when: Array | None = None,
    ) -> None:
        self._run(program, inputs, scalars, out, when)

    def next_stream(self, state: Array, *, out: Array) -> None:
        self.do(draw_stream, state, out)

    def dropout(self, x: Array, rate: float, stream: Array, *, out: Array) -> None:
        uniform = self.workspace.empty(x.shape, np.dtype(np.float32))
        mask = self.workspace.empty(x.shape, x.dtype)
        self.do(draw_uniform, stream, uniform)
        self.do(np.greater_equal, uniform, np.float32(rate), mask)
        self.do(np.multiply, mask, 1.0 / (1.0 - rate), mask)
        self.do(np.multiply, x, mask, out)

    def reduce(self, operation: Reduction, x: Array, axes: tuple[int, ...], *, out: Array) -> None:
        if operation == "sum":
            sums = out if sum_dtype(x.dtype) == x.dtype else self.workspace.empty(out.shape, sum_dtype(x.dtype))
            self.do(np.add.reduce, x, axes, sums.dtype, sums)
            if sums is not out:
                self.do(np.copyto, out, sums, casting="same_kind")
        else:
            ufunc, initial = (np.maximum, -np.inf) if operation == "max" else (np.minimum, np.inf)
            # Without `initial`, NumPy before 2.2 starts from a wrong element of a reversed axis when it is given `out`.
            self.do(ufunc.reduce, x, axes, None, out, initial=initial)

    def matmul(self, a: Array, b: Array, *, out: Array) -> None:
        self.do(np.matmul, a, b, out)

    def copy(self, x: Array, *, out: Array) -> None:
        with np.errstate(over="ignore"):
            self.do(np.copyto, out, x, casting="unsafe")

    def fill(self, value: float, *, out: Array) -> None:
        self.do(out.fill, value)

    def gather_rows(self, x: Array, index: Array, *, out: Array) -> None:
        self.do(x.take, index, 0, out, "clip")

    def scatter_add_rows(self, x: Array, index: Array, *, out: Array) -> None:
        self.do(np.add.at, out, index, x)

    def norm2(self, x: Array, *, out: Array) -> None:
        if not x.flags.c_contiguous:
            given, x = x, self.workspace.empty(x.shape, x.dtype)
            self.do(np.copyto, x, given)
        wide = self.workspace.empty((emit.BLOCK,), np.dtype(np.float64))
        self.do(sum_squares, x.reshape(-1), wide, out)
