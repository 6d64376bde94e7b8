"""Tensors: arithmetic, reductions, reshaping and indexing, as NumPy's users write them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, ClassVar

import numpy as np

from fcdense import activate, indexing, operations, tape
from fcdense import backends as devices
from fcdense.activation import Activation, RowActivation
from fcdense.arena import Array, Version
from fcdense.backends import Device, current_device
from fcdense.backends.base import Reduction
from fcdense.conversion import array_dtype, host_array, in_c_order, is_on_gpu
from fcdense.errors import ArgumentError, DeviceError, GraphError, ShapeError
from fcdense.precision import BFLOAT16, FLOAT_KINDS, dtype_of
from fcdense.program import Program, trace
from fcdense.variable import Variable, on_device


class Tensor(Variable):
    """An n-dimensional array that remembers how it was computed.

    Make one with `fcdense.tensor`. Arithmetic broadcasts as in NumPy, NumPy's ufuncs work on it, and `backward`
    fills `grad` of every leaf that requires one. Operands of different float dtypes meet in the wider one; Python
    numbers take the tensor's dtype.
    """

    __slots__ = ("_passed",)
    array_functions: ClassVar[dict[Callable[..., Any], Callable[..., Any]]] = {}
    """NumPy functions (not ufuncs) that have a counterpart for tensors."""

    # conversions

    def derived(self, array: Array, version: Version | None = None) -> Tensor:
        """A plain tensor on this one's device."""
        return Tensor(array, self.device, version=version)

    def to(self, target: str | Device) -> Tensor:
        """This tensor on another device (itself if it is there already)."""
        goal = devices.device(target)
        if goal == self.device:
            return self
        source = self.device
        moved = Tensor(goal.backend.from_host(np.array(source.backend.to_host(self.array))), goal)
        if tape.needs_grad((self,)):
            moved.attach(tape.VjpNode("to", (self,), lambda dy: (dy.to(source),)))
        return moved

    def astype(self, dtype: Any) -> Tensor:
        """This tensor in another dtype (itself if it has it already)."""
        goal = dtype_of(BFLOAT16) if getattr(dtype, "name", dtype) == BFLOAT16 else array_dtype(dtype)
        return self if self.dtype == goal else self.apply(operations.AsType(goal), self)

    def copy(self) -> Tensor:
        """The same values in memory of their own."""
        return self.apply(operations.AsType(self.dtype), self)

    def check_once(self, check: Callable[[], object], *about: Any) -> None:
        """Call `check`, which reads the values, unless it has passed already, since a GPU stops for every reader.

        It is called again once something was written into the tensor. What others write into memory that they share
        with it is not seen.
        """
        key = self.version.number, *about
        if getattr(self, "_passed", None) != key:
            check()
            self._passed = key

    # operations

    def __fc_map__(self, program: Program, inputs: tuple[Any, ...]) -> Tensor:
        return self.apply(operations.Elementwise(program), *(as_tensor(x, like=self) for x in inputs))

    def __fc_activate__(self, function: Activation | RowActivation) -> Tensor:
        return self.apply(activate.operation_of(function), self)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Tensor:
        if method != "__call__" or kwargs:
            raise TypeError(
                f"np.{ufunc.__name__} with {'.' + method if method != '__call__' else sorted(kwargs)} does not take "
                "tensors. Use the tensor's own methods (sum, max, ...), or .numpy() for a NumPy array."
            )
        if ufunc is np.matmul:
            like = next(x for x in inputs if isinstance(x, Tensor))
            return matmul(as_tensor(inputs[0], like=like), as_tensor(inputs[1], like=like))
        return elementwise(ufunc, *inputs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        ours = self.array_functions.get(function)
        if ours is None:
            raise TypeError(f"np.{function.__name__} does not take tensors; use .numpy() for a NumPy array.")
        return ours(*args, **kwargs)

    def __add__(self, other: Any) -> Tensor:
        return elementwise(operator.add, self, other)

    def __radd__(self, other: Any) -> Tensor:
        return elementwise(operator.add, other, self)

    def __sub__(self, other: Any) -> Tensor:
        return elementwise(operator.sub, self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return elementwise(operator.sub, other, self)

    def __mul__(self, other: Any) -> Tensor:
        return elementwise(operator.mul, self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return elementwise(operator.mul, other, self)

    def __truediv__(self, other: Any) -> Tensor:
        return elementwise(operator.truediv, self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return elementwise(operator.truediv, other, self)

    def __pow__(self, other: Any) -> Tensor:
        if isinstance(other, (int, float)) and other in _PLAIN_EXPONENTS:
            return self.apply(operations.Elementwise(_power(float(other))), self)
        return elementwise(operator.pow, self, other)

    def __rpow__(self, other: Any) -> Tensor:
        return elementwise(operator.pow, other, self)

    def __matmul__(self, other: Any) -> Tensor:
        return matmul(self, as_tensor(other, like=self))

    def __rmatmul__(self, other: Any) -> Tensor:
        return matmul(as_tensor(other, like=self), self)

    def __neg__(self) -> Tensor:
        return elementwise(operator.neg, self)

    def __pos__(self) -> Tensor:
        return self

    def __abs__(self) -> Tensor:
        return elementwise(operator.abs, self)

    def __gt__(self, other: Any) -> Tensor:
        return elementwise(operator.gt, self, other)

    def __ge__(self, other: Any) -> Tensor:
        return elementwise(operator.ge, self, other)

    def __lt__(self, other: Any) -> Tensor:
        return elementwise(operator.lt, self, other)

    def __le__(self, other: Any) -> Tensor:
        return elementwise(operator.le, self, other)

    def __eq__(self, other: object) -> Tensor:  # type: ignore[override]
        return elementwise(operator.eq, self, other)

    def __ne__(self, other: object) -> Tensor:  # type: ignore[override]
        return elementwise(operator.ne, self, other)

    __hash__ = object.__hash__

    def __and__(self, other: Any) -> Tensor:
        return elementwise(operator.and_, self, other)

    def __or__(self, other: Any) -> Tensor:
        return elementwise(operator.or_, self, other)

    __rand__, __ror__ = __and__, __or__

    def __invert__(self) -> Tensor:
        return elementwise(operator.invert, self)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[row] for row in range(len(self)))

    def sum(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Sum over `axis` (an integer, several, or None for all)."""
        return self._reduce("sum", axis, keepdims)

    def max(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Maximum over `axis`; its gradient is shared evenly among equal maxima."""
        return self._reduce("max", axis, keepdims)

    def min(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Minimum over `axis`; its gradient is shared evenly among equal minima."""
        return self._reduce("min", axis, keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Arithmetic mean over `axis`."""
        count = math.prod(self.shape[i] for i in _axes(axis, self.ndim))
        if not count:
            raise ShapeError(f"The mean over an axis of size 0 (shape {self.shape}) has no value.")
        return self.sum(axis, keepdims) / count

    def _reduce(self, name: Reduction, axis: Any, keepdims: bool) -> Tensor:
        axes = _axes(axis, self.ndim)
        out = self.apply(operations.Reduce(name, axes), self)
        kept = tuple(1 if i in axes else size for i, size in enumerate(self.shape))
        return out.reshape(kept) if keepdims else out

    def reshape(self, *shape: Any) -> Tensor:
        """The same elements in another shape; one size may be -1."""
        sizes = _integers(shape[0] if len(shape) == 1 else shape)
        if sizes.count(-1) == 1:
            known = math.prod(size for size in sizes if size != -1)
            if known <= 0 or self.size % known:
                raise ShapeError(f"A tensor of shape {self.shape} cannot take shape {sizes}: the -1 has no one value.")
            sizes = tuple(self.size // known if size == -1 else size for size in sizes)
        return self if sizes == self.shape else self.apply(operations.Reshape(sizes), self)

    def broadcast_to(self, shape: Any) -> Tensor:
        """Repeated along new axes and axes of size 1 to `shape`, without a copy."""
        sizes = _integers(shape)
        return self if sizes == self.shape else self.apply(operations.BroadcastTo(sizes), self)

    def transpose(self, *axes: Any) -> Tensor:
        """The axes in another order; reversed when none is given."""
        order = axes[0] if len(axes) == 1 else axes or None
        sources = tuple(range(self.ndim))[::-1] if order is None else _axes(order, self.ndim)
        if len(sources) != self.ndim:
            raise ShapeError(f"transpose got axes {axes} for a tensor of {self.ndim} axes; name each once.")
        return self.apply(operations.Transpose(sources), self)

    def swapaxes(self, first: int, second: int) -> Tensor:
        """Two axes exchanged."""
        order = list(range(self.ndim))
        (a,), (b,) = _axes(first, self.ndim), _axes(second, self.ndim)
        order[a], order[b] = order[b], order[a]
        return self.transpose(order)

    @property
    def T(self) -> Tensor:  # noqa: N802
        """The transpose."""
        return self.transpose()

    def __getitem__(self, key: Any) -> Tensor:
        if indexing.is_basic(key):
            return self.apply(indexing.Slice(key), self)
        index = (
            tuple([indexing.host_index(part) for part in key]) if isinstance(key, tuple) else indexing.host_index(key)
        )
        if isinstance(index, np.ndarray) and index.dtype.kind in "iu" and self.ndim:
            rows, source = indexing.row_numbers(index, len(self)), self
        else:  # NumPy's other indices pick elements, which are rows of the flat tensor
            rows, source = np.arange(self.size).reshape(self.shape)[index], self.reshape(self.size)
        return self.apply(indexing.GatherRows(self.device.backend.from_host(rows)), source)

    def __setitem__(self, key: Any, value: Any) -> None:
        if self.node is not None or (self.requires_grad and tape.is_recording()):
            raise GraphError(
                "This tensor is part of a graph, so it cannot be changed in place. Change a copy (.detach().copy()), "
                "or a leaf inside `with fc.no_grad():`."
            )
        if not indexing.is_basic(key):
            raise IndexError(
                "Assign to integers and slices, t[1:3, 0] = v; for other indices use np.where(mask, v, t)."
            )
        source = as_tensor(value, like=self)
        if source.requires_grad and tape.is_recording():
            raise GraphError(
                "Values with a gradient were assigned in place, which would lose it. Use np.where or stack."
            )
        if source.device != self.device:
            raise DeviceError(f"The values lie on {source.device}, the tensor on {self.device}. Move them with .to().")
        part = self.array[indexing.with_ellipsis(key)]
        try:
            np.broadcast_to(np.empty(source.shape, np.bool_), part.shape)
        except ValueError:
            raise ShapeError(f"Values of shape {source.shape} do not fit the part of shape {part.shape}.") from None
        self.device.backend.copy(source.array, out=part)
        self.version.bump()


def tensor(data: Any, dtype: Any = None, device: str | Device | None = None, requires_grad: bool = False) -> Tensor:
    """A tensor with a copy of `data`: nested lists, numbers, a NumPy array or a tensor.

    NumPy's dtypes are kept (Python floats are float64, as in NumPy); `dtype` asks for another. `device` is
    `current_device()` unless given.
    """
    on = current_device() if device is None else devices.device(device)
    if is_on_gpu(data):
        adopted = on_device(data, on, "data")
        array = on.backend.empty(adopted.shape, array_dtype(adopted.dtype if dtype is None else dtype))
        on.backend.copy(adopted, out=array)
        return Tensor(array, on, requires_grad=requires_grad)
    source = data.detach().numpy() if isinstance(data, Tensor) else host_array(data)
    array = in_c_order(source, None if dtype is None else array_dtype(dtype), copy=True)
    return Tensor(on.backend.from_host(array), on, requires_grad=requires_grad)


def placed(data: Any, on: Device, what: str = "data") -> Tensor:
    """An array as a tensor on the device `on`, in the same memory where it lies there already."""
    return Tensor(on_device(data, on, what), on)


def as_tensor(value: Any, like: Tensor) -> Tensor:
    """`value` as an operand beside `like`: a tensor as it is, an array on its device.

    Beside a float tensor, integers, booleans and single numbers take its dtype, as Python's numbers do in NumPy.
    """
    if isinstance(value, Tensor):
        return value
    if is_on_gpu(value):
        operand = tensor(value, device=like.device)
        return operand.astype(like.dtype) if _is_weak(operand, like) else operand
    array = host_array(value, "the operand")
    if _is_weak(array, like):
        array = array.astype(like.dtype)
    return Tensor(like.device.backend.from_host(array), like.device)


def _is_weak(operand: Any, like: Tensor) -> bool:
    """Whether an operand takes the dtype of the tensor that it stands beside."""
    return like.dtype.kind in FLOAT_KINDS and (operand.dtype.kind != "f" or operand.ndim == 0)


def elementwise(function: Callable[..., Any], *operands: Any) -> Tensor:
    """function(operands), traced once for each pattern of operands; numbers stay variables of the trace."""
    like = next(x for x in operands if isinstance(x, Tensor))
    is_scalar = tuple([isinstance(x, (int, float)) and not isinstance(x, bool) for x in operands])
    scalars = tuple([float(x) for x, scalar in zip(operands, is_scalar, strict=True) if scalar])
    arrays = [as_tensor(x, like=like) for x, scalar in zip(operands, is_scalar, strict=True) if not scalar]
    kind, program = _traced(function, is_scalar)
    return Tensor.apply(kind(program, scalars), *arrays)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b as NumPy defines it: a 1-d operand is a row on the left, a column on the right."""
    if a.ndim == 0 or b.ndim == 0:
        raise ShapeError(f"matmul needs operands of at least one axis; got shapes {a.shape} and {b.shape}.")
    left = a.reshape(1, -1) if a.ndim == 1 else a
    right = b.reshape(-1, 1) if b.ndim == 1 else b
    out = Tensor.apply(operations.MatMul(), left, right)
    shape = out.shape[:-2] + (() if a.ndim == 1 else out.shape[-2:-1]) + (() if b.ndim == 1 else out.shape[-1:])
    return out.reshape(shape)


@cache
def _traced(
    function: Callable[..., Any], is_scalar: tuple[bool, ...]
) -> tuple[type[operations.Elementwise] | type[operations.Compare], Program]:
    """The trace of `function` with array variables and scalar variables where the operands have them."""
    n_arrays = is_scalar.count(False)

    def reordered(*variables: Any) -> Any:
        arrays, scalars = iter(variables[:n_arrays]), iter(variables[n_arrays:])
        return function(*(next(scalars if scalar else arrays) for scalar in is_scalar))

    program = trace(reordered, n_arrays, is_scalar.count(True), name=function.__name__)
    return operations.Compare if program.outputs[0].is_bool else operations.Elementwise, program


_PLAIN_EXPONENTS = frozenset((-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, 4.0))
"""Exponents with programs of their own: products and roots instead of powers, and right at 0."""


@cache
def _power(exponent: float) -> Program:
    return trace(lambda x: x**exponent, 1, name="power")


def _integers(sizes: Any) -> tuple[int, ...]:
    """One integer or several as a tuple of Python's."""
    several = sizes if isinstance(sizes, Iterable) else (sizes,)
    try:
        return tuple([operator.index(size) for size in several])
    except TypeError:
        raise ArgumentError(f"Expected integers, given {sizes!r}.") from None


def _axes(axis: Any, ndim: int) -> tuple[int, ...]:
    """`axis` as a tuple of different axes from 0 on."""
    axes = tuple(range(ndim)) if axis is None else _integers(axis)
    for a in axes:
        if not -ndim <= a < ndim:
            raise ShapeError(f"Axis {a} is out of range for a tensor of {ndim} axes.")
    positive = tuple([a % ndim for a in axes])
    if len(set(positive)) != len(positive):
        raise ShapeError(f"Axes {axes} of a tensor of {ndim} axes: one is named twice.")
    return positive
