"""General array operations: what each computes, and its vector-Jacobian product beside it.

An operation is a small value (its name and parameters). `forward` calls one primitive on arrays; `vjp` is written with
the methods of the tensors that it is given, so that a gradient can itself be differentiated. `Tensor.apply` joins both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from math import prod
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fcdense.arena import Array
from fcdense.backends.base import Backend, Reduction
from fcdense.backends.spans import share_memory
from fcdense.errors import DTypeError, GraphError, ShapeError
from fcdense.expression import array_var
from fcdense.precision import FLOAT_KINDS
from fcdense.program import Program

Shape = tuple[int, ...]
AnyTensor = Any
"""A `fcdense.Tensor`; this file lies below its class."""


class Call(NamedTuple):
    """What the forward call leaves for the vjp, an entry for each input; `inputs` has None where nothing was saved."""

    inputs: tuple[AnyTensor | None, ...]
    shapes: tuple[Shape, ...]
    dtypes: tuple[np.dtype[Any], ...]
    needs: tuple[bool, ...]


Gradients = tuple[AnyTensor | None, ...]


class Operation(ABC):
    """Base: `saves` names the inputs whose values the vjp reads."""

    name: ClassVar[str]
    needs_floats: ClassVar[bool] = False
    is_view: ClassVar[bool] = False
    """Whether the result shares the input's memory (or may)."""

    def saves(self, needs: tuple[bool, ...]) -> tuple[int, ...]:
        """Positions of the inputs to keep for the vjp, given which inputs need gradients."""
        del needs
        return ()

    @abstractmethod
    def forward(self, backend: Backend, arrays: Sequence[Array]) -> Array:
        """The result's array."""

    def vjp(self, dy: AnyTensor, call: Call) -> Gradients:
        """A gradient for each input that needs one."""
        raise GraphError(f"'{self.name}' has no gradient.")


def reshaped(backend: Backend, x: Array, shape: Shape) -> Array:
    """x in another shape: a view where its memory allows one, else a copy."""
    y: Array
    if backend.is_host or x.flags.c_contiguous:
        y = x.reshape(shape)
        if not backend.is_recording or x.flags.c_contiguous or share_memory(x, y):
            return y
    y = backend.workspace.empty(x.shape, x.dtype)  # NumPy's copy was made now; a replay has to make its own
    backend.copy(x, out=y)
    return y.reshape(shape)


_broadcast = lru_cache(maxsize=1024)(np.broadcast_shapes)


def broadcast_shape(name: str, arrays: Sequence[Array]) -> Shape:
    """The shape in which operands meet."""
    try:
        return _broadcast(*[a.shape for a in arrays])
    except ValueError:
        shapes = " and ".join(str(a.shape) for a in arrays)
        raise ShapeError(
            f"'{name}' cannot broadcast shapes {shapes}: from the right, sizes must be equal or 1."
        ) from None


def sum_to(gradient: AnyTensor, shape: Shape) -> AnyTensor:
    """Undo broadcasting: sum `gradient` over the axes along which an operand of `shape` was repeated."""
    if gradient.shape == shape:
        return gradient
    lead = gradient.ndim - len(shape)
    axes = tuple(range(lead)) + tuple(
        lead + axis for axis, size in enumerate(shape) if size == 1 and gradient.shape[lead + axis] != 1
    )
    return gradient.sum(axis=axes).reshape(shape)


@cache
def vjp_of(program: Program, position: int) -> Program:
    """`program.vjp(position)`, derived once."""
    return program.vjp(position)


@cache
def read_by_vjps(program: Program, needs: tuple[bool, ...]) -> tuple[int, ...]:
    """Positions of the inputs that the vjps for the inputs in need read."""
    wanted = [vjp_of(program, i) for i, need in enumerate(needs) if need]
    return tuple(i for i in range(len(needs)) if any(vjp.depends_on(i) for vjp in wanted))


@dataclass(frozen=True)
class Elementwise(Operation):
    """y = program(inputs, scalars), broadcast."""

    program: Program
    scalars: tuple[float, ...] = ()
    needs_floats: ClassVar[bool] = True

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.program.name

    def saves(self, needs: tuple[bool, ...]) -> tuple[int, ...]:
        return read_by_vjps(self.program, needs)

    def forward(self, backend: Backend, arrays: Sequence[Array]) -> Array:
        dtype = next(a.dtype for a in arrays if a.dtype.kind in FLOAT_KINDS)  # a condition may be boolean
        out = backend.workspace.empty(broadcast_shape(self.name, arrays), dtype)
        backend.map(self.program, arrays, self.scalars, out=(out,))
        return out

    def vjp(self, dy: AnyTensor, call: Call) -> Gradients:
        operands = [dy if x is None else x for x in call.inputs]  # a program ignores what it does not depend on

        def gradient(position: int) -> AnyTensor:
            program = vjp_of(self.program, position)
            if program.outputs[0] is array_var(len(operands)):  # y = x + ...: dy itself
                return dy
            return dy.apply(Elementwise(program, self.scalars), *operands, dy)

        return tuple(
            [sum_to(gradient(i), shape) if call.needs[i] else None for i, shape in enumerate(call.shapes)],
        )


@dataclass(frozen=True)
class Compare(Operation):
    """y = program(inputs, scalars), a condition, as booleans; it has no gradient."""

    program: Program
    scalars: tuple[float, ...] = ()

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.program.name

    def forward(self, backend: Backend, arrays: Sequence[Array]) -> Array:
        out = backend.workspace.empty(broadcast_shape(self.name, arrays), np.dtype(np.bool_))
        backend.map(self.program, arrays, self.scalars, out=(out,))
        return out


@dataclass(frozen=True)
class Reduce(Operation):
    """y = sum, maximum or minimum of x over `axes`, which disappear. The maximum's gradient is shared among ties."""

    operation: Reduction
    axes: tuple[int, ...]
    needs_floats: ClassVar[bool] = True

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.operation

    def saves(self, needs: tuple[bool, ...]) -> tuple[int, ...]:
        return () if self.operation == "sum" else (0,)

    def forward(self, backend: Backend, arrays: Sequence[Array]) -> Array:
        (x,) = arrays
        if self.operation != "sum" and any(x.shape[axis] == 0 for axis in self.axes):
            raise ShapeError(f"{self.operation} over an axis of size 0 (shape {x.shape}) has no value.")
        shape = tuple(size for axis, size in enumerate(x.shape) if axis not in self.axes)
        out = backend.workspace.empty(shape, x.dtype)
        backend.reduce(self.operation, x, self.axes, out=out)
        return out

    def vjp(self, dy: AnyTensor, call: Call) -> Gradients:
        (shape,) = call.shapes
        kept = tuple(1 if axis in self.axes else size for axis, size in enumerate(shape))
        spread = dy.reshape(kept).broadcast_to(shape)
        x = call.inputs[0]
        if x is None:
            return (spread,)
        extreme = x.detach().apply(self, x.detach()).reshape(kept)
        winners = (x.detach() == extreme).astype(dy.dtype)
        return (spread * winners / winners.sum(axis=self.axes).reshape(kept),)


@dataclass(frozen=True)
class BroadcastTo(Operation):
    """y = x repeated to `shape`, without a copy."""

    shape: Shape
    name: ClassVar[str] = "broadcast_to"
    is_view: ClassVar[bool] = True

    def forward(self, backend: Backend, arrays: Sequence[Array]) -> Array:
        (x,) = arrays
        try:
            return backend.broadcast_to(x, self.shape)
        except ValueError:
            raise ShapeError(f"Shape {x.shape} cannot be broadcast to {self.shape}.") from None

    def vjp(self, dy: AnyTensor, call: Call) -> Gradients:
        return (sum_to(dy, call.shapes[0]),)


@dataclass(frozen=True)
class MatMul(Operation):
    """y = a @ b over the last two axes; leading axes broadcast. Operands have at least two axes."""

    name: ClassVar[str] = "matmul"
    needs_floats: ClassVar[bool] = True

    def saves(self, needs: tuple[bool, ...]) -> tuple[int, ...]:
        return tuple(i for i in (0, 1) if needs[1 - i])

    def forward(self, backend: Backend, arrays: Sequence[Array]) -> Array:
        a, b = arrays
        _check_one_dtype(self.name, arrays)
        if a.shape[-1] != b.shape[-2]:
            raise ShapeError(
                f"matmul: shapes {a.shape} @ {b.shape} do not fit: "
                f"the left has {a.shape[-1]} columns, the right {b.shape[-2]} rows."
            )
        try:
            lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        except ValueError:
            raise ShapeError(f"matmul: the leading axes of {a.shape} and {b.shape} do not broadcast.") from None
        out = backend.workspace.empty((*lead, a.shape[-2], b.shape[-1]), a.dtype)
        backend.matmul(a, b, out=out)
        return out

    def vjp(self, dy: AnyTensor, call: Call) -> Gradients:
        a, b = call.inputs
        return (
            sum_to(dy @ b.swapaxes(-1, -2), call.shapes[0]) if b is not None else None,
            sum_to(a.swapaxes(-1, -2) @ dy, call.shapes[1]) if a is not None else None,
        )


@dataclass(frozen=True)
class Reshape(Operation):
    """y = x in another shape of as many elements; a view where the memory allows it."""

    shape: Shape
    name: ClassVar[str] = "reshape"
    is_view: ClassVar[bool] = True

    def forward(self, backend: Backend, arrays: Sequence[Array]) -> Array:
        (x,) = arrays
        if prod(self.shape) != x.size or any(size < 0 for size in self.shape):
            raise ShapeError(f"A tensor of shape {x.shape} ({x.size} elements) cannot take shape {self.shape}.")
        return reshaped(backend, x, self.shape)

    def vjp(self, dy: AnyTensor, call: Call) -> Gradients:
        return (dy.reshape(call.shapes[0]),)


@dataclass(frozen=True)
class Transpose(Operation):
    """y = x with its axes in the order `axes`, a view."""

    axes: tuple[int, ...]
    name: ClassVar[str] = "transpose"
    is_view: ClassVar[bool] = True

    def forward(self, backend: Backend, arrays: Sequence[Array]) -> Array:
        return arrays[0].transpose(self.axes)

    def vjp(self, dy: AnyTensor, call: Call) -> Gradients:
        inverse = tuple(self.axes.index(axis) for axis in range(len(self.axes)))
        return (dy.transpose(inverse),)


@dataclass(frozen=True)
class Concatenate(Operation):
    """y = the inputs one after another along `axis`."""

    axis: int
    name: ClassVar[str] = "concatenate"

    def forward(self, backend: Backend, arrays: Sequence[Array]) -> Array:
        first = arrays[0].shape
        _check_one_dtype(self.name, arrays)
        for a in arrays:
            if len(a.shape) != len(first) or any(
                m != n for axis, (m, n) in enumerate(zip(a.shape, first, strict=True)) if axis != self.axis
            ):
                shapes = ", ".join(str(a.shape) for a in arrays)
                raise ShapeError(f"concatenate along axis {self.axis}: shapes {shapes} differ in another axis.")
        total = sum(a.shape[self.axis] for a in arrays)
        out = backend.workspace.empty((*first[: self.axis], total, *first[self.axis + 1 :]), arrays[0].dtype)
        for a, key in zip(arrays, self._keys([a.shape for a in arrays]), strict=True):
            backend.copy(a, out=out[key])
        return out

    def _keys(self, shapes: Sequence[Shape]) -> list[tuple[slice, ...]]:
        stops = np.cumsum([shape[self.axis] for shape in shapes]).tolist()
        starts = [0, *stops[:-1]]
        lead = (slice(None),) * self.axis
        return [(*lead, slice(start, stop)) for start, stop in zip(starts, stops, strict=True)]

    def vjp(self, dy: AnyTensor, call: Call) -> Gradients:
        return tuple(dy[key] if need else None for key, need in zip(self._keys(call.shapes), call.needs, strict=True))


@dataclass(frozen=True)
class AsType(Operation):
    """y = x in another dtype."""

    dtype: np.dtype[Any]
    name: ClassVar[str] = "astype"

    def forward(self, backend: Backend, arrays: Sequence[Array]) -> Array:
        (x,) = arrays
        out = backend.workspace.empty(x.shape, self.dtype)
        backend.copy(x, out=out)
        return out

    def vjp(self, dy: AnyTensor, call: Call) -> Gradients:
        return (dy.astype(call.dtypes[0]),)


def _check_one_dtype(name: str, arrays: Sequence[Array]) -> None:
    """Floats have one dtype by now, so what differs is an integer or a boolean beside them."""
    dtypes = {a.dtype for a in arrays}
    if len(dtypes) > 1:
        names = " and ".join(sorted(str(dtype) for dtype in dtypes))
        raise DTypeError(f"'{name}' got {names}; convert one with .astype().")
