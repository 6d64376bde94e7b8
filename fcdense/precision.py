"""Mixed precision: in which numbers dense layers multiply, while parameters and the optimizer's slots stay float32."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np

from fcdense.errors import ArgumentError, unknown_name
from fcdense.scope import Scope

FLOAT_KINDS = "fV"
"""The kinds of float dtypes: bfloat16, which ml_dtypes adds to NumPy, has the one that NumPy calls "other"."""

FLOAT32 = np.dtype(np.float32)
BFLOAT16, TF32 = "bfloat16", "tf32"
PRECISIONS = ("float32", TF32, BFLOAT16, "float16")


class Precision(NamedTuple):
    """What `use_precision` chose: its name, and the dtype of what is multiplied."""

    name: str
    dtype: np.dtype[Any]


DEFAULT = Precision("float32", FLOAT32)

_chosen: ContextVar[Precision] = ContextVar("fcdense_precision", default=DEFAULT)


def use_precision(name: str) -> Scope[Any]:
    """Multiply in fewer bits inside of the `with` block, in this thread or task: mixed precision (on a GPU).

    A dense layer with float32 parameters rounds its input and a copy of its kernel to 16 bits, sums in float32, and
    gives a 16-bit output. Layers that normalize, losses and metrics take such outputs as float32; activations, dropout
    and arithmetic between tensors compute in float32 and round to 16 bits. Gradients of parameters, the parameters and
    the optimizer's slots are float32: training, saving and loading are as ever. Backward passes may run outside of the
    block.

    Parameters
    ----------
    name : {"float32", "tf32", "bfloat16", "float16"}
        "float32" is what holds without the block. "tf32" leaves all numbers float32, and tensor cores see the first 11
        bits of what they multiply; backward passes are to be inside of the block too. "bfloat16" has the range of
        float32 and 8 bits of its precision; it needs the package ml-dtypes. "float16" has 11 bits, but gradients below
        6e-8 become 0 in it and numbers beyond 65504 infinite: train with a `LossScale` (`Trainer` does so by itself).

    Raises
    ------
    ArgumentError
        There is no such precision (`UnknownNameError`), or ml-dtypes is not installed.

    Notes
    -----
    Layers on the CPU raise `DeviceError` when they are called: their products are not faster in 16 bits.

    Source: P. Micikevicius et al. (2018), Mixed precision training, ICLR.

    Examples
    --------
    >>> with fc.use_precision("bfloat16"):
    ...     loss = fc.losses.cross_entropy(model(x), y)
    >>> loss.backward()
    """
    return Scope(_chosen, Precision(name, dtype_of(name)))


def known(name: str) -> str:
    """The name of a precision that can be used here.

    Raises
    ------
    ArgumentError
        As `use_precision`.
    """
    dtype_of(name)
    return name


def dtype_of(name: str) -> np.dtype[Any]:
    """The dtype of operands in a precision."""
    if not isinstance(name, str) or name not in PRECISIONS:
        unknown_name("precision", name, PRECISIONS)
    if name == TF32:
        return FLOAT32
    if name != BFLOAT16:
        return np.dtype(name)
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        raise ArgumentError(
            'Precision "bfloat16" needs a GPU, and the package ml-dtypes, which gives NumPy such numbers: pip install '
            "ml-dtypes."
        ) from None
    dtype: np.dtype[Any] = np.dtype(bfloat16)
    return dtype


def current_precision() -> str:
    """The precision that `use_precision` chose, else "float32"."""
    return _chosen.get().name


def is_mixed(dtype: np.dtype[Any]) -> bool:
    """Whether kernels of `dtype` are multiplied in fewer bits here."""
    return dtype == FLOAT32 and _chosen.get() != DEFAULT


def operand_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What a kernel of `dtype` is multiplied in here: the chosen precision for float32, else `dtype` itself."""
    return _chosen.get().dtype if dtype == FLOAT32 else dtype


def widened(x: Any) -> Any:
    """A tensor or array as losses and metrics take it: the 16-bit output of mixed precision as float32.

    float16 is taken for such an output in mixed precision only: layers may be of float16 themselves.
    """
    is_output = x.dtype.kind == "V" or (x.dtype == np.float16 and _chosen.get().dtype != FLOAT32)
    return x.astype(FLOAT32) if is_output else x
