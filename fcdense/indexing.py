"""Indexing: which elements a key selects, and the operations that pick them and put their gradients back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fcdense.arena import Array
from fcdense.backends.base import Backend
from fcdense.conversion import read_on_host
from fcdense.errors import DTypeError
from fcdense.operations import AnyTensor, Call, Gradients, Operation, Shape


def is_basic(key: Any) -> bool:
    """Whether `key` selects a view: integers, slices, None and Ellipsis."""
    parts = key if isinstance(key, tuple) else (key,)
    return all(
        part is None or part is Ellipsis or (isinstance(part, (int, np.integer, slice)) and not isinstance(part, bool))
        for part in parts
    )


def with_ellipsis(key: Any) -> tuple[Any, ...]:
    """The basic index `key` as a tuple with an Ellipsis, which keeps a single element an array."""
    parts = key if isinstance(key, tuple) else (key,)
    return parts if any(part is Ellipsis for part in parts) else (*parts, Ellipsis)


def host_index(part: Any) -> Any:
    """A list, tensor or array within an index as a NumPy array of integers or booleans; anything else as it is."""
    if not hasattr(part, "__array__") and not isinstance(part, list):
        return part
    index = read_on_host(part, "An index")
    if index.size == 0 and isinstance(part, list):
        return index.astype(np.int64)
    if index.dtype.kind not in "iub":
        raise DTypeError(f"An index needs integers or booleans, not {index.dtype}.")
    return index


def row_numbers(index: np.ndarray[Any, Any], rows: int) -> np.ndarray[Any, Any]:
    """Integers that count `rows` rows, from the end where negative, as int64 from 0 on."""
    if index.size and (index.min() < -rows or index.max() >= rows):
        raise IndexError(f"Row {index.min() if index.min() < -rows else index.max()} of a tensor with {rows} rows.")
    return np.where(index < 0, index + rows, index).astype(np.int64)


@dataclass(frozen=True)
class Slice(Operation):
    """y = x[key] for integers, slices, None and Ellipsis; a view."""

    key: Any
    name: ClassVar[str] = "slice"
    is_view: ClassVar[bool] = True

    def forward(self, backend: Backend, arrays: Sequence[Array]) -> Array:
        (x,) = arrays
        try:
            return x[with_ellipsis(self.key)]
        except IndexError as error:
            raise IndexError(f"{error} (tensor of shape {x.shape})") from None

    def vjp(self, dy: AnyTensor, call: Call) -> Gradients:
        return (dy.apply(Embed(self.key, call.shapes[0]), dy),)


@dataclass(frozen=True)
class Embed(Operation):
    """y = zeros of `shape` with y[key] = x: the transpose of `Slice`."""

    key: Any
    shape: Shape
    name: ClassVar[str] = "embed"

    def forward(self, backend: Backend, arrays: Sequence[Array]) -> Array:
        (x,) = arrays
        out = backend.workspace.empty(self.shape, x.dtype)
        backend.fill(0.0, out=out)
        backend.copy(x, out=out[with_ellipsis(self.key)])
        return out

    def vjp(self, dy: AnyTensor, call: Call) -> Gradients:
        return (dy[self.key],)


@dataclass(frozen=True, eq=False)
class GatherRows(Operation):
    """y[k] = x[index[k]] along the first axis; `index` is a checked int64 array on the device."""

    index: Array
    name: ClassVar[str] = "gather_rows"

    def forward(self, backend: Backend, arrays: Sequence[Array]) -> Array:
        (x,) = arrays
        out = backend.workspace.empty((*self.index.shape, *x.shape[1:]), x.dtype)
        backend.gather_rows(x, self.index, out=out)
        return out

    def vjp(self, dy: AnyTensor, call: Call) -> Gradients:
        return (dy.apply(ScatterAddRows(self.index, call.shapes[0]), dy),)


@dataclass(frozen=True, eq=False)
class ScatterAddRows(Operation):
    """y = zeros of `shape` with y[index[k]] += x[k]: the transpose of `GatherRows`."""

    index: Array
    shape: Shape
    name: ClassVar[str] = "scatter_add_rows"

    def forward(self, backend: Backend, arrays: Sequence[Array]) -> Array:
        (x,) = arrays
        out = backend.workspace.empty(self.shape, x.dtype)
        backend.fill(0.0, out=out)
        backend.scatter_add_rows(x, self.index, out=out)
        return out

    def vjp(self, dy: AnyTensor, call: Call) -> Gradients:
        return (dy.apply(GatherRows(self.index), dy),)
