"""Lowered functions: the same values, in arithmetic of the dtype."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import numpy as np
import pytest

from fcdense import algebra, emit
from fcdense.expression import array_var, evaluate
from fcdense.lowering import lower
from fcdense.program import Program, trace
from fcdense.symbol import topological

X = array_var(0)
ERF = trace(algebra.erf, 1, name="erf")
NDTR = trace(algebra.ndtr, 1, name="ndtr")


def test_no_composite_function_is_left() -> None:
    exprs = [algebra.erf(X), algebra.ndtr(X), algebra.sigmoid(X), algebra.softplus(np.sign(X))]
    for dtype in (np.float32, np.float64):
        left = {e.op for e in topological(lower(exprs, np.dtype(dtype)))}
        assert not left & {"erf", "ndtr", "sigmoid", "softplus", "sign"}


def test_erf_in_float32() -> None:
    x = np.concatenate([np.linspace(-5, 5, 200_001), np.geomspace(1e-38, 1e38, 2000)]).astype(np.float32)
    true = np.array([math.erf(v) for v in x])
    error = np.abs(emit.apply(ERF, x) - true) / np.spacing(np.abs(true).astype(np.float32))
    assert error.max() < 2.0


def test_erf_in_float64() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-6.5, 6.5, 3000), np.geomspace(1e-300, 1e300, 200), [0.46875, 0.4687500001, 6.0]])
    given = emit.apply(ERF, x)
    with mpmath.workdps(40):
        true = [mpmath.erf(mpmath.mpf(float(v))) for v in x]
        error = [abs(mpmath.mpf(float(g)) - t) / np.spacing(abs(float(t))) for g, t in zip(given, true, strict=True)]
    assert max(error) < 2.5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_erf_is_odd_and_has_its_limits(dtype: type) -> None:
    x = np.array([0.0, 0.3, 2.0, 10.0, np.inf, np.nan], dtype)
    np.testing.assert_array_equal(emit.apply(ERF, -x), -emit.apply(ERF, x))
    np.testing.assert_array_equal(emit.apply(ERF, x)[[0, 3, 4, 5]], [0.0, 1.0, 1.0, np.nan])
    assert np.signbit(emit.apply(ERF, -x[:1]))[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ndtr(dtype: type) -> None:
    reach = 12.5 if dtype == np.float32 else 37.0  # beyond it, results are denormal
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-reach, 9, 4000), rng.uniform(-3, 3, 1000), np.geomspace(1e-30, 1, 50), [0.0]])
    x = x.astype(dtype)
    given = emit.apply(NDTR, x)
    with mpmath.workdps(40):
        true = [mpmath.ncdf(mpmath.mpf(float(v))) for v in x]
        error = [
            float(abs(mpmath.mpf(float(g)) - t)) / np.spacing(dtype(float(t))) for g, t in zip(given, true, strict=True)
        ]
    bound = np.where(x < 0, 4.0 + x.astype(np.float64) ** 2 / 2, 3.0)
    assert (np.array(error) <= bound).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ndtr_has_its_limits(dtype: type) -> None:
    x = np.array([-np.inf, -1e30, -45.0, 0.0, 10.0, 1e30, np.inf, np.nan], dtype)
    np.testing.assert_array_equal(emit.apply(NDTR, x), [0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0, np.nan])


def test_gelu_and_its_derivative_share_their_exponential() -> None:
    gelu = trace(lambda x: x * algebra.ndtr(x), 1)
    for dtype in (np.float32, np.float64):
        both = lower([*gelu.outputs, *gelu.derivative().outputs], np.dtype(dtype))
        assert [e.op for e in topological(both)].count("exp") == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sign(dtype: type) -> None:
    limits = np.finfo(dtype)
    x = np.array([0.0, limits.smallest_subnormal, limits.tiny, 1.0, limits.max, np.inf, np.nan], dtype)
    x = np.concatenate([x, -x])
    np.testing.assert_array_equal(emit.apply(trace(np.sign, 1), x), np.sign(x))


VALUES = np.array([0.0, -0.0, 1.0, -1.0, 0.5, -3.0, 1e-40, -1e-40, np.inf, -np.inf, np.nan])


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: np.where(x > 0, x, 0.01 * x),
        lambda x: np.where(x > 0, x, 1.0 * x),
        lambda x: np.where(x > 0, x, -0.5 * x),
        lambda x: np.where(x > 0, x, 2.0 * x),
        lambda x: np.where(x > 0, 1.0, 0.01),
        lambda x: np.where(x > 0, 0.01, 1.0),
        lambda x: np.where(x > 0, -1.0, -2.0),
        lambda x: np.where(x > 0, 3.0, 0.5),
        lambda x: np.where(x == x, x * x, x),
        lambda x: np.where(x > 0, np.inf, 1.0),
        lambda x: np.where(x > 0, np.nan, x),
        lambda x: np.where(x > 0, x, np.nan),
        lambda x: np.where(x > 0, x, -0.0),
        lambda x: np.where(x > 0, -0.0, x),
        lambda x: np.where(np.isnan(x), 5.0, x),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_choices_are_exact(dtype: type, fn: Any) -> None:
    x = VALUES.astype(dtype)
    given = emit.apply(trace(fn, 1), x)
    expected = fn(x).astype(dtype)
    np.testing.assert_array_equal(given, expected)
    np.testing.assert_array_equal(np.signbit(given)[:-1], np.signbit(expected)[:-1])


@pytest.mark.parametrize("fn", [algebra.sigmoid, algebra.softplus, algebra.erf, algebra.ndtr])
def test_against_evaluation(fn: Any) -> None:
    x = np.linspace(-800, 800, 100_001)
    program: Program = trace(fn, 1)
    np.testing.assert_allclose(emit.apply(program, x), evaluate(program.outputs, [x])[0], rtol=1e-15, atol=1e-15)
