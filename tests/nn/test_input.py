"""What a module takes when it is called, and what becomes of arrays."""

from __future__ import annotations

import numpy as np
import pytest

from fcdense import nn
from fcdense.errors import ArgumentError, DTypeError, ShapeError
from fcdense.tape import no_grad
from fcdense.tensor import Tensor, tensor


@pytest.mark.parametrize("x", [[[1.0, 2.0]], np.array([[1.0, 2.0]]), tensor([[1.0, 2.0]])])
def test_a_call_takes_lists_arrays_and_tensors(x):
    model = nn.Sequential(nn.Dense(3, in_features=2, dtype="float64"))
    y = model(x)
    assert isinstance(y, Tensor)
    np.testing.assert_allclose(y.numpy(), np.array([[1.0, 2.0]]) @ model[0].kernel.numpy(), rtol=1e-15)


def test_inner_calls_and_other_arguments():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Dense(2, in_features=2, dtype="float64")

        def forward(self, x, scale, names, parts, *, mask=None):
            assert isinstance(x, Tensor)
            assert scale == 2
            assert names == ("a", "b")
            assert isinstance(parts[0], Tensor)
            assert isinstance(mask, np.ndarray)
            return self.layer(np.ones((1, 2))) * scale + x  # an array made inside is taken as well

    model = Gate()
    y = model(np.zeros((1, 2)), 2, ("a", "b"), [tensor(1.0), tensor(2.0)], mask=np.ones(2))
    np.testing.assert_allclose(y.numpy(), 2 * np.ones((1, 2)) @ model.layer.kernel.numpy(), rtol=1e-15)


def test_the_callers_array_may_change_before_backward():
    layer = nn.Dense(1, in_features=2, dtype="float64")
    x = np.ones((3, 2))
    y = layer(x)
    x[:] = np.nan
    y.sum().backward()
    assert layer.kernel.grad.numpy().tolist() == [[3.0], [3.0]]


def test_without_a_graph_nothing_is_copied():
    x = np.ones((3, 2))
    with no_grad():
        assert np.shares_memory(nn.Flatten()(x).numpy(), x)


@pytest.mark.parametrize(
    ("x", "error"),
    [
        (np.ones((2, 3), complex), DTypeError),
        (np.array([[object()]]), DTypeError),
        ([["a", "b"]], DTypeError),
        ([[1.0], [1.0, 2.0]], ShapeError),
        (None, ArgumentError),
        ("abc", ArgumentError),
        (2.0, ArgumentError),
        (np.float64(2.0), ShapeError),
    ],
)
def test_inputs_that_are_refused(x, error):
    with pytest.raises(error):
        nn.Dense(2, in_features=3)(x)
