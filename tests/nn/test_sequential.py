"""Sequential as a list of layers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from fcdense import nn
from fcdense.errors import ArgumentError
from fcdense.tensor import tensor


def chain(*sizes):
    return [nn.Dense(units, "tanh", in_features=rows, dtype="float64") for rows, units in pairwise(sizes)]


def test_composes(rng, check_gradients):
    model = nn.Sequential(*chain(3, 4, 2))
    x = rng.standard_normal((5, 3))
    expected = np.tanh(np.tanh(x @ model[0].kernel.numpy()) @ model[1].kernel.numpy())
    np.testing.assert_allclose(model(x).numpy(), expected, rtol=1e-12)
    check_gradients(model, x)


def test_one_iterable_is_its_items():
    layers = chain(3, 4, 2)
    for model in (nn.Sequential(layers), nn.Sequential(tuple(layers)), nn.Sequential(layer for layer in layers)):
        assert list(model) == layers
    assert list(nn.Sequential(nn.Sequential(layers))[0]) == layers  # a Sequential is one layer, not its items
    assert nn.Sequential([]).layers == []


def test_empty():
    x = tensor(np.ones((2, 3)))
    assert nn.Sequential()(x) is x
    assert repr(nn.Sequential()) == "Sequential()"
    assert len(nn.Sequential()) == 0
    assert nn.Sequential().num_parameters() == 0


def test_works_as_a_list():
    a, b, c = chain(3, 3, 3, 3)
    model = nn.Sequential(a)
    assert model.append(c) is model
    assert model.insert(1, b) is model
    assert list(model) == [a, b, c]
    assert model[0] is a
    assert model[-1] is c
    assert b in model
    model[1] = nn.ReLU()
    assert isinstance(model[1], nn.ReLU)
    del model[0]
    assert list(model)[1:] == [c]
    assert model.extend([a, b]) is model
    assert list(model)[1:] == [c, a, b]
    with pytest.raises(IndexError):
        model[9]


def test_a_slice_shares_its_layers():
    model = nn.Sequential(chain(3, 4, 5, 2)).eval()
    encoder = model[:2]
    assert type(encoder) is nn.Sequential
    assert list(encoder) == model.layers[:2]
    assert encoder.training is False
    encoder.append(nn.ReLU())
    assert len(model) == 3
    assert [type(layer) for layer in model[::-2]] == [nn.Dense, nn.Dense]


@pytest.mark.parametrize("item", [lambda x: x, "relu", np.tanh])
def test_functions_are_no_layers(item):
    for add in (
        nn.Sequential,
        lambda x: nn.Sequential([x]),
        nn.Sequential().append,
        lambda x: nn.Sequential().insert(0, x),
    ):
        with pytest.raises(ArgumentError, match=r"Wrap it: fc.nn.Activation\("):
            add(item)


@pytest.mark.parametrize("item", [None, 3, nn.Dense, tensor(1.0)])
def test_other_things_are_no_layers_either(item):
    with pytest.raises(ArgumentError, match="Sequential got"):
        nn.Sequential(nn.ReLU(), item)


def test_a_refused_item_leaves_the_list_as_it_was():
    model = nn.Sequential(nn.ReLU())
    with pytest.raises(ArgumentError):
        model.extend([nn.Tanh(), None])
    with pytest.raises(ArgumentError):
        model[0] = "relu"
    assert [type(layer) for layer in model] == [nn.ReLU]


def test_repr():
    model = nn.Sequential(nn.Dense(4, "sigmoid", in_features=3), nn.Sequential(nn.Flatten(), nn.Dense(2)))
    assert repr(model) == (
        "Sequential(\n"
        "  (0): Dense(3 -> 4, activation=sigmoid)\n"
        "  (1): Sequential(\n"
        "    (0): Flatten()\n"
        "    (1): Dense(? -> 2)\n"
        "  )\n"
        ")"
    )
