"""Input of any number of axes: the last one holds the features, as in `np.tensordot`."""

from __future__ import annotations

import numpy as np
import pytest

import fcdense as fc

SHAPES = [(1, 3, 6), (4, 3, 6), (1, 3, 5, 6), (2, 1, 1, 3, 6), (4, 6), (6,), (0, 6), (2, 0, 6)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def dense() -> fc.nn.Dense:
    return fc.nn.Dense(10, bias_initializer="normal", dtype="float64", in_features=6)


@each_shape
def test_output(shape: tuple[int, ...], rng: np.random.Generator):
    layer, x = dense(), rng.normal(size=shape)
    y = layer(x)
    assert y.shape == (*shape[:-1], 10)
    expected = np.tensordot(x, layer.kernel.numpy(), axes=([-1], [0])) + layer.bias.numpy()
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-12, atol=1e-14)


@each_shape
def test_gradients(shape: tuple[int, ...], rng: np.random.Generator):
    layer, x = dense(), fc.tensor(rng.normal(size=shape), requires_grad=True)
    dy = rng.normal(size=(*shape[:-1], 10))
    layer(x).backward(dy)
    rows = list(range(len(shape) - 1))
    np.testing.assert_allclose(
        layer.kernel.grad.numpy(), np.tensordot(x.numpy(), dy, (rows, rows)), rtol=1e-12, atol=1e-13
    )
    np.testing.assert_allclose(layer.bias.grad.numpy(), dy.sum(axis=tuple(rows)), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(
        x.grad.numpy(), np.tensordot(dy, layer.kernel.numpy(), ([-1], [1])), rtol=1e-12, atol=1e-13
    )


def test_the_script(run_example):
    assert run_example("leading_axes.py").splitlines() == [
        "(2, 3, 6) -> (2, 3, 10)   same as np.tensordot: True",
        "(1, 3, 5, 6) -> (1, 3, 5, 10)   same as np.tensordot: True",
        "(6,) -> (10,)   same as np.tensordot: True",
    ]
