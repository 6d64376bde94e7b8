"""Flattening: all axes but the first ones become one."""

from __future__ import annotations

import math
from typing import ClassVar

from fcdense.arguments import integer
from fcdense.errors import ShapeError
from fcdense.nn import layer
from fcdense.tensor import Tensor


@layer.builtin
class Flatten(layer.Layer):
    """y of shape (B, ...) -> (B, I): the axes from `start_axis` on become one, in C order.

    Raises `ShapeError` on a call where x has fewer than `start_axis` axes.
    """

    arguments: ClassVar = {"start_axis": layer.PLAIN}

    def __init__(self, start_axis: int = 1) -> None:
        super().__init__()
        self.start_axis = integer(start_axis, "Flatten: start_axis", 0)

    def forward(self, x: Tensor) -> Tensor:
        """x in fewer axes."""
        self.expect_tensor(x)
        if x.ndim < self.start_axis:
            raise ShapeError(f"{self.label()}: x has shape {x.shape}; expected at least {self.start_axis} axes.")
        return x.reshape((*x.shape[: self.start_axis], math.prod(x.shape[self.start_axis :])))

    def extra_repr(self) -> str:
        return "" if self.start_axis == 1 else f"start_axis={self.start_axis}"
