"""Weights of PyTorch, (out, in), are ours transposed, (in, out): in the output, and in the gradient too."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

import fcdense as fc


def test_same_output_and_gradients_as_pytorch(rng: np.random.Generator):
    torch = pytest.importorskip("torch")
    linear = torch.nn.Linear(10, 3, dtype=torch.float64)
    layer = fc.nn.Dense(3, dtype="float64", in_features=10)
    layer.load_state_dict({"kernel": linear.weight.detach().numpy().T, "bias": linear.bias.detach().numpy()})
    assert (tuple(linear.weight.shape), layer.kernel.shape) == ((3, 10), (10, 3))

    x, dy = rng.normal(size=(8, 10)), rng.normal(size=(8, 3))
    theirs = linear(torch.from_numpy(x))
    theirs.backward(torch.from_numpy(dy))
    ours = layer(x)
    ours.backward(dy)
    np.testing.assert_allclose(ours.numpy(), theirs.detach().numpy(), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(layer.kernel.grad.numpy(), linear.weight.grad.numpy().T, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(layer.bias.grad.numpy(), linear.bias.grad.numpy(), rtol=1e-12, atol=1e-14)


def test_weights_that_are_not_transposed_are_refused():
    layer = fc.nn.Dense(3, in_features=10)
    before = layer.kernel.numpy().copy()
    with pytest.raises(fc.errors.ArgumentError, match=r"kernel.*\(3, 10\).*\(10, 3\)|kernel.*\(10, 3\).*\(3, 10\)"):
        layer.load_state_dict({"kernel": np.zeros((3, 10)), "bias": np.zeros(3)})
    np.testing.assert_array_equal(layer.kernel.numpy(), before)


def test_the_script(run_example):
    output = run_example("pytorch_weights.py")
    assert "PyTorch's weight: (3, 10)" in output
    assert "our kernel: (10, 3)" in output
    assert "same output as NumPy: True" in output
    if importlib.util.find_spec("torch"):
        assert "same output as PyTorch: True" in output
    else:
        assert "not installed" in output
