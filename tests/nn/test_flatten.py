"""Flatten."""

from __future__ import annotations

import numpy as np
import pytest

from fcdense import nn
from fcdense.errors import ArgumentError, ShapeError


@pytest.mark.parametrize(
    ("start_axis", "shape", "expected"),
    [
        (1, (5, 2, 3), (5, 6)),
        (1, (5, 6), (5, 6)),
        (1, (5,), (5, 1)),
        (1, (0, 2, 3), (0, 6)),
        (1, (5, 0, 3), (5, 0)),
        (2, (5, 2, 3, 4), (5, 2, 12)),
        (0, (2, 3), (6,)),
        (0, (), (1,)),
    ],
)
def test_shapes(start_axis, shape, expected):
    x = np.arange(np.prod(shape, dtype=int), dtype=np.float64).reshape(shape)
    np.testing.assert_array_equal(nn.Flatten(start_axis)(x).numpy(), x.reshape(expected))


def test_gradients(check_gradients, rng):
    check_gradients(nn.Flatten(), rng.standard_normal((2, 3, 2)))


def test_images_into_a_dense_layer():
    images = np.zeros((2, 4, 4), np.uint8)
    assert nn.Sequential(nn.Flatten(), nn.Dense(3))(images).shape == (2, 3)


def test_too_few_axes():
    with pytest.raises(ShapeError, match=r"Flatten: x has shape \(\); expected at least 1 axes"):
        nn.Flatten()(np.float32(1.0))
    with pytest.raises(ArgumentError, match="Flatten: x is None"):
        nn.Flatten()(None)


@pytest.mark.parametrize("start_axis", [-1, 1.5, True, "1"])
def test_start_axis(start_axis):
    with pytest.raises(ArgumentError, match="start_axis"):
        nn.Flatten(start_axis)


def test_repr():
    assert repr(nn.Flatten()) == "Flatten()"
    assert repr(nn.Flatten(2)) == "Flatten(start_axis=2)"
