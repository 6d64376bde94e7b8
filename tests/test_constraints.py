"""Constraints: what they make of a kernel's columns, names, data, errors."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from fcdense import constraints
from fcdense.errors import ArgumentError, FormatError, UnknownNameError

W = np.array([[3.0, 0.1, 0.0], [-4.0, 0.2, 0.0]])  # columns of norm 5, 0.22 and 0
SAMPLES = [constraints.max_norm(2.0), constraints.unit_norm(), constraints.non_neg()]


def test_max_norm():
    np.testing.assert_allclose(constraints.max_norm(2.5)(W), [[1.5, 0.1, 0.0], [-2.0, 0.2, 0.0]], rtol=1e-15)
    rows = constraints.max_norm(1.0, axis=1)(W)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, rtol=1e-15)
    assert (constraints.max_norm(5.0)(W) == W).all()  # within the limit nothing is touched


def test_unit_norm():
    made = constraints.unit_norm()(W)
    np.testing.assert_allclose(np.linalg.norm(made, axis=0), [1.0, 1.0, 0.0], rtol=1e-15)
    np.testing.assert_allclose(made[:, 0], [0.6, -0.8], rtol=1e-15)
    np.testing.assert_allclose(np.linalg.norm(constraints.unit_norm(axis=-1)(W), axis=1), 1.0, rtol=1e-15)


def test_non_neg():
    assert constraints.non_neg()(W).tolist() == [[3.0, 0.1, 0.0], [0.0, 0.2, 0.0]]


@pytest.mark.parametrize("constraint", SAMPLES)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_constraint(constraint, dtype, rng):
    w = rng.standard_normal((7, 5)).astype(dtype)
    before = w.copy()
    once = constraint(w)
    assert (w == before).all()
    assert (once.dtype, once.shape) == (w.dtype, w.shape)
    np.testing.assert_allclose(constraint(once), once, rtol=4 * np.finfo(dtype).eps)
    w[0, 0] = np.nan
    assert np.isnan(constraint(w)[0, 0])
    assert np.isfinite(constraint(w)[:, 1:]).all()


@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_squares_neither_overflow_nor_vanish(size):
    w = np.full((4, 1), size, np.float32)
    np.testing.assert_allclose(constraints.unit_norm()(w), 0.5, rtol=1e-6)
    np.testing.assert_allclose(constraints.max_norm(1e-35)(w), 0.5e-35, rtol=1e-6)


@pytest.mark.parametrize("name", ["unit_norm", "non_neg"])
def test_names_classes_and_objects_mean_the_same(name):
    kind = constraints.TABLE[name]
    assert constraints.get(name) == constraints.get(kind) == constraints.get(kind()) == kind()


def test_functions_none_and_pickles():
    assert constraints.get(None) is None
    assert constraints.get(abs) is abs
    assert all(pickle.loads(pickle.dumps(sample)) == sample for sample in SAMPLES)


@pytest.mark.parametrize("spec", [2.0, ["non_neg"], int, "max_norm", constraints.max_norm])
def test_what_means_nothing(spec):
    with pytest.raises(ArgumentError, match=r"Constraint"):
        constraints.get(spec)


def test_unknown_names():
    with pytest.raises(UnknownNameError, match="'max_norm'"):
        constraints.get("maxnorm")


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf"), True, "1", None, 10**400])
def test_limits(limit):
    with pytest.raises(ArgumentError, match="limit"):
        constraints.max_norm(limit)


@pytest.mark.parametrize("axis", [0.5, "0", None, True])
def test_axes(axis):
    for make in (lambda: constraints.max_norm(1.0, axis), lambda: constraints.unit_norm(axis)):
        with pytest.raises(ArgumentError, match="axis"):
            make()


@pytest.mark.parametrize("constraint", [*SAMPLES, constraints.max_norm(1, np.int64(1)), None])
def test_data(constraint):
    data = json.loads(json.dumps(constraints.to_data(constraint)))
    assert constraints.from_data(data) == constraint


def test_code_is_no_data():
    with pytest.raises(ArgumentError, match="code, not data"):
        constraints.to_data(abs)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        *(
            (data, FormatError)
            for data in (3, "non_neg", [], {}, {"name": 3}, {"name": "max_norm"}, {"name": "non_neg", "a": 1})
        ),
        ({"name": "other"}, UnknownNameError),
        ({"name": "unit_norm", "axis": "0"}, ArgumentError),
    ],
)
def test_malformed_data(data, error):
    with pytest.raises(error):
        constraints.from_data(data)
