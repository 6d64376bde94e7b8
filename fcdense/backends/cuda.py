"""The CUDA backend: each primitive as launches of the kernels in `kernels/cuda`, on one stream of one GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fcdense.activation import Activation
from fcdense.arena import Array
from fcdense.backends.base import Backend, Mode, Reduction
from fcdense.backends.programs import chain, epilogue, weighted
from fcdense.backends.replay import Call, Replay
from fcdense.backends.spans import overlap, same_memory
from fcdense.cuda import source
from fcdense.cuda.driver import Driver
from fcdense.cuda.geometry import blocks, strides_in
from fcdense.cuda.launcher import FLOAT64, Launcher
from fcdense.cuda.plan import Plan
from fcdense.cuda.product import ADDED, SUM, Products
from fcdense.cuda.tables import plan_of
from fcdense.errors import OutOfMemory
from fcdense.program import Program, trace

CONSTANT = trace(lambda value: value, 0, 1, name="fill")


class CudaBackend(Backend):
    """Kernels of our own over the memory of one GPU."""

    name = "cuda"
    is_host = False
    cache = 1 << 24  # of the L2 cache, which has 40 MB on an A100 and 50 on an H100

    def __init__(self, driver: Driver, plan: Plan | None = None, lane: int = 0) -> None:
        super().__init__()
        self.driver = driver
        self.launcher = Launcher(driver, self, lane)
        self.products = Products(self.launcher, plan_of(driver) if plan is None else plan)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return self._made(self.driver.empty, shape, dtype)

    def _made(self, make: Callable[..., Array], *given: Any) -> Array:
        """A new array of the driver; where there is no room for it, also in place of buffers that nobody uses."""
        try:
            return make(*given)
        except OutOfMemory:
            self.release()
            return make(*given)

    def broadcast_to(self, x: Array, shape: tuple[int, ...]) -> Array:
        np.broadcast_to(np.empty(x.shape, np.bool_), shape)  # raises where they do not fit
        strides = tuple(step * x.dtype.itemsize for step in strides_in(x, shape))
        return self.driver.view(x, 0, shape, strides, x.dtype)

    def view(
        self, base: Array, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype[Any]
    ) -> Array:
        return self.driver.view(base, offset, shape, strides, dtype)

    def from_host(self, array: np.ndarray[Any, Any]) -> Array:
        return self._made(self.driver.upload, array)

    def write(self, array: np.ndarray[Any, Any], *, out: Array) -> None:
        out[...] = array

    def adopt(self, array: Array) -> Array:
        return self.driver.adopt(array)

    def hand_over(self, array: Array) -> Array:
        return self.driver.hand_over(array)

    def to_host(self, array: Array) -> np.ndarray[Any, Any]:
        return self.driver.download(self.launcher.contiguous(array))

    @property
    def implementation(self) -> str:
        return f"CUDA ({self.driver.architecture})"

    def replay(self, calls: Sequence[Call], kept: Sequence[Array] = ()) -> Replay:
        from fcdense.cuda.graph import GraphReplay

        return GraphReplay(self, calls)

    # ---- dense layers ------------------------------------------------------------------------------------------------

    def dense(
        self, x_bi: Array, w_io: Array, b_o: Array | None, act: Activation, *, out: Array, aux: Array | None = None
    ) -> None:
        outs = (out,) if aux is None else (out, aux)
        self.products.run(
            x_bi, w_io, epilogue(act, b_o is not None, aux is not None), () if b_o is None else (b_o,), outs
        )

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
        inputs = () if aux_bi is None else (aux_bi,)
        self.products.run(dz_bo, w_io.T, SUM if act.is_linear else chain(act), inputs, (out,), db, mode == "accumulate")

    def dense_grad_weight(self, x_bi: Array, dz_bo: Array, *, out: Array, mode: Mode = "overwrite") -> None:
        added = mode == "accumulate"
        self.products.run(x_bi.T, dz_bo, ADDED if added else SUM, (out,) if added else (), (out,))

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
            self.launcher.elementwise(chain(act), (dy_bo,) if aux_bo is None else (dy_bo, aux_bo), (), (dz_bo,))
        elif not same_memory(dz_bo, dy_bo):
            self.copy(dy_bo, out=dz_bo)
        if db is not None:
            self.launcher.reduce("sum", dz_bo, (0,), db, adds=mode == "accumulate")

    # ---- rows --------------------------------------------------------------------------------------------------------

    def softmax(self, z_bk: Array, *, out: Array, log: bool = False) -> None:
        rows, classes = z_bk.shape
        if not z_bk.size:
            return
        kernel = source.softmax(z_bk.dtype, classes, log)
        words = self.launcher.place("z", z_bk) | {"out": self.driver.address(out)}
        grid = blocks(rows, source.rows_of_a_block(classes)), 1, 1
        self.launcher.launch(kernel, grid, **words, rows=rows, classes=classes)

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
        within = np.dtype(np.float64 if z_bk.dtype == FLOAT64 else np.float32)
        if not rows:
            self.fill(0.0, out=loss)
            return
        kernel = source.cross_entropy(z_bk.dtype, loss.dtype, classes, target.ndim == 1)
        losses = self.workspace.empty((rows,), within)
        words = self.launcher.place("z", z_bk) | self.launcher.place("target", target)
        if weight_b is not None:
            words |= {
                "weight": self.driver.address(weight_b),
                "weight_stride": weight_b.strides[0] // weight_b.dtype.itemsize,
            }
        results = {"losses": losses, "loss": loss, "arrivals": self.launcher.arrivals(1)}
        results |= {} if dz is None else {"dz": dz}
        words |= {name: self.driver.address(array) for name, array in results.items()}
        grid = blocks(rows, source.rows_of_a_block(classes)), 1, 1
        self.launcher.launch(kernel, grid, **words, scale=scale, rows=rows, classes=classes)

    # ---- elementwise -------------------------------------------------------------------------------------------------

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
        dtype = prediction.dtype
        inputs = (prediction, target) if weight is None else (prediction, target, weight)
        within = np.dtype(np.float64 if dtype == FLOAT64 else np.float32)
        values = self.workspace.empty(prediction.shape, within)
        slopes = self.workspace.empty(prediction.shape, dtype) if dz is None else dz
        self.launcher.elementwise(weighted(program, weight is not None), inputs, (*scalars, scale), (values, slopes))
        self.launcher.reduce("sum", values.reshape(-1), (0,), loss, within="double")

    def map(
        self,
        program: Program,
        inputs: Sequence[Array],
        scalars: Sequence[float] | Array = (),
        *,
        out: Sequence[Array],
        when: Array | None = None,
    ) -> None:
        self.launcher.elementwise(program, inputs, scalars, out, when)

    def next_stream(self, state: Array, *, out: Array) -> None:
        address = self.driver.address
        self.launcher.launch(source.next_stream(), (1, 1, 1), state=address(state), out=address(out))

    def dropout(self, x: Array, rate: float, stream: Array, *, out: Array) -> None:
        if not x.size:
            return
        if not x.flags.c_contiguous:
            self.copy(x, out=out)
            x = out
        kernel = source.dropout(x.dtype)
        words = {name: self.driver.address(a) for name, a in (("x", x), ("stream", stream), ("out", out))}
        words["stream_stride"] = stream.strides[0] // stream.dtype.itemsize
        words["packed"] = 0 if words["x"] % 16 or words["out"] % 16 else x.size // 8
        grid = self.launcher.grid(blocks(x.size, 8), kernel.threads)
        self.launcher.launch(kernel, grid, **words, rate=rate, size=x.size)

    # ---- arrays ------------------------------------------------------------------------------------------------------

    def reduce(self, operation: Reduction, x: Array, axes: tuple[int, ...], *, out: Array) -> None:
        self.launcher.reduce(operation, x, axes, out)

    def matmul(self, a: Array, b: Array, *, out: Array) -> None:
        for place in np.ndindex(*out.shape[:-2]):
            left, right = (
                x[
                    tuple(
                        i if n != 1 else 0 for i, n in zip(place[len(place) - x.ndim + 2 :], x.shape[:-2], strict=True)
                    )
                ]
                for x in (a, b)
            )
            self.products.run(left, right, SUM, (), (out[place],))

    def copy(self, x: Array, *, out: Array) -> None:
        if not out.size:
            return
        if overlap(x, out) and not same_memory(x, out):
            given, x = x, self.workspace.empty(x.shape, x.dtype)
            self.launcher.copy(given, x)
        self.launcher.copy(x, out)

    def fill(self, value: float, *, out: Array) -> None:
        self.launcher.elementwise(CONSTANT, (), (value,), (out,))

    def gather_rows(self, x: Array, index: Array, *, out: Array) -> None:
        if not out.size:
            return
        kernel = source.gather_rows(x.dtype)
        x, index, columns = self.launcher.contiguous(x), self.launcher.contiguous(index), math.prod(x.shape[1:])
        self.launcher.launch(
            kernel, self.launcher.grid(out.size, kernel.threads), **self._indexed(x, index, out, columns)
        )

    def scatter_add_rows(self, x: Array, index: Array, *, out: Array) -> None:
        if not out.size or not index.size:
            return
        kernel = source.scatter_add_rows(x.dtype)
        x, index = self.launcher.contiguous(x), self.launcher.contiguous(index)
        rows = self._indexed(x, index, out, math.prod(out.shape[1:]))
        self.launcher.launch(kernel, self.launcher.grid(out.size, kernel.threads), rows=rows, out_rows=len(out))

    def _indexed(self, x: Array, index: Array, out: Array, columns: int) -> dict[str, int]:
        """The fields of `Rows`, for rows of so many numbers; all arrays are contiguous."""
        words = {name: self.driver.address(a) for name, a in (("x", x), ("index", index), ("out", out))}
        return words | {"count": index.size, "columns": columns}

    def norm2(self, x: Array, *, out: Array) -> None:
        if x.size:
            self.launcher.reduce("sum", x, tuple(range(x.ndim)), out, squares=True, within="double")
        else:
            self.fill(0.0, out=out)
