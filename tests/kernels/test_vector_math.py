"""The elementary functions against mpmath, over every exponent, and at the points where formulas break."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest

from fcdense import loops
from fcdense.math import erf, ndtr, sigmoid, softplus
from fcdense.program import trace
from tests.kernels.tiles import apply, kernel_code, tile

# The bound on the error in units in the last place, from the docstring of each function.
FUNCTIONS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any], float]] = {
    "exp": (np.exp, mpmath.exp, 2),
    "expm1": (np.expm1, mpmath.expm1, 2),
    "log": (np.log, mpmath.log, 2),
    "log1p": (np.log1p, mpmath.log1p, 2),
    "sqrt": (np.sqrt, mpmath.sqrt, 0.5),
    "tanh": (np.tanh, mpmath.tanh, 3),
    "sinh": (np.sinh, mpmath.sinh, 4),
    "cosh": (np.cosh, mpmath.cosh, 4),
    "arctan": (np.arctan, mpmath.atan, 3),
    "erf": (erf, mpmath.erf, 3),
    "sigmoid": (sigmoid, lambda x: 1 / (1 + mpmath.exp(-x)), 4),
    "softplus": (softplus, lambda x: mpmath.log1p(mpmath.exp(x)), 4),
}
DTYPES = ["float32", "float64"]
each = pytest.mark.parametrize("name", FUNCTIONS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
SPECIAL = [math.inf, -math.inf, math.nan, 0.0, -0.0, 1.0, -1.0]


def samples(dtype: str, rng: np.random.Generator) -> np.ndarray:
    """A few numbers of every exponent and sign, denormal ones too, and many of ordinary size."""
    info = np.finfo(dtype)
    exponents = np.arange(info.minexp - info.nmant, info.maxexp, 1 if dtype == "float32" else 7)
    small = np.ldexp(rng.uniform(1, 2, (2, exponents.size)), exponents).ravel()
    reach = 1.02 * math.log(float(info.max))
    ordinary = [rng.uniform(-w, w, 200) for w in (0.01, 0.5, 2.0, 20.0, reach)] + [1 + rng.uniform(-0.4, 0.6, 200)]
    return np.concatenate([small, -small, *ordinary]).astype(dtype)


def units(given: float, exact: Any, dtype: str) -> float:
    """The error in units in the last place of the exact value; 0 for the right infinity."""
    info = np.finfo(dtype)
    if abs(exact) > float(info.max):
        near = abs(exact) <= float(info.max) * (1 + 4 * float(info.eps))
        return 0.0 if given == math.copysign(math.inf, exact) or (near and math.isfinite(given)) else math.inf
    exponent = max(int(mpmath.frexp(exact)[1]) if exact else info.minexp, info.minexp + 1)
    return float(abs(given - exact) / mpmath.ldexp(1, exponent - info.nmant - 1)) if math.isfinite(given) else math.inf


@each
@dtypes
def test_within_the_stated_bound(name: str, dtype: str, rng: np.random.Generator) -> None:
    function, exact, bound = FUNCTIONS[name]
    x = samples(dtype, rng)
    (y,) = apply(trace(function, 1, name=name), x)
    worst = 0.0
    with mpmath.workprec(200):
        for a, b in zip(x.tolist(), y.tolist(), strict=True):
            if name == "sigmoid" and a < -float(np.log(np.finfo(dtype).max)):
                assert 0 <= b <= 2 * np.finfo(dtype).tiny  # exp(-x) overflows where the result is denormal
                continue
            if a < {"log": 0, "sqrt": 0, "log1p": -1}.get(name, -math.inf):
                assert math.isnan(b)
            else:
                worst = max(worst, units(b, exact(mpmath.mpf(a)), dtype))
    assert worst <= bound


@dtypes
def test_normal_distribution_within_the_stated_bound(dtype: str, rng: np.random.Generator) -> None:
    x = samples(dtype, rng)
    (y,) = apply(trace(ndtr, 1, name="ndtr"), x)
    with mpmath.workprec(200):
        for a, b in zip(x.tolist(), y.tolist(), strict=True):
            exact = mpmath.ncdf(min(max(a, -50.0), 50.0))  # beyond them it rounds to 0 and 1
            assert units(b, exact, dtype) <= (4 + a * a / 2 if a < 0 else 3)


@each
@dtypes
def test_special_values(name: str, dtype: str) -> None:
    function = FUNCTIONS[name][0]
    x = np.array(SPECIAL, dtype)
    (y,) = apply(trace(function, 1, name=name), x)
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(y, function(x), rtol=4 * np.finfo(dtype).eps)


@dtypes
def test_functions_of_two_numbers(dtype: str, rng: np.random.Generator) -> None:
    a, b = (m.ravel() for m in np.meshgrid(np.array([*SPECIAL, 3e-39, 1e30, -2.5, 7.0], dtype), rng.normal(size=3)))
    b = np.concatenate([b.astype(dtype), np.array(SPECIAL, dtype), rng.permutation(a)])[: a.size].copy()
    program = trace(lambda x, y: (np.maximum(x, y), np.minimum(x, y), np.hypot(x, y)), 2)
    outs = [np.empty((1, a.size), dtype) for _ in range(3)]
    tile(program, a.reshape(1, -1).copy(), [b.reshape(1, -1)], outs=outs)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(outs[0][0], np.maximum(a, b))
        np.testing.assert_array_equal(outs[1][0], np.minimum(a, b))
        np.testing.assert_allclose(outs[2][0], np.hypot(a, b), rtol=3 * np.finfo(dtype).eps)


@dtypes
def test_sine_and_cosine_of_any_size(dtype: str, rng: np.random.Generator) -> None:
    """Rows of moderate angles, and rows with a huge one, which the C library computes."""
    program = trace(lambda x: (np.sin(x), np.cos(x), np.sin(3.0 * x)), 1)
    halves = np.arange(-60, 61) * (math.pi / 4)
    moderate = np.concatenate([rng.uniform(-w, w, 500) for w in (1.0, 10.0, 3000.0)] + [halves, halves + 1e-4])
    huge = np.concatenate([moderate, 10.0 ** rng.uniform(0, 7 if dtype == "float32" else 30, 200)])
    undefined = np.concatenate([moderate, [-math.inf, math.nan, -math.nan]])
    for x in (moderate.astype(dtype), huge.astype(dtype), undefined.astype(dtype), np.zeros(0, dtype)):
        outs = [np.empty((1, x.size), dtype) for _ in program.outputs]
        tile(program, x.reshape(1, -1), outs=outs)
        with np.errstate(invalid="ignore"), mpmath.workprec(300):
            angles = [x, x, (x * np.dtype(dtype).type(3)).astype(dtype)]
            for y, angle, exact in zip(outs, angles, (mpmath.sin, mpmath.cos, mpmath.sin), strict=True):
                finite = np.isfinite(angle)
                true = np.array([float(exact(mpmath.mpf(a))) for a in angle[finite].tolist()])
                np.testing.assert_allclose(y[0][finite], true, rtol=0, atol=np.finfo(dtype).eps)
                assert np.isnan(y[0][~finite]).all()


@dtypes
def test_powers(dtype: str, rng: np.random.Generator) -> None:
    x = rng.uniform(0.1, 50, 100).astype(dtype)
    (power,) = apply(trace(lambda x: x**2.5, 1), x)
    np.testing.assert_allclose(power, x.astype(float) ** 2.5, rtol=2 * np.finfo(dtype).eps)


@each
def test_vectorized(name: str) -> None:
    source = loops.tile_source(trace(FUNCTIONS[name][0], 1, name=name), np.dtype("float32"), "")
    code, text = kernel_code(source)
    assert "vector.body" in code
    assert "\tcall" not in text
