"""fc.math: accuracy against mpmath, and the same function for numbers, arrays, tensors and symbols."""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
import pytest

from fcdense import math
from fcdense.expression import array_var
from fcdense.program import Program, trace

EXACT: dict[str, Any] = {
    "erf": mpmath.erf,
    "ndtr": mpmath.ncdf,
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "softplus": lambda x: mpmath.log1p(mpmath.exp(x)),
    "log_sigmoid": lambda x: -mpmath.log1p(mpmath.exp(-x)),
    "logit": lambda p: mpmath.log(p / (1 - p)),
}

each = pytest.mark.parametrize("name", EXACT)


def test_complete() -> None:
    assert sorted(math.__all__) == sorted(EXACT)


@each
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_accuracy(name: str, dtype: type) -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(0.001, 0.999, 500) if name == "logit" else rng.uniform(-30, 30, 500)
    x = x.astype(dtype)
    given = getattr(math, name)(x)
    assert given.dtype == dtype
    with mpmath.workdps(40):
        true = [EXACT[name](mpmath.mpf(float(v))) for v in x]
        error = [abs(mpmath.mpf(float(g)) - t) / max(1, abs(t)) for g, t in zip(given, true, strict=True)]
    assert max(error) <= 4 * np.finfo(dtype).eps


@each
def test_relative_accuracy_of_small_results(name: str) -> None:
    """Where absolute error would say nothing: exp(-30) and the like."""
    x = {"erf": 1e-20, "ndtr": -7.0, "sigmoid": -30.0, "softplus": -30.0, "log_sigmoid": 30.0, "logit": 1e-300}[name]
    assert getattr(math, name)(x) == pytest.approx(float(EXACT[name](mpmath.mpf(x))), rel=1e-14)


def test_limits() -> None:
    inf, nan = np.inf, np.nan
    x = np.array([-inf, -1e300, 1e300, inf, nan])
    np.testing.assert_array_equal(math.erf(x), [-1, -1, 1, 1, nan])
    np.testing.assert_array_equal(math.ndtr(x), [0, 0, 1, 1, nan])
    np.testing.assert_array_equal(math.sigmoid(x), [0, 0, 1, 1, nan])
    np.testing.assert_array_equal(math.softplus(x), [0, 0, 1e300, inf, nan])
    np.testing.assert_array_equal(math.log_sigmoid(x), [-inf, -1e300, 0, 0, nan])
    with pytest.warns(RuntimeWarning, match="divide by zero"):
        np.testing.assert_array_equal(math.logit(np.array([0.0, 1.0])), [-inf, inf])


@each
def test_kinds_of_arguments(name: str) -> None:
    fn = getattr(math, name)
    assert isinstance(fn(0.5), float)
    assert isinstance(fn(np.float32(0.5)), np.float32)
    assert fn([0.5, 0.25]).shape == (2,)
    assert fn(array_var(0)) is trace(fn, 1).outputs[0]


@each
def test_documented(name: str) -> None:
    assert getattr(math, name).__doc__


class Wrapped:
    """Stands for a tensor."""

    def __fc_map__(self, program: Program, inputs: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
        return program.name, inputs


@each
def test_tensors_map_the_program_themselves(name: str) -> None:
    x = Wrapped()
    assert getattr(math, name)(x) == (name, (x,))
