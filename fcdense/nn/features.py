"""`FeatureLayer`: base of the layers whose parameters are as long as the last axis of the input, the features."""

from __future__ import annotations

import threading
import warnings
from abc import abstractmethod
from contextvars import ContextVar
from typing import Any

import numpy as np

from fcdense.arguments import integer
from fcdense.backends.recording import is_recording
from fcdense.conversion import float_dtype
from fcdense.errors import CaptureError, DeviceError, DTypeWarning, ShapeError
from fcdense.nn.input import device_of
from fcdense.nn.layer import Layer
from fcdense.parameter import Parameter
from fcdense.scope import Scope
from fcdense.tensor import Tensor, tensor

_deferred: ContextVar[bool] = ContextVar("fcdense_deferred", default=False)

_building = threading.RLock()
"""Held while a layer is built: several threads may be the first to call it."""


def unbuilt() -> Scope[bool]:
    """Layers made inside the `with` block draw no initial values, even where `in_features` is given.

    For a model whose values come from `load_state_dict`; otherwise its first call draws them.
    """
    return Scope(_deferred, True)


def is_deferred() -> bool:
    """Whether this runs inside `unbuilt`."""
    return _deferred.get()


class FeatureLayer(Layer):
    """A layer for inputs (..., I). Where `in_features` is None, the first input tells I and the parameters are built.

    The input is cast to the dtype of the layer: integers, booleans and float16 silently, other float dtypes with one
    `DTypeWarning` for each layer. Subclasses tell by `shapes` what they hold, the member whose first axis is I first,
    and by `initial` what it starts from.
    """

    def __init__(self, dtype: Any, in_features: Any) -> None:
        super().__init__()
        self.dtype = float_dtype(dtype)
        self._declared = None if in_features is None else integer(in_features, f"{self.label()}: in_features")
        self._has_warned = False

    @abstractmethod
    def shapes(self, in_features: int | None) -> dict[str, tuple[int | None, ...]]:
        """The shape of each parameter and buffer."""

    @abstractmethod
    def initial(self, name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """First values of a parameter or buffer."""

    def lazy_shape(self, name: str) -> tuple[int | None, ...] | None:
        return self.shapes(self._declared).get(name)

    @property
    def operand_dtype(self) -> np.dtype[Any]:
        """What the input is cast to: `dtype`, but for layers that multiply in mixed precision, where they can."""
        return self.dtype

    @property
    def in_features(self) -> int | None:
        """I, or None while it is not known."""
        main = self.main
        return self._declared if main is None or not _is_built(main) else main.shape[0]

    @property
    def main(self) -> Tensor | None:
        """The member whose first axis is I; None if there is none, or it is a buffer without a shape."""
        return next((self.__dict__[name] for name in self.shapes(None)), None)

    @property
    def is_built(self) -> bool:
        """Whether every parameter and buffer has its shape and values."""
        return all(_is_built(self.__dict__[name]) for name in self.shapes(None))

    def build(self, in_features: int) -> None:
        """Give first values to whatever has none yet.

        Raises
        ------
        CaptureError
            A step is recorded, which computes nothing.
        """
        if is_recording() and not self.is_built:
            raise CaptureError(
                f"{self.label()} has no parameters yet, and a step that is recorded cannot make them. Make the model "
                "outside of the step, and call it once before."
            )
        with _building:
            for name, shape in self.shapes(in_features).items():
                member = self.__dict__[name]
                if not _is_built(member):
                    values = self.initial(name, tuple(size or 0 for size in shape))
                    if isinstance(member, Parameter):
                        member.build(values)
                    else:
                        setattr(self, name, tensor(values, device=device_of(self)))

    def build_if_declared(self) -> None:
        """End of a subclass's `__init__`: build now where the size is given."""
        if self._declared is not None and not is_deferred():
            self.build(self._declared)

    def accept(self, x: Any) -> Tensor:
        """The input, checked and in the layer's dtype; the first one builds the parameters.

        Raises
        ------
        ShapeError
            x has no axis, or not I features, or 0 of them.
        DeviceError
            x is on another device than the parameters.
        ArgumentError
            x is no tensor, array or list.
        """
        self.expect_tensor(x)
        main = self.main
        if main is not None and x.device is not main.device and x.device != main.device:
            raise DeviceError(
                f"{self.label()}: x is on {x.device}, the parameters are on {main.device}. "
                f"Move one: x.to('{main.device}')."
            )
        dtype = self.operand_dtype
        if main is None or not self.is_built or not x.ndim or x.shape[-1] != main.shape[0]:
            self._check_features(x)
            self.build(x.shape[-1])
        return x if x.dtype == dtype else self._cast(x, dtype)

    def _check_features(self, x: Tensor) -> None:
        expected = self.in_features
        if not x.ndim:
            wanted = f"(..., {expected or 'features'})"
            raise ShapeError(f"{self.label()}: x is a single number (shape ()); expected {wanted}.")
        if expected is None:
            if not x.shape[-1]:
                raise ShapeError(f"{self.label()}: x {x.shape} has no features; its last axis must not be empty.")
        elif x.shape[-1] != expected:
            name, shape = next(iter(self.shapes(expected).items()), ("layer", (expected,)))
            raise ShapeError(
                f"{self.label()}: x has {x.shape[-1]} features, its {name} expects {expected} "
                f"(x {x.shape}, {name} {shape})."
            )

    def _cast(self, x: Tensor, dtype: np.dtype[Any]) -> Tensor:
        if x.dtype.kind == "f" and x.dtype not in (np.float16, self.dtype) and not self._has_warned:
            verb = "rounded" if x.dtype.itemsize > self.dtype.itemsize else "widened"
            warnings.warn(
                f"{self.label()}: x is {x.dtype} and is {verb} to {self.dtype} at every call (said once). Convert your "
                f"data, x.astype('{self.dtype}'), or make the layer with dtype='{x.dtype}'.",
                DTypeWarning,
                stacklevel=4,
            )
            self._has_warned = True
        return x.astype(dtype)


def _is_built(member: Tensor | None) -> bool:
    return member.is_built if isinstance(member, Parameter) else member is not None
