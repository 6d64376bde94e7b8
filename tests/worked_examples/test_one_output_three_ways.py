"""The output of a layer, of a matrix product, and of a dot product for each row and neuron."""

from __future__ import annotations

import numpy as np
import pytest

import fcdense as fc


@pytest.mark.parametrize("use_bias", [True, False])
def test_three_ways(use_bias: bool, rng: np.random.Generator):
    x = rng.normal(size=(8, 10))
    layer = fc.nn.Dense(3, use_bias=use_bias, bias_initializer="normal", dtype="float64", in_features=10)
    weights = layer.kernel.numpy()
    bias = layer.bias.numpy() if use_bias else np.zeros(3)
    by_neuron = np.empty((8, 3))
    for row in range(8):
        for neuron in range(3):
            terms = [x[row, feature] * weights[feature, neuron] for feature in range(10)]
            by_neuron[row, neuron] = sum(terms) + bias[neuron]
    np.testing.assert_allclose(layer(x).numpy(), by_neuron, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose((fc.tensor(x) @ layer.kernel + bias).numpy(), by_neuron, rtol=1e-12, atol=1e-14)


def test_small_integers_are_exact():
    layer = fc.nn.Dense(2, in_features=3)
    layer.load_state_dict({"kernel": [[1, 2], [3, 4], [5, 6]], "bias": [10, 20]})
    assert layer(np.array([[1.0, 0.0, -1.0], [2.0, 1.0, 0.0]], np.float32)).numpy().tolist() == [[6, 16], [15, 28]]


def test_the_script(run_example):
    lines = run_example("one_output_three_ways.py").splitlines()
    rows = {line.partition("[")[2] for line in lines[:3]}
    assert len(rows) == 1
    assert lines[3:] == ["layer and product agree: True", "layer and dot products agree: True"]
