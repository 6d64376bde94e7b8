"""Dropout: rate and expectation, the same mask for the gradient, silent in evaluation, repeatable."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fcdense import nn
from fcdense.errors import ArgumentError
from fcdense.random import manual_seed
from fcdense.tensor import tensor


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_training(rate):
    count = 40_000
    x = tensor(np.ones(count), requires_grad=True)
    y = nn.Dropout(rate)(x)
    kept = y.numpy() != 0.0
    np.testing.assert_allclose(y.numpy()[kept], 1.0 / (1.0 - rate), rtol=1e-15)
    assert abs(kept.mean() - (1.0 - rate)) < 5 * math.sqrt(rate * (1.0 - rate) / count)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), y.numpy())


def test_evaluation_is_the_identity():
    layer = nn.Dropout(0.5).eval()
    x = tensor(np.ones((3, 4)))
    assert layer(x) is x
    assert (layer.train()(x).numpy() != 1.0).all()


def test_rate_zero_keeps_everything():
    x = np.ones((3, 4))
    np.testing.assert_array_equal(nn.Dropout(0.0)(x).numpy(), x)


def test_each_call_draws_anew_and_the_seed_repeats_them():
    layer = nn.Dropout(0.5)
    x = np.ones(100)
    manual_seed(1)
    first, second = layer(x).numpy(), layer(x).numpy()
    assert (first != second).any()
    manual_seed(1)
    np.testing.assert_array_equal(layer(x).numpy(), first)
    np.testing.assert_array_equal(layer(x).numpy(), second)


@pytest.mark.parametrize("rate", [1.0, -0.1, 1.5, True, None, "0.5", float("nan")])
def test_rates_that_mean_nothing(rate):
    with pytest.raises(ArgumentError, match="Dropout: rate"):
        nn.Dropout(rate)


def test_repr():
    assert repr(nn.Dropout()) == "Dropout(rate=0.5)"
