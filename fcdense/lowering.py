"""Composite functions as expressions of plain ones, free of branches, accurate in the dtype they are computed in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fcdense.algebra import (
    absolute,
    add,
    exp,
    gaussian,
    indicator,
    maximum,
    minimum,
    multiply,
    negative,
    subtract,
    where,
)
from fcdense.symbol import Expr, const, is_const, node, topological

ONE = const(1.0)


def lower(exprs: Sequence[Expr], dtype: np.dtype[Any]) -> tuple[Expr, ...]:
    """`exprs` in plain arithmetic and exponentials of float32 or float64, and with fewer choices.

    Results are built node by node, since the rules of `algebra.py` would turn 1/(1 + exp(-v)) back into sigmoid(v).
    """
    wide = _RULES | _FLOAT64_RULES
    narrow = _RULES | _FLOAT32_RULES if dtype == np.float32 else wide
    new: dict[Expr, Expr] = {}
    for e in topological(exprs):
        args = tuple(new[a] for a in e.args)
        rules = wide if e.uniform else narrow  # what depends on scalars alone is computed in float64
        if e.op in rules:
            new[e] = rules[e.op](*args)
        else:
            new[e] = node(e.op, *args) if args else e
    return tuple(new[e] for e in exprs)


def _sigmoid(x: Expr) -> Expr:
    # exp(-x) may overflow: 1/(1 + inf) = 0 is the right limit, and cheaper than two branches.
    return node("divide", ONE, add(exp(negative(x)), 1.0))


def _softplus(x: Expr) -> Expr:
    return add(maximum(x, 0.0), node("log1p", exp(negative(absolute(x)))))


def _where(c: Expr, a: Expr, b: Expr) -> Expr:
    """The same values by maximum and minimum, which propagate NaN and cost a third of a masked copy, where possible."""
    if c.op == "equal" and c.args[0] is c.args[1] is b:  # NaN where b is NaN
        return maximum(a, minimum(b, -math.inf))
    leaky = c.op == "greater" and c.args[0] is a and is_const(c.args[1], 0.0) and b.op == "multiply" and b.args[0] is a
    if leaky and b.args[1].op == "const" and 0.0 < b.args[1].value <= 1.0:
        return maximum(a, b)
    if a.op == b.op == "const" and math.inf > a.value > b.value >= 0.0 and not c.uniform:
        return maximum(multiply(indicator(c), a), b)
    return node("where", c, a, b)


def _sign(x: Expr, huge: float) -> Expr:
    """Any x but 0, denormal numbers too, times huge^2 is beyond +-1. np.sign takes ten times longer on random signs."""
    return _clip(multiply(multiply(x, huge), huge), 1.0)


def _clip(x: Expr, bound: float) -> Expr:
    return minimum(maximum(x, -bound), bound)


def _horner(x: Expr, coefficients: Sequence[float]) -> Expr:
    """The polynomial with the highest power first."""
    total = const(coefficients[0])
    for c in coefficients[1:]:
        total = add(multiply(total, x), c)
    return total


def _erf_float32(x: Expr) -> Expr:
    """x + x P(x^2) for |x| < 0.9277, else sign(x) (1 - exp(-Q(|x|))); minimax fits of N. Juffa (2018)."""
    x = _clip(x, 4.0)  # erf(4) rounds to 1, and Q is fitted up to there
    t = absolute(x)
    near = (-5.96761703e-4, 4.99119423e-3, -2.67681349e-2, 1.12819925e-1, -3.76125336e-1, 1.28379166e-1)
    far = (-1.72853470e-5, 3.83197126e-4, -3.88396438e-3, 2.42546219e-2, -1.06777877e-1, -6.34846687e-1, -1.28717512e-1)
    inner = add(x, multiply(x, _horner(multiply(t, t), near)))
    outer = subtract(1.0, exp(subtract(multiply(t, _horner(t, far)), t)))
    return where(node("greater", t, const(0.927734375)), multiply(outer, _clip(add(x, x), 1.0)), inner)


def _erf_float64(x: Expr) -> Expr:
    """W. J. Cody (1969), Rational Chebyshev approximations for the error function, Math. Comp. 23, in two pieces."""
    x = _clip(x, 6.0)  # erf(6) rounds to 1
    t = absolute(x)
    s = multiply(t, t)
    a = (
        1.85777706184603153e-1,
        3.16112374387056560e0,
        1.13864154151050156e2,
        3.77485237685302021e2,
        3.20937758913846947e3,
    )
    b = (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3)
    c = (
        *(2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594e0, 6.61191906371416295e1),
        *(2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3),
        1.23033935479799725e3,
    )
    d = (
        *(1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3),
        *(3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3),
    )
    inner = multiply(x, node("divide", _horner(s, a), _horner(s, b)))
    outer = subtract(1.0, multiply(exp(negative(s)), node("divide", _horner(t, c), _horner(t, d))))
    sign = _clip(multiply(x, 4.0), 1.0)  # of |x| > 0.46875
    return where(node("greater", t, const(0.46875)), multiply(outer, sign), inner)


def _ndtr(x: Expr, numerator: Sequence[float], denominator: Sequence[float], reach: float) -> Expr:
    """exp(-x^2 / 2) N(|x|) / D(|x|) for x < 0, up to `reach`, beyond which it is 0; 1 minus that for x > 0.

    N / D is the minimax fit of exp(t^2 / 2) ndtr(-t), of relative error 6e-9 and 2e-17 (Remez's algorithm). All
    coefficients are positive, so that nothing cancels. The exponential is that of the derivative.
    """
    t = minimum(absolute(x), reach)
    tail = multiply(gaussian(x), node("divide", _horner(t, numerator), _horner(t, denominator)))
    return where(node("greater", x, const(0.0)), subtract(1.0, tail), tail)


def _ndtr_float32(x: Expr) -> Expr:
    n = (4.116335664e-3, 4.063339717e-2, 1.832356311e-1, 4.382955957e-1, 5.00000003e-1)
    d = (1.031800362e-2, 1.018592691e-1, 4.694719361e-1, 1.202505157, 1.674476173, 1.0)
    return _ndtr(x, n, d, 14.5)


def _ndtr_float64(x: Expr) -> Expr:
    n = (
        *(1.59498211017688203e-7, 5.27726782534229713e-6, 8.46180471640157747e-5, 8.59448501544931559e-4),
        *(6.09541618437129004e-3, 3.14690246986593918e-2, 1.19747709823173606e-1, 3.32355352890624542e-1),
        *(6.47345945894504997e-1, 8.07339089012587063e-1, 0.5),
    )
    d = (
        *(3.99802725489666301e-7, 1.32281487438787138e-5, 2.12505792283161869e-4, 2.16754606378254338e-3),
        *(1.5490248917424431e-2, 8.10090093168482278e-2, 3.15021709538465116e-1, 9.07796379479844921e-1),
        *(1.89434838930364271, 2.71963845306818565, 2.41256273882803926, 1.0),
    )
    return _ndtr(x, n, d, 39.0)


_RULES: dict[str, Callable[..., Expr]] = {"sigmoid": _sigmoid, "softplus": _softplus, "where": _where}
_FLOAT32_RULES: dict[str, Callable[..., Expr]] = {
    "erf": _erf_float32,
    "ndtr": _ndtr_float32,
    "sign": lambda x: _sign(x, 2.0**127),
}
_FLOAT64_RULES: dict[str, Callable[..., Expr]] = {
    "erf": _erf_float64,
    "ndtr": _ndtr_float64,
    "sign": lambda x: _sign(x, 2.0**1023),
}
