"""One dense layer of 10 features and 3 neurons on 8 rows, its activation inside of the layer and outside."""

from __future__ import annotations

import numpy as np
import pytest

import fcdense as fc

FORMULAS = {
    "relu": (lambda z: np.maximum(z, 0.0), lambda z: (z > 0.0).astype(float)),
    "sigmoid": (lambda z: 1 / (1 + np.exp(-z)), lambda z: np.exp(-z) / (1 + np.exp(-z)) ** 2),
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "softplus": (lambda z: np.log(1 + np.exp(z)), lambda z: 1 / (1 + np.exp(-z))),
}
LAYERS = {"relu": fc.nn.ReLU, "sigmoid": fc.nn.Sigmoid, "tanh": fc.nn.Tanh, "softplus": fc.nn.Softplus}


def dense(activation: str | None = None, dtype: str = "float64") -> fc.nn.Dense:
    fc.manual_seed(1)
    return fc.nn.Dense(3, activation, bias_initializer="normal", dtype=dtype, in_features=10)


def test_shapes():
    layer = dense(dtype="float32")
    y = layer(np.ones((8, 10), np.float32))
    assert (layer.kernel.shape, layer.bias.shape, y.shape) == ((10, 3), (3,), (8, 3))
    assert y.dtype == np.float32
    assert layer.num_parameters() == 33


@pytest.mark.parametrize("name", FORMULAS)
def test_inside_and_outside_are_the_formula(name: str, rng: np.random.Generator):
    x = rng.normal(size=(8, 10))
    layer, linear = dense(name), dense()
    function, _ = FORMULAS[name]
    expected = function(x @ layer.kernel.numpy() + layer.bias.numpy())
    np.testing.assert_allclose(layer(x).numpy(), expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(LAYERS[name]()(linear(x)).numpy(), expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(fc.activations.get(name)(linear(x)).numpy(), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("inside", [True, False])
def test_gradients_are_the_formula(name: str, inside: bool, rng: np.random.Generator):
    x, dy = rng.normal(size=(8, 10)), rng.normal(size=(8, 3))
    layer = dense(name if inside else None)
    y = layer(x) if inside else LAYERS[name]()(layer(x))
    y.backward(dy)
    dz = dy * FORMULAS[name][1](x @ layer.kernel.numpy() + layer.bias.numpy())
    np.testing.assert_allclose(layer.kernel.grad.numpy(), x.T @ dz, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(layer.bias.grad.numpy(), dz.sum(axis=0), rtol=1e-11, atol=1e-13)


def test_the_script(run_example):
    lines = run_example("dense_layer.py").splitlines()
    shapes = [line[9:17].strip() for line in lines[:4]]
    assert shapes == ["(8, 10)", "(10, 3)", "(3,)", "(8, 3)"]
    assert lines[4] == "parameters: 33 = 10 * 3 + 3"
    assert [float(line.rpartition(":")[2]) for line in lines[5:]] == [0.0, 0.0]
