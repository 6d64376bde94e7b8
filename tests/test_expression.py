"""Derivatives, evaluation, substitution and data of expressions."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fcdense import algebra
from fcdense.errors import FormatError
from fcdense.expression import array_var, const, derive, evaluate, from_data, scalar_var, substitute, to_data, variables

X, Y, S = array_var(0), array_var(1), scalar_var(0)
Function = Callable[..., Any]


def value(expr: Any, *arrays: Any, scalars: tuple[float, ...] = ()) -> np.ndarray[Any, Any]:
    return evaluate([expr], [np.asarray(a, np.float64) for a in arrays], scalars)[0]


SMOOTH: list[Function] = [
    lambda x, y: x * y + x - 2 * y,
    lambda x, y: x / (y * y + 1),
    lambda x, y: (x * x + 1) / (y * y + x * x + 2),
    lambda x, y: -x * np.exp(y),
    lambda x, y: (x * x + 0.5) ** y,
    lambda x, y: np.exp(x * 0.3) ** 2.5 + y**3 + y**4 + (y * y + 1) ** -1 + 2.0**x,
    lambda x, y: np.log(x * x + 1) + np.log1p(y * y) + np.sqrt(x * x + y * y + 1) + np.expm1(x * y * 0.1),
    lambda x, y: np.tanh(x) * np.sinh(y) + np.cosh(x * y * 0.2),
    lambda x, y: np.sin(x) * np.cos(y) + np.arctan(x * y),
    lambda x, y: np.hypot(x, y) + np.hypot(x, 2.0),
    lambda x, y: abs(x) * y + np.sign(x) * y * y,
    lambda x, y: algebra.erf(x * y) + algebra.sigmoid(x - y) + algebra.softplus(x * y),
    lambda x, y: np.maximum(x, y) * np.minimum(x * x, y) + np.maximum(x, 0.3) + np.minimum(0.2, y),
    lambda x, y: np.where(x > y, x * x, np.exp(y)) + (x > 0) * y + np.clip(x, -1, y),
    lambda x, y: np.where(x > 0, np.where(y > 0, x * y, x), np.where(x > -1, y, x * x)),
    lambda x, y: x / (1 + abs(x)) + np.logaddexp(x, y) + np.reciprocal(x * x + 1),
]


@pytest.mark.parametrize("number", range(len(SMOOTH)))
def test_derivative_against_central_differences(rng: np.random.Generator, number: int) -> None:
    e = SMOOTH[number](X, Y)
    x, y = rng.normal(size=(2, 400))
    h = 1e-6
    for var, dx, dy in ((X, h, 0.0), (Y, 0.0, h)):
        numeric = (value(e, x + dx, y + dy) - value(e, x - dx, y - dy)) / (2 * h)
        np.testing.assert_allclose(value(derive(e, var), x, y), numeric, rtol=1e-6, atol=1e-7)


def test_derivative_by_a_scalar() -> None:
    e = np.exp(X * S) + S * S
    np.testing.assert_allclose(value(derive(e, S), [1.0, 2.0], scalars=(0.5,)), [np.exp(0.5) + 1, 2 * np.e + 1])


RELUS: list[Function] = [
    lambda x: np.maximum(x, 0),
    lambda x: np.maximum(0, x),
    lambda x: np.where(x > 0, x, 0),
    lambda x: np.where(x >= 0, x, 0),
    lambda x: np.where(x < 0, 0, x),
    lambda x: np.where(x <= 0, 0, x),
    lambda x: x * (x > 0),
    lambda x: x * (x >= 0),
    lambda x: (x >= 0) * x,
    lambda x: np.clip(x, 0, None),
    lambda x: np.clip(x, 0, np.inf),
    lambda x: (abs(x) + x) / 2,
    lambda x: 0.5 * (x + np.abs(x)),
    lambda x: -np.minimum(-x, 0),
    lambda x: np.maximum(x, S),
]


@pytest.mark.parametrize("number", range(len(RELUS)))
def test_relu_has_slope_0_at_0_however_written(number: int) -> None:
    slope = derive(RELUS[number](X), X)
    np.testing.assert_array_equal(value(slope, [-1.0, -0.0, 0.0, 1.0], scalars=(0.0,)), [0, 0, 0, 1])


@pytest.mark.parametrize(
    ("fn", "at", "slope"),
    [
        (lambda x: abs(x), 0.0, 0.0),
        (lambda x: np.sign(x), 0.0, 0.0),
        (lambda x: np.minimum(x, 2), 2.0, 0.0),
        (lambda x: np.clip(x, -1, 1), 1.0, 0.0),
        (lambda x: np.clip(x, -1, 1), -1.0, 0.0),
        (lambda x: np.where(x > 0, x, 0.01 * x), 0.0, 0.01),
        (lambda x: np.where(x >= 0, x, 0.01 * x), 0.0, 1.0),
        (lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))), 0.0, 1.0),
        (lambda x: np.where(x > 0, np.sqrt(np.maximum(x, 0) + 1), 3 * x), 0.0, 3.0),
        (lambda x: np.where(x < 1, np.minimum(x, 1), 5 * np.maximum(1, x)), 1.0, 5.0),
        (lambda x: x / (1 + abs(x)), 0.0, 1.0),
    ],
)
def test_conventions(fn: Function, at: float, slope: float) -> None:
    assert value(derive(fn(X), X), [at])[0] == slope


def test_two_arrays_share_the_slope_at_a_tie() -> None:
    for e in (np.maximum(X, Y), np.minimum(X, Y), np.maximum(3 * X, 3 * Y) / 3):
        dx, dy = value(derive(e, X), [1.0, 1.0, 2.0], [1.0, 2.0, 1.0]), value(derive(e, Y), [1.0], [1.0])
        assert dx[0] == dy[0] == 0.5
        assert sorted(dx[1:]) == [0.0, 1.0]


def test_powers_at_zero() -> None:
    e = X**Y
    zero = np.zeros(3)
    np.testing.assert_array_equal(value(derive(e, X), zero, [0.0, 1.0, 2.0]), [0.0, 1.0, 0.0])
    np.testing.assert_array_equal(value(derive(e, Y), zero, [0.0, 1.0, 2.0]), [0.0, 0.0, 0.0])


def test_quotient_rule_does_not_square() -> None:
    slope = derive(X / Y, Y)
    assert value(slope, [1e200], [1e200])[0] == pytest.approx(-1e-200)


def test_large_arguments_give_no_nan() -> None:
    x = np.array([-1e300, -800.0, 800.0, 1e300])
    for fn in (
        lambda x: 1 / (1 + np.exp(-x)),
        lambda x: np.log(1 + np.exp(x)),
        lambda x: x / (1 + np.exp(-x)),
        np.tanh,
    ):
        assert np.isfinite(value(derive(fn(X), X), x)).all()


def test_shared_derivatives_stay_small() -> None:
    e = X
    for _ in range(60):
        e = np.tanh(e) * e + 1
    assert len(to_data([derive(e, X)])["nodes"]) < 1000


def test_evaluate_broadcasts_and_keeps_the_dtype() -> None:
    results = evaluate([X + 0.1, X > Y, const(2)], [np.ones((2, 1), np.float32), np.zeros(3, np.float32)])
    assert [r.shape for r in results] == [(2, 3)] * 3
    assert [r.dtype for r in results] == [np.float32, bool, np.float32]
    assert evaluate([X * 2], [np.array([1, 2])])[0].dtype == np.float64
    results[2][0, 0] = 5.0  # writable, not a view of one number


def test_substitute() -> None:
    e = np.exp(X) * Y + np.where(X > 0, X, 1)
    assert substitute([e], {X: const(1.0)})[0] is np.exp(const(1.0)) * Y + 1
    assert substitute([e], {X: Y, Y: X})[0] is np.exp(Y) * X + np.where(Y > 0, Y, 1)
    assert substitute([e], {np.exp(X): S})[0] is S * Y + np.where(X > 0, X, 1)
    assert variables([e]) == {X, Y}


@pytest.mark.parametrize("number", range(len(SMOOTH)))
def test_data_round_trip(number: int) -> None:
    e = SMOOTH[number](X, Y)
    text = json.dumps(to_data([e, derive(e, X)]), allow_nan=False)
    restored = from_data(json.loads(text))
    assert restored[0] is e
    assert restored[1] is derive(e, X)


def test_data_of_special_constants() -> None:
    exprs = [const(np.inf), const(-np.inf), const(np.nan), const(-0.0), const(True), const(0.1), (X > 1) & (S > 2)]
    restored = from_data(json.loads(json.dumps(to_data(exprs), allow_nan=False)))
    assert all(a is b for a, b in zip(restored, exprs, strict=True))


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"nodes": []},
        {"nodes": 5, "outputs": []},
        {"nodes": [[]], "outputs": [0]},
        {"nodes": [["array", 0]], "outputs": [1]},
        {"nodes": [["array", 0]], "outputs": [-1]},
        {"nodes": [["array", 0]], "outputs": [True]},
        {"nodes": [["array", -1]], "outputs": [0]},
        {"nodes": [["array", 1e9]], "outputs": [0]},
        {"nodes": [["array", 0], ["exp", 1]], "outputs": [1]},
        {"nodes": [["exp", 0]], "outputs": [0]},
        {"nodes": [["array", 0], ["exp", 0, 0]], "outputs": [1]},
        {"nodes": [["array", 0], ["system", 0]], "outputs": [1]},
        {"nodes": [["array", 0], [["exp"], 0]], "outputs": [1]},
        {"nodes": [["const", "import os"]], "outputs": [0]},
        {"nodes": [["const", None]], "outputs": [0]},
        {"nodes": [["array", 0], ["logical_not", 0]], "outputs": [1]},
        {"nodes": [["array", 0], ["indicator", 0]], "outputs": [1]},
        {"nodes": [["array", 0], ["equal", 0, 0], ["exp", 1]], "outputs": [2]},
        {"nodes": [["array", 0], ["where", 0, 0, 0]], "outputs": [1]},
    ],
)
def test_data_of_another_kind_is_refused(data: Any) -> None:
    with pytest.raises(FormatError):
        from_data(data)
