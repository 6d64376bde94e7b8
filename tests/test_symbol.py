"""Symbols: interning, operators, and every way of leaving the trace that is refused."""

from __future__ import annotations

import copy
import gc
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fcdense import symbol
from fcdense.errors import TraceError
from fcdense.expression import Expr, array_var, const, evaluate, scalar_var

X, Y = array_var(0), array_var(1)


def test_equal_structure_is_one_object() -> None:
    assert np.exp(X * 2 + Y) is np.exp(X * 2 + Y)
    assert const(0.0) is not const(-0.0)
    assert const(1.0) is not const(True)
    assert const(math.nan) is const(math.nan)
    assert array_var(0) is not scalar_var(0)


def test_copies_are_the_same_object() -> None:
    e = np.where(X > 0, np.exp(X), Y)
    assert copy.copy(e) is copy.deepcopy(e) is pickle.loads(pickle.dumps(e)) is e


def test_unused_nodes_are_freed() -> None:
    gc.collect()
    before = len(symbol._nodes)
    e = np.sin(X * 123.0) + 45.0
    assert len(symbol._nodes) > before
    del e
    gc.collect()
    assert len(symbol._nodes) == before


def test_immutable() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        X.op = "exp"


def test_repr_writes_shared_parts_once() -> None:
    e = np.tanh(X)
    assert repr(e * e + 1) == "t0 = tanh(x0); add(multiply(t0, t0), 1.0)"
    for _ in range(200):
        e = np.tanh(e) * e
    assert len(repr(e)) < 20_000


OPERATORS: list[Callable[..., Any]] = [
    lambda x, y: x + y - 2,
    lambda x, y: 3 - x * y,
    lambda x, y: 2 / (x + 10) + x / (y + 10),
    lambda x, y: -x + +y + abs(x),
    lambda x, y: x**2 + x**3 + x**4 + (x + 10) ** -1 + (x + 10) ** 0.5 + (x + 10) ** 2.5 + x**0 + x**1 + 2**y,
    lambda x, y: (x > y) * 1.0 + (x >= y) + (x < y) * 3 + (x <= y) * 5 + (x == y) * 7 + (x != y) * 11,
    lambda x, y: 1.0 * ((x > 0) & (y > 0)) + ((x > 0) | (y > 0)) + 1.0 * ~(x > 0),
    lambda x, y: np.where(np.logical_and(x > 0, np.logical_not(y > 0)), x, y) + np.logical_or(x > 0, y > 0),
    lambda x, y: np.clip(x, -1, y) + np.clip(x, None, 1) + np.clip(y, a_min=-1, a_max=1),
    lambda x, y: np.square(x) + np.reciprocal(y + 10) + np.positive(x) + np.fabs(x) + np.sign(y),
    lambda x, y: np.logaddexp(x, y) + np.logaddexp(0, x) + np.hypot(x, y) + np.arctan(x) + np.expm1(x),
    lambda x, y: np.sinh(x) * np.cosh(y) + np.sin(x) * np.cos(y) + np.log1p(abs(x)) + np.log(abs(y) + 1),
    lambda x, y: np.less(x, y) * 2.0 + np.less_equal(x, y) + np.isnan(x) + np.isfinite(x) * 3 + np.isinf(y),
    lambda x, y: np.float64(2) * x + np.int64(3) * y + np.float32(0.5) + np.array(2.0) * x,
    lambda x, y: np.zeros_like(x) + np.ones_like(y) * 2 + np.full_like(x, 3.0),
    lambda x, y: True * x + np.maximum(x, y) * np.minimum(x, y),
]


@pytest.mark.parametrize("number", range(len(OPERATORS)))
def test_operators_mean_what_they_mean_on_arrays(number: int) -> None:
    fn = OPERATORS[number]
    x, y = np.array([-2.0, -1.0, 0.0, 0.5, 3.0]), np.array([1.0, -1.0, 0.0, 0.25, -4.0])
    np.testing.assert_allclose(evaluate([fn(X, Y)], [x, y])[0], fn(x, y), rtol=1e-14)


@pytest.mark.parametrize(
    ("fn", "cure"),
    [
        (lambda x: 1 if x > 0 else 0, "np.where"),
        (lambda x: x > 0 and x < 1, "np.where"),
        (lambda x: 0 < x < 1, "np.where"),
        (lambda x: max(x, 0), "np.where"),
        (lambda x: math.exp(x), r"np\.exp etc\. or fc\.math"),
        (lambda x: int(x), r"fc\.math"),
        (lambda x: np.array(x), "elementwise"),
        (lambda x: np.sum(x), "reductions"),
        (lambda x: np.mean(x), "reductions"),
        (lambda x: np.add.reduce(x), r"np\.add\.reduce combines elements"),
        (lambda x: np.exp(x, out=np.empty(3)), "out= cannot be traced"),
        (lambda x: np.exp(x, where=np.array([True])), "where= cannot be traced"),
        (lambda x: np.clip(x, 0, 1, out=np.empty(3)), "out= cannot be traced"),
        (lambda x: x + np.ones(3), r"array of shape \(3,\)"),
        (lambda x: np.ones(3) * x, r"array of shape \(3,\)"),
        (lambda x: np.arctan2(x, 1), "These can: .*arctan.*tanh"),
        (lambda x: np.floor(x), "cannot be traced. These can"),
        (lambda x: x[0], "indexing"),
        (lambda x: len(x), "len"),
        (lambda x: list(x), "iterating"),
        (lambda x: x + 1j, "real numbers"),
        (lambda x: x + "a", "real numbers"),
        (lambda x: x + None, "real numbers"),
    ],
)
def test_what_cannot_be_traced_names_the_cure(fn: Callable[[Expr], Any], cure: str) -> None:
    with pytest.raises(TraceError, match=cure):
        fn(X)
