"""Spectral normalization: sigma against NumPy's singular values, one step against PyTorch, what moves when."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from fcdense import nn
from fcdense.errors import ArgumentError, ShapeError
from fcdense.tensor import tensor


def wrapped(units=4, rows=6, n_iterations=1, **options):
    return nn.SpectralNorm(nn.Dense(units, dtype="float64", in_features=rows, **options), n_iterations)


def largest(kernel):
    return np.linalg.svd(kernel.numpy(), compute_uv=False)[0]


@pytest.mark.parametrize(("rows", "units"), [(6, 4), (4, 6), (5, 1), (1, 5)])
def test_the_largest_singular_value_becomes_one(rows, units, rng):
    layer = wrapped(units, rows)
    x = rng.standard_normal((2, rows))
    for _ in range(300):
        layer(x)
    assert largest(layer.layer.kernel) != pytest.approx(1.0, abs=1e-3)
    assert largest(layer.normalized_kernel()) == pytest.approx(1.0, abs=1e-9)
    expected = x @ layer.layer.kernel.numpy() / largest(layer.layer.kernel)
    np.testing.assert_allclose(layer(x).numpy(), expected, rtol=1e-8)


def test_more_iterations_are_nearer(rng):
    start = wrapped()
    errors = []
    for n_iterations in (1, 3, 10):
        layer = copy.deepcopy(start)
        layer.n_iterations = n_iterations
        layer(rng.standard_normal((2, 6)))
        errors.append(abs(largest(layer.normalized_kernel()) - 1.0))
    assert errors[0] > errors[1] > errors[2]


def test_one_step_equals_torch(rng):
    torch = pytest.importorskip("torch")
    layer = wrapped(activation="tanh")
    linear = torch.nn.Linear(6, 4, dtype=torch.float64)
    kernel, u = layer.layer.kernel.numpy(), layer.u.numpy()
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(kernel).T)
        linear.bias.zero_()
    torch.nn.utils.parametrizations.spectral_norm(linear, n_power_iterations=1)
    # PyTorch goes on from the vector of the input side, which ours keeps as a function of u.
    v = kernel @ u / np.linalg.norm(kernel @ u)
    linear.parametrizations.weight[0]._v.copy_(torch.tensor(v))
    x = rng.standard_normal((3, 6))
    y, expected = layer(x), torch.tanh(linear(torch.tensor(x)))
    np.testing.assert_allclose(y.numpy(), expected.detach().numpy(), rtol=1e-12)
    dy = rng.standard_normal((3, 4))
    y.backward(tensor(dy))
    expected.backward(torch.tensor(dy))
    theirs = linear.parametrizations.weight.original.grad.numpy().T
    np.testing.assert_allclose(layer.layer.kernel.grad.numpy(), theirs, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(layer.u.numpy(), linear.parametrizations.weight[0]._u.numpy(), rtol=1e-12)


def test_gradients(check_gradients, rng):
    """In evaluation u stands still. Once it has converged, the part of the gradient that v is held from vanishes."""
    layer = wrapped(activation="tanh", n_iterations=300)
    x = rng.standard_normal((3, 6))
    layer(x)
    check_gradients(layer.eval(), x)


def test_evaluation_and_training_use_one_sigma(rng):
    layer = wrapped()
    x = rng.standard_normal((3, 6))
    trained = layer(x).numpy()
    u = np.array(layer.u.numpy())
    layer.eval()
    np.testing.assert_array_equal(layer(x).numpy(), trained)
    np.testing.assert_array_equal(layer.u.numpy(), u)
    layer.train()(x)
    assert (layer.u.numpy() != u).any()


def test_two_calls_before_one_backward(rng):
    layer = wrapped()
    (layer(rng.standard_normal((3, 6))).sum() + layer(rng.standard_normal((3, 6))).sum()).backward()
    assert np.isfinite(layer.layer.kernel.grad.numpy()).all()


def test_what_it_holds():
    layer = wrapped()
    assert [name for name, _ in layer.named_parameters()] == ["layer.kernel", "layer.bias"]
    assert np.linalg.norm(layer.u.numpy()) == pytest.approx(1.0)
    assert layer.u.dtype == layer.dtype == np.float64
    assert repr(layer) == "SpectralNorm(\n  (layer): Dense(6 -> 4, dtype=float64)\n)"


def test_lazy_size_and_zeros():
    layer = nn.SpectralNorm(nn.Dense(3, kernel_initializer="zeros"))
    y = layer(np.ones((2, 5), np.float32))
    y.sum().backward()
    assert (y.numpy() == 0.0).all()
    assert np.isfinite(layer.layer.kernel.grad.numpy()).all()
    with pytest.raises(ShapeError, match="Dense 'layer': x has 4 features"):
        layer(np.ones((2, 4), np.float32))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.SpectralNorm(nn.ReLU()),
        lambda: nn.SpectralNorm(4),
        lambda: nn.SpectralNorm(nn.Dense(2), 0),
        lambda: nn.SpectralNorm(nn.Dense(2), 1.5),
        lambda: nn.SpectralNorm(nn.Dense(2), 1, 0.0),
    ],
)
def test_arguments_that_mean_nothing(make):
    with pytest.raises(ArgumentError, match="SpectralNorm"):
        make()
