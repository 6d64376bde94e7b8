"""The table of activations. To add one: write it here as a function of x, and it exists on every backend.

Each is a plain function, traced once at import. f' is derived from the trace, except where a form of its own is more
accurate or cheaper (`derivative=`). Where f' does not exist, the convention is named. NaN stays NaN in every f, and in
every f' that is not constant; no finite x gives NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sqrt
from typing import Any

import numpy as np

from fcdense import math
from fcdense.activation import Activation, Array, RowActivation, activation, get, names, register
from fcdense.program import trace

__all__ = ["Activation", "RowActivation", "activation", "get", "names"]

Function = Callable[[Any], Any]


def _builtin(*aliases: str, derivative: Function | None = None) -> Callable[[Function], Activation]:
    """Trace and register, without the checks of `@activation`: the tests of this table are stricter."""

    def define(fn: Function) -> Activation:
        slope = trace(derivative, 1, name=f"{fn.__name__}_derivative") if derivative else None
        made = Activation(fn.__name__, trace(fn, 1), slope, doc=fn.__doc__)
        register(made, *aliases)
        return made

    return define


def _rows(fn: Callable[[Array], Array]) -> RowActivation:
    made = RowActivation(fn.__name__, fn)
    register(made)
    return made


# ---- piecewise linear ------------------------------------------------------------------------------------------------


@_builtin()
def linear(x: Any) -> Any:
    """f(x) = x."""
    return x


@_builtin()
def relu(x: Any) -> Any:
    """f(x) = max(x, 0); f'(0) = 0.

    Source: V. Nair, G. Hinton (2010), Rectified linear units improve restricted Boltzmann machines, ICML.
    """
    return np.maximum(x, 0.0)


@_builtin()
def relu6(x: Any) -> Any:
    """f(x) = min(max(x, 0), 6); f'(0) = f'(6) = 0.

    Source: A. Krizhevsky (2010), Convolutional deep belief networks on CIFAR-10.
    """
    return np.clip(x, 0.0, 6.0)


@_builtin()
def leaky_relu(x: Any) -> Any:
    """f(x) = x for x > 0, else 0.01 x; f'(0) = 0.01.

    Source: A. Maas, A. Hannun, A. Ng (2013), Rectifier nonlinearities improve neural network acoustic models, ICML.
    """
    return np.where(x > 0.0, x, 0.01 * x)


@_builtin()
def hard_tanh(x: Any) -> Any:
    """f(x) = min(max(x, -1), 1); f'(-1) = f'(1) = 0.

    Source: R. Collobert (2004), Large scale machine learning, PhD thesis, Université de Paris VI.
    """
    return np.clip(x, -1.0, 1.0)


@_builtin()
def hard_sigmoid(x: Any) -> Any:
    """f(x) = min(max(x + 3, 0), 6) / 6; f'(-3) = f'(3) = 0.

    Source: A. Howard et al. (2019), Searching for MobileNetV3, ICCV, equation in section 5.2.
    """
    return np.clip(x + 3.0, 0.0, 6.0) / 6.0


@_builtin()
def hard_silu(x: Any) -> Any:
    """f(x) = x min(max(x + 3, 0), 6) / 6; f'(-3) = 0, f'(3) = 1.

    Source: A. Howard et al. (2019), Searching for MobileNetV3, ICCV, section 5.2 (there: h-swish).
    """
    return x * (np.clip(x + 3.0, 0.0, 6.0) / 6.0)


# ---- exponential linear ----------------------------------------------------------------------------------------------

SELU_ALPHA = 1.6732632423543772848
SELU_SCALE = 1.0507009873554804934


# max(x, 0) + expm1(min(x, 0)) costs less than a choice of branches; at 0 the derivative is that of the left branch.
@_builtin(derivative=lambda x: np.exp(np.minimum(x, 0.0)))
def elu(x: Any) -> Any:
    """f(x) = x for x > 0, else exp(x) - 1; f'(0) = 1.

    Source: D. Clevert, T. Unterthiner, S. Hochreiter (2016), Fast and accurate deep network learning by exponential
    linear units, ICLR, equation 15, alpha = 1.
    """
    return np.maximum(x, 0.0) + np.expm1(np.minimum(x, 0.0))


@_builtin(derivative=lambda x: np.exp(np.minimum(x, 0.0)))
def celu(x: Any) -> Any:
    """f(x) = max(x, 0) + min(a (exp(x / a) - 1), 0) with a = 1, where it equals ELU; f'(0) = 1.

    Source: J. Barron (2017), Continuously differentiable exponential linear units, equation 2.
    """
    return np.maximum(x, 0.0) + np.expm1(np.minimum(x, 0.0))


@_builtin(derivative=lambda x: np.where(x > 0.0, SELU_SCALE, SELU_SCALE * SELU_ALPHA * np.exp(np.minimum(x, 0.0))))
def selu(x: Any) -> Any:
    """f(x) = s x for x > 0, else s a (exp(x) - 1), with s = 1.0507..., a = 1.6732...; f'(0) = s a.

    Source: G. Klambauer et al. (2017), Self-normalizing neural networks, NeurIPS, equation 2.
    """
    return SELU_SCALE * np.maximum(x, 0.0) + SELU_SCALE * SELU_ALPHA * np.expm1(np.minimum(x, 0.0))


@_builtin()
def exponential(x: Any) -> Any:
    """f(x) = exp(x). Overflows to inf."""
    return np.exp(x)


# ---- sigmoidal -------------------------------------------------------------------------------------------------------


@_builtin()
def sigmoid(x: Any) -> Any:
    """f(x) = 1 / (1 + exp(-x))."""
    return math.sigmoid(x)


@_builtin()
def log_sigmoid(x: Any) -> Any:
    """f(x) = log(1 / (1 + exp(-x))) = min(x, 0) - log1p(exp(-|x|))."""
    return math.log_sigmoid(x)


@_builtin()
def tanh(x: Any) -> Any:
    """f(x) = tanh(x) = (exp(x) - exp(-x)) / (exp(x) + exp(-x))."""
    return np.tanh(x)


@_builtin()
def tanh_shrink(x: Any) -> Any:
    """f(x) = x - tanh(x)."""
    return x - np.tanh(x)


@_builtin()
def softsign(x: Any) -> Any:
    """f(x) = x / (1 + |x|).

    Source: J. Bergstra et al. (2009), Quadratic polynomials learn better image features, technical report 1337.
    """
    return x / (1.0 + np.abs(x))


# ---- smooth rectifiers -----------------------------------------------------------------------------------------------


@_builtin()
def softplus(x: Any) -> Any:
    """f(x) = log(1 + exp(x)).

    Source: C. Dugas et al. (2001), Incorporating second-order functional knowledge for better option pricing, NeurIPS.
    """
    return math.softplus(x)


def _squareplus_root(x: Any) -> tuple[Any, Any]:
    """sqrt(x^2 + 4) without overflow of the square, and |x|; np.hypot is slower by a factor of ten."""
    size = np.abs(x)
    larger, smaller = np.maximum(size, 2.0), np.minimum(size, 2.0)
    ratio = smaller / larger
    return larger * np.sqrt(1.0 + ratio * ratio), size


@_builtin(derivative=lambda x: 0.5 + 0.5 * (x / _squareplus_root(x)[0]))
def squareplus(x: Any) -> Any:
    """f(x) = (x + sqrt(x^2 + b)) / 2 with b = 4.

    Computed as max(x, 0) + f(-|x|) with f(-|x|) = 2 / (|x| + sqrt(x^2 + 4)), where nothing cancels.

    Source: J. Barron (2021), Squareplus: a softplus-like algebraic rectifier, equation 1.
    """
    root, size = _squareplus_root(x)
    return np.maximum(x, 0.0) + 2.0 / (root + size)


@_builtin()
def gelu(x: Any) -> Any:
    """f(x) = x Phi(x) = x (1 + erf(x / sqrt(2))) / 2, with Phi = `fcdense.math.ndtr`.

    Source: D. Hendrycks, K. Gimpel (2016), Gaussian error linear units, equation in section 2.
    """
    return x * math.ndtr(x)


_TANH_1 = 2.0 * sqrt(2.0 / pi)
_TANH_3 = 0.044715 * _TANH_1


def _gelu_tanh_slope(x: Any) -> Any:
    z = x * (_TANH_1 + _TANH_3 * x * x)
    p, q = math.sigmoid(z), math.sigmoid(-z)  # 1 - p would lose q for large x
    inside = np.clip(x, -32.0, 32.0)  # p q is 0 outside, also in float64; unclipped, 0 * inf
    return p + x * (p * q) * (_TANH_1 + 3.0 * _TANH_3 * inside * inside)


@_builtin(derivative=_gelu_tanh_slope)
def gelu_tanh(x: Any) -> Any:
    """f(x) = x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, the approximation used by BERT and GPT-2.

    Computed as x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)), the same function without cancellation.

    Source: D. Hendrycks, K. Gimpel (2016), Gaussian error linear units, section 2.
    """
    return x * math.sigmoid(x * (_TANH_1 + _TANH_3 * x * x))


def _silu_slope(x: Any) -> Any:
    p = math.sigmoid(x)
    return p + x * p * math.sigmoid(-x)  # x (1 - p) would have an error of |x| eps


@_builtin("swish", derivative=_silu_slope)
def silu(x: Any) -> Any:
    """f(x) = x / (1 + exp(-x)). Also named "swish".

    Source: S. Elfwing, E. Uchibe, K. Doya (2018), Sigmoid-weighted linear units, Neural Networks 107, equation 5.
    """
    return x * math.sigmoid(x)


def _mish_tanh(x: Any) -> tuple[Any, Any, Any]:
    """tanh(softplus(x)) = (1 - q^2) / (1 + q^2) with q = sigmoid(-x); 1 - q^2 = p (1 + q) does not cancel."""
    p, q = math.sigmoid(x), math.sigmoid(-x)
    return p * (1.0 + q) / (1.0 + q * q), p, q * q


def _mish_slope(x: Any) -> Any:
    t, p, w = _mish_tanh(x)
    return t + x * p * (4.0 * w / ((1.0 + w) * (1.0 + w)))


@_builtin(derivative=_mish_slope)
def mish(x: Any) -> Any:
    """f(x) = x tanh(log(1 + exp(x))).

    Source: D. Misra (2020), Mish: a self regularized non-monotonic activation function, BMVC, equation 1.
    """
    return x * _mish_tanh(x)[0]


@_builtin()
def sine(x: Any) -> Any:
    """f(x) = sin(x).

    Source: V. Sitzmann et al. (2020), Implicit neural representations with periodic activation functions, NeurIPS.
    """
    return np.sin(x)


# ---- rows ------------------------------------------------------------------------------------------------------------


def _exps(x: Array) -> tuple[Array, Array]:
    """x minus its row's maximum, and the exponentials of that."""
    with np.errstate(invalid="ignore"):  # -inf - -inf, and inf - inf, are the documented NaN
        shifted: Array = x - x.max(axis=-1, keepdims=True, initial=-np.inf)
    return shifted, np.exp(shifted)


@_rows
def softmax(x: Array) -> Array:
    """y_k = exp(x_k) / sum_j exp(x_j) over the last axis, after subtracting the row's maximum.

    An entry of -inf gives 0. A row that is -inf everywhere, or has NaN or +inf, has no defined result: NaN.
    """
    exps = _exps(x)[1]
    y: Array = exps / exps.sum(axis=-1, keepdims=True)
    return y


@_rows
def log_softmax(x: Array) -> Array:
    """y_k = x_k - log sum_j exp(x_j) over the last axis, after subtracting the row's maximum.

    An entry of -inf gives -inf. A row that is -inf everywhere, or has NaN or +inf, has no defined result: NaN.
    """
    shifted, exps = _exps(x)
    y: Array = shifted - np.log(exps.sum(axis=-1, keepdims=True))
    return y
