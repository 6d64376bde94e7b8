"""Functions that NumPy lacks, or has only in an inaccurate form, for arrays, numbers, tensors and traced symbols alike.

Everything else is written with NumPy's own functions (`np.exp`, `np.where`, ...), which accept tensors and symbols too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from fcdense import algebra, emit
from fcdense.expression import Expr
from fcdense.program import Program, trace

__all__ = ["erf", "log_sigmoid", "logit", "ndtr", "sigmoid", "softplus"]


def call(program: Program, *operands: Any) -> Any:
    """Apply a one-output program to symbols, tensors, arrays or numbers, whichever the operands are."""
    for operand in operands:
        if isinstance(operand, Expr):
            return program(*operands)[0]
    for operand in operands:
        if hasattr(operand, "__fc_map__"):
            return operand.__fc_map__(program, operands)
    return emit.apply(program, *operands)


def elementwise(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make a function of a symbol callable with arrays, numbers and tensors."""
    program = trace(fn, 1)

    @wraps(fn)
    def function(x: Any) -> Any:
        return call(program, x)

    return function


@elementwise
def erf(x: Any) -> Any:
    """Error function, erf(x) = 2/sqrt(pi) * integral of exp(-t^2) from 0 to x.

    Within 2 units in the last place in float32, 3 in float64. erf(+-inf) = +-1, NaN stays NaN.

    Source: W. J. Cody (1969), Math. Comp. 23, 631 (float64); N. Juffa (2018), minimax fits for float32.
    """
    return algebra.erf(x)


@elementwise
def ndtr(x: Any) -> Any:
    """The distribution function of the standard normal distribution, Phi(x) = (1 + erf(x / sqrt(2))) / 2.

    Within 4 + x^2 / 2 units in the last place (float32, float64) for x < 0, where nothing cancels, and within 3 for
    x >= 0. ndtr(-inf) = 0, ndtr(inf) = 1, NaN stays NaN.
    """
    return algebra.ndtr(x)


@elementwise
def sigmoid(x: Any) -> Any:
    """sigma(x) = 1 / (1 + exp(-x)). No overflow warning for any x; sigma(-inf) = 0, sigma(inf) = 1, NaN stays NaN."""
    return algebra.sigmoid(x)


@elementwise
def softplus(x: Any) -> Any:
    """log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|)), accurate for every x. NaN stays NaN."""
    return algebra.softplus(x)


@elementwise
def log_sigmoid(x: Any) -> Any:
    """log(sigma(x)) = -softplus(-x), accurate where sigma(x) rounds to 0 or 1. NaN stays NaN."""
    return -algebra.softplus(-x)


@elementwise
def logit(p: Any) -> Any:
    """log(p / (1 - p)), the inverse of sigmoid; -inf at 0, inf at 1, NaN outside [0, 1]; NumPy warns as for log."""
    return np.log(p) - np.log1p(-p)
