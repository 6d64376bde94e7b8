"""Flatten, 784 -> 512 -> 512 -> 10 on images of 28 x 28, with a softmax over axis 1."""

from __future__ import annotations

import numpy as np
import pytest

import fcdense as fc

SHAPES = {
    "layers.1.kernel": (784, 512),
    "layers.1.bias": (512,),
    "layers.2.kernel": (512, 512),
    "layers.2.bias": (512,),
    "layers.3.kernel": (512, 10),
    "layers.3.bias": (10,),
}


def classifier() -> fc.nn.Sequential:
    fc.manual_seed(0)
    return fc.nn.Sequential(fc.nn.Flatten(), fc.nn.Dense(512, "relu"), fc.nn.Dense(512, "relu"), fc.nn.Dense(10))


@pytest.mark.parametrize("n", [1, 3, 32])
def test_probabilities(n: int, rng: np.random.Generator):
    model, images = classifier(), rng.random((n, 28, 28), dtype=np.float32)
    logits = model(images)
    assert logits.shape == (n, 10)
    z = images.reshape(n, 784).astype(np.float64)
    for position in (1, 2, 3):
        z = z @ model[position].kernel.numpy() + model[position].bias.numpy()
        z = np.maximum(z, 0.0) if position < 3 else z
    expected = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    probabilities = fc.nn.Softmax(axis=1)(logits).numpy()
    np.testing.assert_allclose(probabilities, expected, rtol=1e-4)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), expected.argmax(axis=1))


def test_softmax_as_the_last_layer_and_inside_of_it(rng: np.random.Generator):
    model, images = classifier(), rng.random((3, 28, 28), dtype=np.float32)
    outside = fc.nn.Softmax(axis=1)(model(images)).numpy()
    inside = fc.nn.Dense(10, "softmax", in_features=512)
    inside.load_state_dict(model[3].state_dict())
    np.testing.assert_array_equal(fc.nn.Sequential(model, fc.nn.Softmax(axis=1))(images).numpy(), outside)
    np.testing.assert_array_equal(inside(model[:3](images)).numpy(), outside)


def test_named_parameters():
    model = classifier()
    model(np.zeros((1, 28, 28), np.float32))
    assert {name: parameter.shape for name, parameter in model.named_parameters()} == SHAPES
    assert model.num_parameters() == 669_706


def test_the_script(run_example):
    output = run_example("image_classifier.py")
    assert "images (3, 28, 28) -> logits (3, 10)" in output
    assert "sums of the probabilities: [1. 1. 1.]" in output
    for name, shape in SHAPES.items():
        assert f"{name:16} {shape!s:10} begins with [" in output
    assert "Parameters: 669,706" in output
