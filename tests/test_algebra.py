"""Simplification: what is rewritten keeps its value, and what must not be dropped stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fcdense import algebra
from fcdense.expression import Expr, array_var, const, evaluate, scalar_var

X, Y, S = array_var(0), array_var(1), scalar_var(0)


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda x: x + 0, X),
        (lambda x: 0 + x, X),
        (lambda x: x - 0, X),
        (lambda x: x * 1, X),
        (lambda x: 1 * x, X),
        (lambda x: x / 1, X),
        (lambda x: np.negative(-x), X),
        (lambda x: 1 - (1 - x), X),
        (lambda x: x * -1, -X),
        (lambda x: 0 - x, -X),
        (lambda x: x + -Y, X - Y),
        (lambda x: -(x - Y), Y - X),
        (lambda x: (-x) * Y, -(X * Y)),
        (lambda x: x / 2, X * 0.5),
        (lambda x: 2 * (x * 3) * 0.5, X * 3),
        (lambda x: x + x, 2 * X),
        (lambda x: abs(-x), abs(X)),
        (lambda x: np.maximum(x, x), X),
        (lambda x: np.clip(x, -np.inf, np.inf), X),
        (lambda x: x * (1 / Y), X / Y),
        (lambda x: np.where(x > 0, Y, Y), Y),
        (lambda x: np.where(x > 0, np.where(x > 0, x, 7), Y), np.where(X > 0, X, Y)),
        (lambda x: np.where(True, x, Y), X),
        (lambda x: x + const(2) * 3 - 6, X + 6 - 6),
        (lambda x: x * np.exp(const(0)), X),
        (lambda x: ~~(x > 0), X > 0),
        (lambda x: (x > 0) & (x > 0), X > 0),
        (lambda x: (x > 0) | True, const(True)),
    ],
)
def test_simplified(fn: Callable[[Expr], Any], expected: Expr) -> None:
    assert fn(X) is expected


@pytest.mark.parametrize("fn", [lambda x: x * 0, lambda x: x - x, lambda x: x / x, lambda x: x == x])
def test_kept_because_of_nan_and_infinity(fn: Callable[[Any], Any]) -> None:
    x = np.array([np.nan, np.inf, 1.0])
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(evaluate([fn(X)], [x])[0], fn(x))


@pytest.mark.parametrize(
    "fn",
    [
        lambda v: 1 / (1 + np.exp(-v)),
        lambda v: 1 / (np.exp(-v) + 1),
        lambda v: np.reciprocal(1 + np.exp(-v)),
        lambda v: (1 + np.exp(-v)) ** -1,
        lambda v: np.exp(v) / (1 + np.exp(v)),
    ],
)
def test_sigmoid_is_recognized(fn: Callable[[Any], Any]) -> None:
    assert fn(X) is algebra.sigmoid(X)
    assert fn(2 * X + Y) is algebra.sigmoid(2 * X + Y)


@pytest.mark.parametrize(
    "fn", [lambda v: np.log(1 + np.exp(v)), lambda v: np.log1p(np.exp(v)), lambda v: np.logaddexp(0, v)]
)
def test_softplus_is_recognized(fn: Callable[[Any], Any]) -> None:
    assert fn(X) is algebra.softplus(X)
    assert fn(-X) is algebra.softplus(-X)


def test_log_of_sigmoid() -> None:
    assert np.log(1 / (1 + np.exp(-X))) is -algebra.softplus(-X)
    assert X / (1 + np.exp(-X)) is X * algebra.sigmoid(X)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x, c: np.where(x > c, x, c),
        lambda x, c: np.where(x >= c, x, c),
        lambda x, c: np.where(x < c, c, x),
        lambda x, c: np.where(x <= c, c, x),
        lambda x, c: np.where(x < c, x, c),
        lambda x, c: np.where(x <= c, x, c),
        lambda x, c: np.where(x > c, c, x),
        lambda x, c: np.where(x >= c, c, x),
        lambda x, c: np.where(c > x, x, c),
        lambda x, c: x * (x >= 0) + c,
        lambda x, c: x * (x <= 0) + c,
        lambda x, c: (abs(x) + x) / 2 + c,
    ],
)
@pytest.mark.parametrize("constant", [0.0, 1.5])
def test_choices_keep_their_values(fn: Callable[[Any, Any], Any], constant: float) -> None:
    x = np.array([-2.0, -0.0, 0.0, 1.5, 3.0, np.nan])
    expected = fn(x, constant)
    np.testing.assert_array_equal(evaluate([fn(X, constant)], [x])[0], expected)
    np.testing.assert_array_equal(evaluate([fn(X, S)], [x], [constant])[0], expected)


def test_constants_that_are_not_finite_are_not_folded() -> None:
    assert (const(1) / const(0)).op == "divide"
    assert np.log(const(0.0)).op == "log"
    assert (const(3) / const(4)).value == 0.75
