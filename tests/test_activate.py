"""Activations called with tensors: values, gradients, and the activation's own derivative."""

from __future__ import annotations

import numpy as np
import pytest

from fcdense import activations
from fcdense.gradients import grad, gradcheck
from fcdense.tensor import tensor

NAMES = [name for name in activations.names() if name not in ("softmax", "log_softmax")]


@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_gives_what_an_array_gives(name: str, rng: np.random.Generator) -> None:
    function = activations.get(name)
    x = rng.normal(size=(3, 4))
    np.testing.assert_allclose(function(tensor(x)).numpy(), function(x), rtol=1e-14, atol=1e-15)
    assert gradcheck(function, x)


def test_the_own_derivative_is_used() -> None:
    x = tensor([-1e20, 0.0, 1e20], dtype="float32", requires_grad=True)
    slope = grad(activations.gelu_tanh(x).sum(), x)
    np.testing.assert_array_equal(slope.numpy(), [0.0, 0.5, 1.0])


def test_rows_keep_their_gradient(rng: np.random.Generator) -> None:
    x = rng.normal(size=(3, 4))
    exps = np.exp(x)
    shares = exps / exps.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(activations.softmax(tensor(x)).numpy(), shares, rtol=1e-14)
    np.testing.assert_allclose(activations.log_softmax(tensor(x)).numpy(), np.log(shares), rtol=1e-13)
    assert gradcheck(activations.softmax, x)
    assert gradcheck(activations.log_softmax, x)


def test_second_derivatives(rng: np.random.Generator) -> None:
    x = tensor(rng.normal(size=5), requires_grad=True)
    slope = grad(activations.tanh(x).sum(), x, create_graph=True)
    curvature = grad(slope.sum(), x).numpy()
    t = np.tanh(x.numpy())
    np.testing.assert_allclose(curvature, -2 * t * (1 - t * t), rtol=1e-12)
