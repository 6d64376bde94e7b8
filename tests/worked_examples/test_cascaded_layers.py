"""Two layers one after the other, 10 -> 3 -> 5, and their gradients by the chain rule."""

from __future__ import annotations

import numpy as np

import fcdense as fc


def test_shapes_follow_from_the_first_input():
    first, second = fc.nn.Dense(3), fc.nn.Dense(5)
    assert (first.in_features, second.in_features) == (None, None)
    assert second(first(np.ones((8, 10), np.float32))).shape == (8, 5)
    assert (first.kernel.shape, second.kernel.shape) == ((10, 3), (3, 5))


def test_output_and_gradients(rng: np.random.Generator):
    x, dy = rng.normal(size=(8, 10)), rng.normal(size=(8, 5))
    first = fc.nn.Dense(3, "relu", dtype="float64", in_features=10)
    second = fc.nn.Dense(5, dtype="float64", in_features=3)
    z = x @ first.kernel.numpy() + first.bias.numpy()
    hidden = np.maximum(z, 0.0)

    y = second(first(x))
    y.backward(dy)

    np.testing.assert_allclose(y.numpy(), hidden @ second.kernel.numpy() + second.bias.numpy(), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(second.kernel.grad.numpy(), hidden.T @ dy, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(second.bias.grad.numpy(), dy.sum(axis=0), rtol=1e-12, atol=1e-14)
    dz = (dy @ second.kernel.numpy().T) * (z > 0.0)
    np.testing.assert_allclose(first.kernel.grad.numpy(), x.T @ dz, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(first.bias.grad.numpy(), dz.sum(axis=0), rtol=1e-12, atol=1e-14)


def test_the_script(run_example):
    before, after, shapes, same = run_example("cascaded_layers.py").splitlines()
    assert before == "before the first call: Dense(? -> 3, activation=relu) Dense(? -> 5)"
    assert after == "after it:              Dense(10 -> 3, activation=relu) Dense(3 -> 5)"
    assert shapes == "x (8, 10) -> hidden (8, 3) -> y (8, 5)"
    assert same == "same as NumPy: True"
