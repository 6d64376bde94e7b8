"""Regularizers: values and gradients against closed forms, names, data, errors."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from fcdense import regularizers
from fcdense.errors import ArgumentError, FormatError, UnknownNameError
from fcdense.gradients import gradcheck
from fcdense.tensor import tensor

W = np.array([[1.0, -2.0], [0.0, 0.5]])
SAMPLES = [regularizers.l1(0.3), regularizers.l2(0.3), regularizers.l1_l2(0.1, 0.7)]


@pytest.mark.parametrize(
    ("regularizer", "value", "gradient"),
    [
        (regularizers.l1(0.5), 0.5 * 3.5, 0.5 * np.sign(W)),
        (regularizers.l2(0.5), 0.5 * 5.25, W),
        (regularizers.l1_l2(0.5, 0.25), 0.5 * 3.5 + 0.25 * 5.25, 0.5 * np.sign(W) + 0.5 * W),
        (regularizers.l1(0), 0.0, 0.0 * W),
    ],
)
def test_closed_forms(regularizer, value, gradient):
    w = tensor(W, requires_grad=True)
    penalty = regularizer(w)
    assert penalty.shape == ()
    assert penalty.item() == pytest.approx(value, rel=1e-15)
    penalty.backward()
    np.testing.assert_allclose(w.grad.numpy(), gradient, rtol=1e-15)


@pytest.mark.parametrize("regularizer", SAMPLES)
def test_gradients_and_dtype(regularizer, rng):
    gradcheck(regularizer, rng.standard_normal((3, 2)))
    assert regularizer(tensor(W, "float32")).dtype == np.float32
    assert np.isnan(regularizer(tensor([np.nan, 1.0])).item())


@pytest.mark.parametrize("name", sorted(regularizers.TABLE))
def test_names_classes_and_objects_mean_the_same(name):
    kind = regularizers.TABLE[name]
    assert regularizers.get(name) == regularizers.get(kind) == regularizers.get(kind()) == kind()
    assert hash(kind()) == hash(kind())
    assert pickle.loads(pickle.dumps(kind())) == kind()


def test_functions_and_none():
    assert regularizers.get(None) is None
    assert regularizers.get(abs) is abs


@pytest.mark.parametrize("spec", [0.01, ["l2"], int])
def test_what_means_nothing(spec):
    with pytest.raises(ArgumentError, match="Regularizer"):
        regularizers.get(spec)


def test_unknown_names():
    with pytest.raises(UnknownNameError, match="'l2'"):
        regularizers.get("l22")


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf"), True, "1", None, 10**400])
@pytest.mark.parametrize("kind", regularizers.TABLE.values())
def test_strengths(kind, strength):
    with pytest.raises(ArgumentError, match="finite number >= 0"):
        kind(strength)


@pytest.mark.parametrize("regularizer", [*SAMPLES, None])
def test_data(regularizer):
    data = json.loads(json.dumps(regularizers.to_data(regularizer)))
    assert regularizers.from_data(data) == regularizer


def test_code_is_no_data():
    class Own(regularizers.l2):
        pass

    for own in (abs, Own()):
        with pytest.raises(ArgumentError, match="code, not data"):
            regularizers.to_data(own)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        *((data, FormatError) for data in (3, "l2", [], {}, {"name": 3}, {"name": "l2"}, {"name": "l2", "l1": 1.0})),
        ({"name": "l3", "strength": 1.0}, UnknownNameError),
        ({"name": "l2", "strength": -1.0}, ArgumentError),
    ],
)
def test_malformed_data(data, error):
    with pytest.raises(error):
        regularizers.from_data(data)
