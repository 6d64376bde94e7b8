"""`nn.Activation`: any function as a layer, differentiated by the activation's own f'."""

from __future__ import annotations

import numpy as np
import pytest

from fcdense import activations, emit, nn
from fcdense.errors import UnknownNameError
from fcdense.gradients import grad
from fcdense.math import sigmoid
from fcdense.tensor import tensor


@pytest.mark.parametrize("name", [n for n in activations.names() if n not in ("softmax", "log_softmax")])
def test_the_activations_own_derivative_is_used(name):
    """Far out a derivative taken from the trace may be inf * 0; the activation's own is exact."""
    function = activations.get(name)
    points = np.concatenate([np.linspace(-30.0, 30.0, 61), [-500.0, -80.0, 80.0, 500.0]]).astype(np.float32)
    x = tensor(points, requires_grad=True)
    with np.errstate(over="ignore"):
        nn.Activation(name)(x).backward(tensor(np.ones_like(points)))
        expected = np.broadcast_to(emit.apply(function.derivative, points), points.shape)
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-6, atol=4 * np.finfo(np.float32).eps)


def test_second_derivatives(rng):
    x = tensor(rng.standard_normal(5), requires_grad=True)
    y = nn.Tanh()(x)
    first = grad(y.sum(), x, create_graph=True)
    second = grad(first.sum(), x).numpy()
    np.testing.assert_allclose(second, -2 * y.numpy() * (1 - y.numpy() ** 2), rtol=1e-12)


def test_any_function(check_gradients, rng):
    layer = nn.Activation(lambda x: x * sigmoid(1.702 * x))
    check_gradients(layer, rng.standard_normal((4, 3)))
    x = rng.standard_normal(7)
    np.testing.assert_allclose(layer(x).numpy(), x / (1 + np.exp(-1.702 * x)), rtol=1e-14)
    assert nn.Activation("swish").activation is activations.silu
    assert nn.Activation(activations.softmax)(np.zeros((2, 4))).numpy().tolist() == [[0.25] * 4] * 2


def test_unknown_names():
    with pytest.raises(UnknownNameError, match="sigmoid"):
        nn.Activation("sigmiod")
