"""What users may give as data, and the NumPy array that it becomes."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from fcdense.arena import too_large
from fcdense.errors import DeviceError, DTypeError, DTypeWarning, ShapeError

FLOATS = tuple(np.dtype(t) for t in (np.float16, np.float32, np.float64))

_said: set[object] = set()


def warn_once(key: object, message: str) -> None:
    """Issue a `DTypeWarning` the first time that `key` is met in this process."""
    if key not in _said:
        _said.add(key)
        warnings.warn(message, DTypeWarning, stacklevel=4)


def is_on_gpu(data: Any) -> bool:
    """Whether this is an array in the memory of a GPU, as CuPy's say of themselves."""
    return not isinstance(data, np.ndarray) and hasattr(data, "__cuda_array_interface__")


def read_on_host(data: Any, what: str) -> np.ndarray[Any, Any]:
    """What `np.asarray` makes of `data`, which is not, and does not hold, arrays of a GPU.

    Raises
    ------
    DeviceError
        It does: nothing is copied between devices behind your back.
    """
    if is_on_gpu(data):
        raise DeviceError(f"{what} lies on a GPU, but it is used on the CPU. Copy it first: cupy.asnumpy(array).")
    try:
        return np.asarray(data)
    except TypeError:
        if not _holds_gpu_arrays(data):
            raise
    raise DeviceError(
        f"{what} holds arrays that lie on a GPU, but it is used on the CPU. Copy each of them first: "
        "cupy.asnumpy(array)."
    )


def _holds_gpu_arrays(data: Any) -> bool:
    return isinstance(data, list | tuple) and any(is_on_gpu(item) or _holds_gpu_arrays(item) for item in data)


def check_numbers(dtype: np.dtype[Any], what: str) -> None:
    """Raise `DTypeError` unless it is a dtype of floats, integers or booleans."""
    if dtype.kind == "c":
        raise DTypeError(f"{what} is complex ({dtype}); dense layers are real. Pass .real and .imag as features.")
    if dtype.kind not in "fiub":
        raise DTypeError(
            f"{what} has dtype {dtype}; expected floats, integers or booleans. Convert it first: "
            "array.astype('float32')."
        )


def host_array(data: Any, what: str = "data") -> np.ndarray[Any, Any]:
    """`data` as a NumPy array of native byte order holding floats, integers or booleans; no copy where none is needed.

    long double becomes float64, and says so once.

    Raises
    ------
    DTypeError
        Complex, object, string or other elements; a masked array, whose mask would be lost.
    ShapeError
        Nested lists of unequal lengths.
    DeviceError
        An array of a GPU, or a list of such.
    """
    if isinstance(data, np.ndarray) and hasattr(data, "mask"):
        raise DTypeError(f"{what} is a masked array. Fill it, .filled(value), or give the mask as weights.")
    try:
        array = read_on_host(data, what)
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise
        raise ShapeError(f"{what} is a ragged list: its rows have unequal lengths. Pad or split it first.") from None
    check_numbers(array.dtype, what)
    if array.dtype.itemsize > 8:
        warn_once(("longdouble",), f"{what} is {array.dtype}; it is rounded to float64, the widest dtype of fcdense.")
        return array.astype(np.float64)
    if not array.dtype.isnative:
        return array.astype(array.dtype.newbyteorder("="))
    return array


def in_c_order(array: np.ndarray[Any, Any], dtype: Any = None, *, copy: bool | None = None) -> np.ndarray[Any, Any]:
    """`array` with its rows one after another and aligned, however it lay: sums over it then give the same bits.

    `copy=True` always copies, else only what is not so already.
    """
    try:
        return np.array(array, dtype, order="C", copy=copy if array.flags.aligned else True)
    except MemoryError:
        raise too_large(array.shape, array.dtype if dtype is None else np.dtype(dtype)) from None


def float_dtype(dtype: Any) -> np.dtype[Any]:
    """The float dtype that `dtype` names.

    Raises
    ------
    DTypeError
        It names no dtype, or one that is not float16, float32 or float64.
    """
    try:
        found = FLOATS.index(np.dtype(object if dtype is None else dtype))  # NumPy takes None for float64
    except (TypeError, ValueError):
        raise DTypeError(f"dtype is {dtype!r}; expected 'float16', 'float32' or 'float64'.") from None
    return FLOATS[found]


def array_dtype(dtype: Any) -> np.dtype[Any]:
    """The dtype that `dtype` names, if arrays of fcdense can have it: float16 to float64, integers, booleans.

    Raises
    ------
    DTypeError
        It names none of these.
    """
    try:
        found: np.dtype[Any] = np.dtype(object if dtype is None else dtype).newbyteorder("=")
    except TypeError:
        found = np.dtype(object)
    if found not in FLOATS and found.kind not in "iub":
        raise DTypeError(f"dtype is {dtype!r}; expected a float dtype up to float64, an integer dtype or bool.")
    return found
