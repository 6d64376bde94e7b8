"""Standardizer against exact arithmetic."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest

from fcdense.data import Standardizer, standardize
from fcdense.errors import DataError, DTypeError, FormatError, ShapeError


def exact_moments(column: list[float]) -> tuple[float, float]:
    values = [Fraction(float(v)) for v in column]
    mean = sum(values) / len(values)
    return float(mean), float(sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int16, np.uint8])
def test_moments_are_those_of_exact_arithmetic(dtype) -> None:
    x = (np.random.default_rng(0).random((50, 4)) * [5, 10, 100, 200]).astype(dtype)
    scaler = Standardizer().fit(x)
    for feature in range(4):
        mean, scale = exact_moments(x[:, feature].tolist())
        assert scaler.mean[feature] == pytest.approx(mean, rel=1e-14)
        assert scaler.scale[feature] == pytest.approx(scale, rel=1e-13)


def test_a_large_offset_loses_nothing() -> None:
    x = np.array([[1e9], [1e9 + 1], [1e9 + 2]])
    scaler = Standardizer().fit(x)
    assert scaler.mean == 1e9 + 1
    assert scaler.scale == pytest.approx((2 / 3) ** 0.5, rel=1e-15)
    assert scaler.transform(x)[:, 0] == pytest.approx([-(1.5**0.5), 0, 1.5**0.5], rel=1e-14)


def test_closed_form() -> None:
    x = np.array([[0.0, 5.0], [2.0, 5.0]])
    scaler = Standardizer().fit(x)
    assert scaler.mean.tolist() == [1, 5]
    assert scaler.scale.tolist() == [1, 1]
    assert scaler.transform(x).tolist() == [[-1, 0], [1, 0]]


@pytest.mark.parametrize("value", [0.1, 1e300, -7.3e-200, 0.0])
def test_a_constant_feature_gets_scale_1(value: float) -> None:
    x = np.full((1003, 1), value)
    scaler = Standardizer().fit(x)
    assert scaler.scale.tolist() == [1]
    assert (scaler.transform(x) == 0).all()


def test_tiny_and_huge_features_neither_under_nor_overflow() -> None:
    x = np.array([[0.0, 0.0], [2e-200, 2e200]])
    scaler = Standardizer().fit(x)
    assert scaler.scale == pytest.approx([1e-200, 1e200], rel=1e-15)


def test_blocks_give_what_the_whole_gives(monkeypatch) -> None:
    x = np.random.default_rng(1).normal(3, 2, (101, 3)).astype(np.float32)
    whole = Standardizer().fit(x)
    monkeypatch.setattr(standardize, "BLOCK_BYTES", 7 * 8 * 3)
    blocked = Standardizer().fit(x)
    np.testing.assert_allclose(blocked.mean, whole.mean, rtol=1e-14)
    np.testing.assert_allclose(blocked.scale, whole.scale, rtol=1e-14)
    assert (blocked.transform(x) == ((x - blocked.mean) / blocked.scale).astype(np.float32)).all()


@pytest.mark.parametrize(
    ("given", "result"), [("f2", "f4"), ("f4", "f4"), ("f8", "f8"), ("i8", "f4"), ("?", "f4"), (">f8", "f8")]
)
def test_dtypes(given: str, result: str) -> None:
    x = np.array([[0, 1], [1, 0], [1, 1]], given)
    assert Standardizer().fit_transform(x).dtype == np.dtype(result)


def test_leading_axes_count_as_rows() -> None:
    x = np.random.default_rng(2).random((5, 7, 3))
    scaler = Standardizer().fit(x)
    flat = Standardizer().fit(x.reshape(35, 3))
    assert (scaler.mean == flat.mean).all()
    assert scaler.transform(x).shape == x.shape
    assert (scaler.transform(x).reshape(35, 3) == flat.transform(x.reshape(35, 3))).all()


def test_the_inverse_returns() -> None:
    x = np.random.default_rng(3).normal(4, 9, (20, 3))
    scaler = Standardizer()
    np.testing.assert_allclose(scaler.inverse_transform(scaler.fit_transform(x)), x, rtol=1e-14, atol=1e-14)


def test_nan_passes_through_transform() -> None:
    scaler = Standardizer().fit([[0.0], [2.0]])
    assert np.isnan(scaler.transform([[np.nan]])).all()
    assert scaler.transform([[np.inf]]) == np.inf


def test_data_survives_json() -> None:
    scaler = Standardizer().fit(np.random.default_rng(4).random((30, 5)))
    again = Standardizer.from_data(json.loads(json.dumps(scaler.to_data())))
    assert (again.mean == scaler.mean).all()
    assert (again.scale == scaler.scale).all()


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"mean": [0.0]},
        {"mean": [0.0], "scale": [1.0, 2.0]},
        {"mean": [], "scale": []},
        {"mean": 0.0, "scale": 1.0},
        {"mean": ["a"], "scale": [1.0]},
        {"mean": [float("nan")], "scale": [1.0]},
        {"mean": [0.0], "scale": [0.0]},
        {"mean": [0.0], "scale": [float("inf")]},
        None,
    ],
)
def test_foreign_data_is_refused(data) -> None:
    with pytest.raises(FormatError, match="mean"):
        Standardizer.from_data(data)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_fit_refuses_what_is_not_finite_and_keeps_its_state(bad: float) -> None:
    scaler = Standardizer().fit([[0.0, 1.0], [2.0, 3.0]])
    with pytest.raises(DataError, match=r"NaN or inf in 1 of 2 features, first in feature 1"):
        scaler.fit([[0.0, 1.0], [2.0, bad], [4.0, 5.0]])
    assert scaler.mean.tolist() == [1, 2]


def test_fit_refuses_overflow() -> None:
    with pytest.raises(DataError, match="feature 0 overflows float64"):
        Standardizer().fit([[1.7e308], [-1.7e308]])


def test_refused() -> None:
    scaler = Standardizer()
    assert repr(scaler) == "Standardizer(not fitted)"
    for use in (lambda: scaler.transform([[1.0]]), lambda: scaler.mean, scaler.to_data):
        with pytest.raises(DataError, match=r"call fit\(x_train\) first"):
            use()
    scaler.fit([[0.0, 1.0]])
    assert repr(scaler) == "Standardizer(2 features)"
    with pytest.raises(ShapeError, match=r"x \(1, 3\) has 3 features, the Standardizer 2"):
        scaler.transform([[1.0, 2.0, 3.0]])
    with pytest.raises(ShapeError, match=r"x\[:, None\]"):
        scaler.fit([1.0, 2.0])
    with pytest.raises(DTypeError, match="dtype"):
        scaler.fit([["a"]])
