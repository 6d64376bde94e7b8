"""Programs, products and sums of arrays as launches of the kernels in `kernels/cuda`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from fcdense import emit
from fcdense.arena import Array, Buffers
from fcdense.cuda import source
from fcdense.cuda.driver import Driver
from fcdense.cuda.functor import computed
from fcdense.cuda.geometry import Vector, blocks, collapsed, padded, strides_in, vector_of
from fcdense.cuda.source import Kernel, dtypes
from fcdense.program import Program

FLOAT64 = np.dtype(np.float64)
WAVES = 2048
"""Blocks of a launch whose threads take several elements each."""
THREADS = 1 << 16
"""Of a reduction, where there is enough to reduce: a quarter of those that the largest GPUs hold at once."""
SERIAL = 16
"""Numbers that a thread takes at least before a reduction is cut in parts; below `WHOLE` of them it is not cut."""
WHOLE = 128
FEWEST_COUNTERS = 1024
FEWEST_SCALARS = 64


class Lender(Buffers, Protocol):
    """Who gives memory, and lends that which lives no longer than a call."""

    @property
    def workspace(self) -> Buffers: ...
    def from_host(self, array: np.ndarray[Any, Any]) -> Array: ...


class _Scratch(threading.local):
    """Memory that the launches of a thread share."""

    live: Array | None = None


class Launcher:
    """Launches on one driver. Nothing is launched for arrays without elements.

    Attributes
    ----------
    driver : Driver
    lane : int
        Where they run one after another. What they lend or share, memory and counters, is of this lane alone.
    """

    def __init__(self, driver: Driver, lender: Lender, lane: int = 0) -> None:
        self.driver = driver
        self.lane = lane
        self._lender = lender
        self._counters: list[Array] = []
        self._scratch = _Scratch()

    def place(self, name: str, array: Array) -> dict[str, int]:
        """Where a matrix or vector lies, as the fields `name`, `name_row`, `name_column`."""
        row, column = (*(s // array.dtype.itemsize for s in array.strides), 0, 0)[:2]
        return {name: self.driver.address(array), f"{name}_row": row, f"{name}_column": column}

    def launch(self, kernel: Kernel, grid: tuple[int, int, int], **fields: Any) -> None:
        """Run a kernel with these fields of its struct; others are 0."""
        arguments = np.zeros(1, kernel.arguments)
        for name, value in fields.items():
            _put(arguments[0], name, value)
        self.driver.launch(kernel, grid, arguments)

    def operands(
        self, inputs: Sequence[Any], outs: Sequence[Any], strides: Sequence[tuple[int, ...]], scalars: Any
    ) -> dict[str, Any]:
        """The fields of `Operands`; None stands for an input that the kernel computes itself."""
        words = [
            {"data": 0 if array is None else self.driver.address(array), "strides": steps}
            for array, steps in zip((*inputs, *outs), strides, strict=True)
        ]
        fields: dict[str, Any] = {"inputs": words[: len(inputs)], "outputs": words[len(inputs) :]}
        if isinstance(scalars, int):
            return fields | {"live": scalars}
        return fields | {"given": list(scalars)}

    def _scalars(self, program: Program, scalars: Sequence[float] | Array) -> tuple[Program, Any, Any]:
        """The program without what depends on scalars alone; that, as numbers or as their address; and its memory."""
        first, body = program.without_scalar_work()
        if first is None:
            return body, (), None
        if isinstance(scalars, (list, tuple)):
            values = np.empty(body.n_scalars)
            emit.run(first, (), scalars, [values[k : k + 1].reshape(()) for k in range(len(values))])
            return body, values.tolist(), None
        scalars, live = self.contiguous(scalars), self._live(body.n_scalars)
        if first.copies_scalars:
            return program, self.driver.address(scalars), scalars
        self._scalar_work(first, scalars, [live[k : k + 1] for k in range(body.n_scalars)])
        return body, self.driver.address(live), live

    def _live(self, count: int) -> Array:
        """So many numbers for the next launch of this thread.

        Its launches come one after another and share them, so that only the first one asks for memory: an update of
        several passes fails before it has changed anything, or not at all.
        """
        if self._scratch.live is None or self._scratch.live.size < count:
            self._scratch.live = self._lender.empty((max(count, FEWEST_SCALARS),), FLOAT64)
        return self._scratch.live[:count]

    def _scalar_work(self, program: Program, scalars: Array, cells: Sequence[Array], when: Array | None = None) -> None:
        """A program of scalars alone into single numbers of float64."""
        operands = self.operands((), cells, [(0,)] * len(cells), self.driver.address(scalars))
        gate = 0 if when is None else self.driver.address(when)
        self.launch(source.scalar_work(program), (1, 1, 1), operands=operands, when=gate)

    def elementwise(
        self,
        program: Program,
        inputs: Sequence[Array],
        scalars: Sequence[float] | Array,
        outs: Sequence[Array],
        when: Array | None = None,
    ) -> None:
        """`Backend.map`."""
        if not outs[0].size:
            return
        is_scalar = not inputs and outs[0].size == 1 and all(out.dtype == FLOAT64 for out in outs)
        if is_scalar and not isinstance(scalars, (list, tuple)):
            self._scalar_work(program, self.contiguous(scalars), outs, when)
            return
        program, values, _ = self._scalars(program, scalars)
        shape, strides = collapsed(outs[0].shape, [strides_in(array, outs[0].shape) for array in (*inputs, *outs)])
        vector = self.vector(shape[-1], inputs, outs, strides)
        kernel = source.elementwise(program, dtypes(inputs), dtypes(outs), len(shape), vector)
        groups = outs[0].size // vector.width
        self.launch(
            kernel,
            self.grid(groups, kernel.threads),
            operands=self.operands(inputs, outs, strides, values),
            when=0 if when is None else self.driver.address(when),
            shape=(*shape[:-1], shape[-1] // vector.width),
            size=groups,
        )

    def vector(
        self, length: int, inputs: Sequence[Array], outs: Sequence[Array], strides: Sequence[tuple[int, ...]]
    ) -> Vector:
        """How a thread takes numbers of these operands along a last axis of `length`."""
        located = [
            (self.driver.address(array), array.dtype.itemsize, steps)
            for array, steps in zip((*inputs, *outs), strides, strict=True)
        ]
        return vector_of(length, located[: len(inputs)], located[len(inputs) :])

    @staticmethod
    def grid(elements: int, threads: int) -> tuple[int, int, int]:
        """The blocks of a kernel whose threads take one element after another."""
        return min(blocks(elements, threads), WAVES), 1, 1

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Memory for this call."""
        return self._lender.workspace.empty(shape, dtype)

    def arrivals(self, count: int) -> Array:
        """So many counters or more, which are 0 between launches."""
        if not self._counters or self._counters[-1].size < count:  # what was recorded goes on with those before
            self._counters.append(self._lender.from_host(np.zeros(max(count, FEWEST_COUNTERS), np.uint32)))
        return self._counters[-1]

    def reduce(
        self,
        operation: str,
        x: Array,
        axes: tuple[int, ...],
        out: Array,
        *,
        adds: bool = False,
        squares: bool = False,
        within: str = "",
    ) -> None:
        """Sum, maximum or minimum of `x`, or of its `squares`, over `axes`.

        `out` is contiguous, and is added to where it `adds`. It is computed in what programs over `x` are computed in,
        unless `within` names a type. Long ones are cut in parts, whose results the last block joins, or one more
        reduction where there are very many.
        """
        axes = tuple(axis % x.ndim for axis in axes)
        steps = strides_in(x, x.shape)
        kept = [d for d in range(x.ndim) if d not in axes]
        kept_shape, (kept_steps,) = collapsed(tuple(x.shape[d] for d in kept), [tuple(steps[d] for d in kept)])
        shape, (reduced_steps,) = collapsed(tuple(x.shape[d] for d in axes), [tuple(steps[d] for d in axes)])
        count, length = int(np.prod(kept_shape)), int(np.prod(shape))
        if not count:
            return
        within = within or computed((x.dtype,), ())
        group = 1 if kept_steps[-1] == 1 and count >= 32 else 256 if count <= 256 else 32
        parts = 1
        if length > WHOLE * group or (length > SERIAL * group and count * group < 1024):
            parts = max(1, min(THREADS // (count * group), length // (SERIAL * group)))
        part = blocks(length, parts)
        parts = max(1, blocks(length, max(part, 1)))
        dims = max(len(kept_shape), len(shape))
        kept_shape, (kept_steps,) = padded(kept_shape, [kept_steps], dims)
        shape, (reduced_steps,) = padded(shape, [reduced_steps], dims)
        kernel = source.reduce(operation, "Square" if squares else "Identity", x.dtype, out.dtype, within, dims, group)
        across, data = blocks(count, kernel.threads // group), self.driver.address(x) if x.size else 0
        fields = {
            "x_kept": {"data": data, "strides": kept_steps},
            "x_reduced": {"data": data, "strides": reduced_steps},
            "kept_shape": kept_shape,
            "reduced_shape": shape,
            "kept": count,
            "reduced": length,
            "out": self.driver.address(out),
            "part": part,
            "adds": int(adds),
        }
        if parts == 1:
            self.launch(kernel, (across, 1, 1), **fields)
            return
        of_parts = self.empty((parts, count), np.dtype(np.float64 if within == "double" else np.float32))
        fields["parts"] = self.driver.address(of_parts)
        is_joined = parts <= WHOLE * group
        if is_joined:
            fields["arrivals"] = self.driver.address(self.arrivals(across))
        self.launch(kernel, (across, parts, 1), **fields)
        if not is_joined:
            self.reduce(operation, of_parts, (0,), out.reshape(-1), adds=adds, within=within)

    def copy(self, x: Array, out: Array) -> None:
        """out = x, broadcast and cast; they do not overlap."""
        shape, strides = collapsed(out.shape, [strides_in(array, out.shape) for array in (x, out)])
        vector = self.vector(shape[-1], (x,), (out,), strides)
        width = 1 if vector.repeated else vector.width
        kernel = source.cast(x.dtype, out.dtype, len(shape), width)
        (x_words, out_words) = (
            {"data": self.driver.address(array), "strides": steps}
            for array, steps in zip((x, out), strides, strict=True)
        )
        groups = out.size // width
        grid, in_groups = self.grid(groups, kernel.threads), (*shape[:-1], shape[-1] // width)
        self.launch(kernel, grid, x=x_words, out=out_words, shape=in_groups, size=groups)

    def contiguous(self, array: Array) -> Array:
        """The array itself, or a copy that lies in one piece."""
        if array.flags.c_contiguous:
            return array
        copied = self.empty(array.shape, array.dtype)
        self.copy(array, copied)
        return copied


def _put(record: Any, name: str, value: Any) -> None:
    """Write a field of a struct: a number, numbers, the fields of a struct, or structs."""
    if isinstance(value, dict):
        for inner, item in value.items():
            _put(record[name], inner, item)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for place, item in zip(record[name], value, strict=False):
            for inner, entry in item.items():
                _put(place, inner, entry)
    elif isinstance(value, (list, tuple)):
        record[name][: len(value)] = value
    else:
        record[name] = value
