"""A layer for each common activation; the equations and sources stand in `fcdense.activations`.

A `Dense` layer that is given its activation computes it in the same pass as the product; these layers make a pass of
their own.
"""

from __future__ import annotations

import math
import operator
from functools import cache
from typing import Any, ClassVar

import numpy as np

from fcdense import ops
from fcdense.activations import Activation as Function
from fcdense.arguments import real
from fcdense.errors import ArgumentError
from fcdense.nn import layer
from fcdense.nn.activation import ActivationLayer
from fcdense.program import trace
from fcdense.tensor import Tensor


class _Named(ActivationLayer):
    """A layer for one activation of the table."""

    key: ClassVar[str]

    def __init__(self) -> None:
        super().__init__(self.key)


@layer.builtin
class ReLU(_Named):
    """max(x, 0)."""

    key = "relu"


@layer.builtin
class ReLU6(_Named):
    """min(max(x, 0), 6)."""

    key = "relu6"


@layer.builtin
class SELU(_Named):
    """Self-normalizing exponential linear unit."""

    key = "selu"


@layer.builtin
class Sigmoid(_Named):
    """1 / (1 + exp(-x))."""

    key = "sigmoid"


@layer.builtin
class HardSigmoid(_Named):
    """min(max(x + 3, 0), 6) / 6."""

    key = "hard_sigmoid"


@layer.builtin
class LogSigmoid(_Named):
    """log(1 / (1 + exp(-x)))."""

    key = "log_sigmoid"


@layer.builtin
class Tanh(_Named):
    """tanh(x)."""

    key = "tanh"


@layer.builtin
class HardTanh(_Named):
    """min(max(x, -1), 1)."""

    key = "hard_tanh"


@layer.builtin
class TanhShrink(_Named):
    """x - tanh(x)."""

    key = "tanh_shrink"


@layer.builtin
class Softplus(_Named):
    """log(1 + exp(x))."""

    key = "softplus"


@layer.builtin
class Squareplus(_Named):
    """(x + sqrt(x^2 + 4)) / 2."""

    key = "squareplus"


@layer.builtin
class Softsign(_Named):
    """x / (1 + |x|)."""

    key = "softsign"


@layer.builtin
class SiLU(_Named):
    """x sigmoid(x), also called swish."""

    key = "silu"


@layer.builtin
class HardSiLU(_Named):
    """x min(max(x + 3, 0), 6) / 6, also called hard swish."""

    key = "hard_silu"


@layer.builtin
class Mish(_Named):
    """x tanh(softplus(x))."""

    key = "mish"


@layer.builtin
class Sine(_Named):
    """sin(x)."""

    key = "sine"


# with a parameter of their own; the default value gives the activation of the table


@layer.builtin
class LeakyReLU(ActivationLayer):
    """x for x > 0, else slope * x; the derivative at 0 is `slope`."""

    arguments: ClassVar = {"slope": layer.PLAIN}

    def __init__(self, slope: float = 0.01) -> None:
        self.slope = real(slope, "LeakyReLU: slope", math.isfinite, "a finite number")
        super().__init__("leaky_relu" if self.slope == 0.01 else _leaky_relu(self.slope))

    def extra_repr(self) -> str:
        return f"slope={self.slope:g}"


@layer.builtin
class ELU(ActivationLayer):
    """x for x > 0, else alpha * (exp(x) - 1); the derivative at 0 is `alpha`."""

    arguments: ClassVar = {"alpha": layer.PLAIN}

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = real(alpha, "ELU: alpha", math.isfinite, "a finite number")
        super().__init__("elu" if self.alpha == 1.0 else _elu(self.alpha))

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}"


@layer.builtin
class CELU(ActivationLayer):
    """x for x > 0, else alpha * (exp(x / alpha) - 1); the derivative at 0 is 1."""

    arguments: ClassVar = {"alpha": layer.PLAIN}

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = real(alpha, "CELU: alpha", lambda a: 0.0 < a < math.inf, "a positive number")
        super().__init__("celu" if self.alpha == 1.0 else _celu(self.alpha))

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}"


@layer.builtin
class GELU(ActivationLayer):
    """x Phi(x), exact, or with ``approximate="tanh"`` as BERT and GPT-2 have it."""

    arguments: ClassVar = {"approximate": layer.PLAIN}

    def __init__(self, approximate: str = "none") -> None:
        if approximate not in ("none", "tanh"):
            raise ArgumentError(f"GELU: approximate is {approximate!r}; expected 'none' or 'tanh'.")
        self.approximate = approximate
        super().__init__("gelu" if approximate == "none" else "gelu_tanh")

    def extra_repr(self) -> str:
        return f"approximate='{self.approximate}'"


@cache
def _leaky_relu(slope: float) -> Function:
    return Function("leaky_relu", trace(lambda x: np.where(x > 0.0, x, slope * x), 1, name="leaky_relu"))


@cache
def _elu(alpha: float) -> Function:
    def value(x: Any) -> Any:
        return np.maximum(x, 0.0) + alpha * np.expm1(np.minimum(x, 0.0))

    def slope(x: Any) -> Any:
        return np.where(x > 0.0, 1.0, alpha * np.exp(np.minimum(x, 0.0)))

    return Function("elu", trace(value, 1, name="elu"), trace(slope, 1, name="elu_derivative"))


@cache
def _celu(alpha: float) -> Function:
    def value(x: Any) -> Any:
        return np.maximum(x, 0.0) + alpha * np.expm1(np.minimum(x, 0.0) / alpha)

    def slope(x: Any) -> Any:
        return np.exp(np.minimum(x, 0.0) / alpha)

    return Function("celu", trace(value, 1, name="celu"), trace(slope, 1, name="celu_derivative"))


class _Rows(ActivationLayer):
    """Base of the activations along one axis."""

    key: ClassVar[str]
    arguments: ClassVar = {"axis": layer.PLAIN}

    def __init__(self, axis: int = -1) -> None:
        super().__init__(self.key)
        try:
            self.axis = operator.index(axis)
        except TypeError:
            raise ArgumentError(f"{type(self).__name__}: axis is {axis!r}; expected an integer.") from None

    def forward(self, x: Tensor) -> Tensor:
        return ops.softmax(x, self.axis) if self.key == "softmax" else ops.log_softmax(x, self.axis)

    def extra_repr(self) -> str:
        return f"axis={self.axis}"


@layer.builtin
class Softmax(_Rows):
    """exp(x) / sum exp(x) along `axis`."""

    key = "softmax"


@layer.builtin
class LogSoftmax(_Rows):
    """log softmax(x) along `axis`, without the rounding of the two steps."""

    key = "log_softmax"
