"""Dropout."""

from __future__ import annotations

from typing import ClassVar

from fcdense import ops
from fcdense.arguments import real
from fcdense.nn import layer
from fcdense.tensor import Tensor


@layer.builtin
class Dropout(layer.Layer):
    """In training each element is 0 with probability `rate`, else divided by 1 - rate; in evaluation y = x.

    The numbers come from the state that `fc.manual_seed` seeds. `rate` is at least 0 and below 1.

    Source: N. Srivastava et al. (2014), Dropout: a simple way to prevent neural networks from overfitting, JMLR 15.
    """

    arguments: ClassVar = {"rate": layer.PLAIN}

    def __init__(self, rate: float = 0.5) -> None:
        super().__init__()
        self.rate = real(rate, "Dropout: rate", lambda r: 0.0 <= r < 1.0, "a number from 0 up to, but not including, 1")

    def forward(self, x: Tensor) -> Tensor:
        """x with elements dropped, in training."""
        self.expect_tensor(x)
        return ops.dropout(x, self.rate) if self.training else x

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"
