"""Ten layers in a list: 10 -> 10 -> 20 -> 30 -> ... -> 100."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

import fcdense as fc

SIZES = [10, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
N_PARAMETERS = 33_650  # sum of in * out + out


def layers() -> list[fc.nn.Dense]:
    return [fc.nn.Dense(units, "tanh", dtype="float64", in_features=features) for features, units in pairwise(SIZES)]


def test_a_loop_over_the_list(rng: np.random.Generator):
    x = rng.normal(size=(8, 10))
    y, expected = fc.tensor(x), x
    for layer in layers():
        y, expected = layer(y), np.tanh(expected @ layer.kernel.numpy() + layer.bias.numpy())
    assert y.shape == (8, 100)
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-10, atol=1e-13)


class Tower(fc.nn.Module):
    def __init__(self, given: list[fc.nn.Dense]) -> None:
        super().__init__()
        self.layers = given

    def forward(self, x: fc.Tensor) -> fc.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_plain_list_is_enough_for_a_module(rng: np.random.Generator):
    given = layers()
    tower, model = Tower(given), fc.nn.Sequential(given)
    assert tower.num_parameters() == model.num_parameters() == N_PARAMETERS
    assert [name for name, _ in tower.named_parameters()] == [
        f"layers.{i}.{name}" for i in range(10) for name in ("kernel", "bias")
    ]
    x = rng.normal(size=(8, 10))
    np.testing.assert_array_equal(tower(x).numpy(), model(x).numpy())


def test_gradients_reach_the_first_layer(rng: np.random.Generator):
    model = fc.nn.Sequential(layers())
    x = rng.normal(size=(8, 10))
    model(x).sum().backward()
    kernel, eps = model[0].kernel, 1e-6
    values, quotients = kernel.numpy().copy(), []
    for sign in (1.0, -1.0):
        shifted = values.copy()
        shifted[2, 3] += sign * eps
        kernel.assign(shifted)
        quotients.append(model(x).numpy().sum())
    np.testing.assert_allclose(kernel.grad.numpy()[2, 3], (quotients[0] - quotients[1]) / (2 * eps), rtol=1e-6)


def test_the_script(run_example):
    lines = run_example("list_of_layers.py").splitlines()
    assert lines[0] == "input  (8, 10)"
    assert [line.split("output ")[1] for line in lines[1:11]] == [f"(8, {units})" for units in SIZES[1:]]
    assert lines[11] == f"parameters of all 10 layers: {N_PARAMETERS}"
