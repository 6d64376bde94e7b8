"""What every door of this room asks of the arrays and numbers it is given."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fcdense.conversion import host_array, is_on_gpu, read_on_host
from fcdense.errors import ArgumentError, DataError, DTypeError, ShapeError


def as_rows(name: str, value: ArrayLike, *, min_axes: int = 1) -> NDArray[Any]:
    """`value` as a real-valued array with at least one row along axis 0; nothing is copied or cast.

    A memory-mapped array stays on disk, a CuPy array on its GPU. NaN and inf are not looked for, which would read every
    value.

    Raises
    ------
    ShapeError
        Ragged rows, fewer than `min_axes` axes, or an axis of size 0 after the first.
    DTypeError
        Anything but floats, integers and bools, or an array on a GPU that is not CuPy's.
    DataError
        No rows, a sparse matrix, or masked entries.
    """
    if hasattr(value, "toarray"):
        raise DataError(f"{name} is sparse ({type(value).__name__}); dense layers read arrays: pass {name}.toarray().")
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise DataError(
            f"{name} has masked entries, which would be read as numbers: fill them with {name}.filled(...)."
        )
    try:
        array = _on_gpu(name, value) if is_on_gpu(value) else read_on_host(value, name)
    except ValueError as error:
        raise ShapeError(_ragged(name, value)) from error
    if array.dtype.kind not in "fiub":
        raise DTypeError(
            f"{name} has dtype {array.dtype}, expected floats, integers or bools. {_dtype_cure(name, array)}"
        )
    if array.ndim < min_axes:
        raise ShapeError(_too_few_axes(name, array, min_axes))
    if array.shape[0] == 0:
        raise DataError(f"{name} has 0 rows {array.shape}, expected at least one.")
    if 0 in array.shape:
        raise ShapeError(f"{name} has 0 features (shape {array.shape}), expected at least one per row.")
    return array


def as_host_rows(name: str, value: ArrayLike, *, min_axes: int = 1) -> NDArray[Any]:
    """`as_rows` of what NumPy is going to compute with: a CuPy array is refused (`DeviceError`)."""
    return as_rows(name, host_array(value, name) if is_on_gpu(value) else value, min_axes=min_axes)


def same_rows(name: str, array: NDArray[Any], other_name: str, other: NDArray[Any]) -> None:
    """Raise `ShapeError` unless `array` and `other` have as many rows."""
    if len(array) != len(other):
        raise ShapeError(
            f"{name} has {len(array)} rows and {other_name} has {len(other)} "
            f"({name} {array.shape}, {other_name} {other.shape}); expected one row of {other_name} per row of {name}."
        )


def as_weights(name: str, value: ArrayLike, x_name: str, x: NDArray[Any]) -> NDArray[Any]:
    """`value` as one finite weight >= 0 per row of `x`; integers and bools become float32."""
    weights = as_host_rows(name, value)
    if weights.ndim != 1:
        raise ShapeError(f"{name} has shape {weights.shape}, expected one weight per row: ({len(x)},).")
    same_rows(x_name, x, name, weights)
    if weights.dtype.kind != "f":
        weights = weights.astype(np.float32)
    wrong = ~(np.isfinite(weights) & (weights >= 0))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(f"{name} is {weights[row]} in row {row}, expected a finite number >= 0.")
    return weights


def as_count(name: str, value: object, minimum: int = 1) -> int:
    """`value` as an int of at least `minimum`; floats and bools are refused, NumPy integers are not."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError("a bool counts nothing")
        count = operator.index(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise ArgumentError(f"{name} is {value!r}, expected an integer >= {minimum}.") from error
    if count < minimum:
        raise ArgumentError(f"{name} is {count}, expected an integer >= {minimum}.")
    return count


def _on_gpu(name: str, value: Any) -> Any:
    if isinstance(getattr(value, "dtype", None), np.dtype) and hasattr(value, "take"):
        return value
    raise DTypeError(f"{name} is a {type(value).__name__} on a GPU; pass cupy.asarray({name}), which copies nothing.")


def _ragged(name: str, value: Any) -> str:
    try:
        lengths = [len(row) for row in value]
    except TypeError:
        return f"{name} is ragged: its rows differ in shape or nesting, expected rows of one shape."
    for row, length in enumerate(lengths):
        if length != lengths[0]:
            return (
                f"{name} is ragged: row {row} has length {length}, row 0 has length {lengths[0]}; pad or cut the rows."
            )
    return f"{name} is ragged: its rows differ in shape, expected rows of one shape."


def _dtype_cure(name: str, array: NDArray[Any]) -> str:
    if array.dtype.kind in "US" and array.ndim == 1:
        return f"Turn labels into class numbers: classes, {name} = np.unique({name}, return_inverse=True)."
    if array.dtype.kind == "O":
        return f"Some entries are no numbers: encode text columns, then pass np.asarray({name}, dtype=np.float32)."
    return "Convert it to numbers first."


def _too_few_axes(name: str, array: NDArray[Any], min_axes: int) -> str:
    message = f"{name} has shape {array.shape}, expected "
    if min_axes == 1:
        return message + "one entry per row: (rows, ...)."
    message += "(rows, ..., features)."
    return message + f" For one feature per row pass {name}[:, None]." if array.ndim == 1 else message


def no_weight(rows: int) -> DataError:
    """What is raised where no row has a weight."""
    return DataError(f"The weights of all {rows} rows are 0, so there is nothing to measure or to learn.")
