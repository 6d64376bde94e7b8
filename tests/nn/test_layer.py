"""Descriptions: every layer comes back from JSON, shared ones as shared; code and malformed data are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fcdense import constraints, init, nn, regularizers
from fcdense.errors import ArgumentError, FormatError
from fcdense.math import sigmoid

SAMPLES = [
    nn.Dense(4),
    nn.Dense(
        *(4, lambda v: v * sigmoid(1.7 * v), False, init.normal(0.3), init.constant(2.0)),
        kernel_regularizer=regularizers.l1_l2(0.1, 0.2),
        kernel_constraint=constraints.max_norm(2.0, axis=1),
        dtype="float64",
        in_features=3,
    ),
    nn.Dense(2, "softmax", bias_regularizer="l2", in_features=3),
    nn.BatchNorm(0.5, 1e-3, use_bias=False, dtype="float64", in_features=3),
    nn.LayerNorm(1e-3, in_features=3),
    nn.Dropout(0.3),
    nn.Flatten(2),
    nn.SpectralNorm(nn.Dense(2, in_features=3), 4, 1e-6),
    nn.Activation(lambda v: v * v * v),
    nn.Activation("log_softmax"),
    nn.LeakyReLU(0.3),
    nn.ELU(2.0),
    nn.CELU(2.0),
    nn.GELU("tanh"),
    nn.Softmax(0),
    nn.LogSoftmax(),
    nn.Sequential(nn.Dense(3, "relu", in_features=3), nn.Sequential(), nn.Sequential(nn.Dropout(0.1), nn.Dense(2))),
    *(kind() for kind in nn.LAYERS.values() if kind.arguments == {}),
]


def through_json(layer):
    return json.loads(json.dumps(layer.config(), allow_nan=False))


def test_every_layer_has_a_sample():
    assert {type(layer) for layer in SAMPLES} == set(nn.LAYERS.values())


@pytest.mark.parametrize("layer", SAMPLES, ids=lambda layer: type(layer).__name__)
def test_round_trip(layer, rng):
    config = through_json(layer)
    assert config["class"] == type(layer).__name__
    twin = type(layer).from_config(config)
    assert type(twin) is type(layer)
    assert repr(twin) == repr(layer)
    assert twin.config() == layer.config()
    assert through_json(nn.from_data(nn.to_data(layer))) == config
    if any(not p.is_built for p in layer.parameters()):
        return
    twin.load_state_dict(layer.state_dict())
    x = rng.standard_normal((4, 3)).astype(getattr(layer, "dtype", np.float32))
    np.testing.assert_array_equal(twin.eval()(x).numpy(), layer.eval()(x).numpy())


def test_what_a_dense_layer_says():
    config = nn.Dense(4, "softmax", kernel_regularizer="l2", kernel_constraint="non_neg", in_features=3).config()
    assert config == {
        "class": "Dense",
        "units": 4,
        "activation": {"rows": "softmax"},
        "use_bias": True,
        "kernel_initializer": {"name": "glorot_uniform", "gain": 1.0},
        "bias_initializer": {"name": "zeros"},
        "kernel_regularizer": {"name": "l2", "strength": 0.01},
        "bias_regularizer": None,
        "kernel_constraint": {"name": "non_neg"},
        "dtype": "float32",
        "in_features": 3,
    }


def test_registered_activations_come_back_as_themselves():
    layer = nn.Dense(4, "gelu_tanh")
    assert nn.Dense.from_config(through_json(layer)).activation is layer.activation


def test_in_features_is_that_of_the_kernel():
    layer = nn.Dense(4)
    assert layer.config()["in_features"] is None
    layer(np.zeros((2, 7), np.float32))
    assert layer.config()["in_features"] == 7


def test_deferred_layers_draw_nothing():
    model = nn.Sequential(nn.Dense(4, in_features=3), nn.SpectralNorm(nn.Dense(2, in_features=4)))
    with nn.unbuilt():
        twin = nn.from_data(through_json(model))
    assert not any(p.is_built for p in twin.parameters())
    assert list(twin.named_buffers()) == []
    twin.load_state_dict(model.state_dict())
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(twin.eval()(x).numpy(), model.eval()(x).numpy())


def test_shared_layers_stay_shared():
    layer, relu = nn.Dense(3, in_features=3), nn.ReLU()
    norm = nn.SpectralNorm(layer)
    inner = nn.Sequential(layer, relu)
    model = nn.Sequential(inner, layer, relu, nn.Tanh(), inner, norm)
    config = through_json(model)
    assert config["layers"][1] == {"class": "shared", "layer": 2}
    assert config["layers"][4] == {"class": "shared", "layer": 1}
    twin = nn.Sequential.from_config(config)
    assert twin[0][0] is twin[1] is twin[5].layer
    assert twin[0][1] is twin[2]
    assert twin[4] is twin[0]
    assert twin[3] is not twin[2]
    assert twin.num_parameters() == 12


# what cannot be described


class Own(nn.Module):
    def forward(self, x):
        return x


class OwnDense(nn.Dense):
    pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(Own()), "Own is a class of your own"),
        (lambda: OwnDense(3), "OwnDense is a class of your own"),
        (lambda: nn.Sequential(nn.Sequential(OwnDense(3))), "OwnDense is a class of your own"),
        (lambda: nn.Dense(3, kernel_initializer=lambda s, d, g: np.ones(s)), "Dense has no config: .* code, not data"),
        (
            lambda: nn.Dense(3, kernel_regularizer=lambda w: w.sum()),
            "Dense has no config: regularizer .* code, not data",
        ),
        (lambda: nn.Dense(3, bias_regularizer=lambda w: w.sum()), "code, not data"),
        (lambda: nn.Dense(3, kernel_constraint=abs), "constraint .* code, not data"),
    ],
)
def test_code_is_refused(make, message):
    layer = make()
    with pytest.raises(ArgumentError, match=message):
        layer.config()


def test_to_data_of_ones_own_module():
    with pytest.raises(ArgumentError, match="Own is a class of your own"):
        nn.to_data(Own())


def test_tied_parameters_of_two_layers_are_refused():
    first, second = nn.Dense(3, in_features=3), nn.Dense(3, in_features=3)
    second.kernel = first.kernel
    with pytest.raises(ArgumentError, match=r"'layers\.0\.kernel' and 'layers.1.layers.0.kernel' are one parameter"):
        nn.Sequential(first, nn.Sequential(second)).config()


# what is no description

DENSE = nn.Dense(2, "relu", in_features=3).config()
MODEL = nn.Sequential(nn.Dense(2, "relu", in_features=3), nn.ReLU()).config()


def nested(depth):
    config = nn.ReLU().config()
    for _ in range(depth):
        config = {"class": "Sequential", "layers": [config]}
    return config


@pytest.mark.parametrize(
    "config",
    [
        *(None, 3, "Dense", [], {}, {"class": 3}, {"class": "dense"}, {"class": "Layer"}, {"class": "__import__"}),
        *({"class": "Dense"}, DENSE | {"surplus": 1}, DENSE | {1: 2}),
        *(DENSE | {"units": value} for value in (0, -1, 2.5, True, "4", None, [2])),
        *(DENSE | {"in_features": value} for value in (0, "3", 1.5)),
        *(DENSE | {"use_bias": value} for value in (1, None, "yes")),
        *(DENSE | {"dtype": value} for value in ("int32", "bfloat16", 3, None, ["float32"])),
        *(DENSE | {"activation": value} for value in (None, "relu", {"rows": "relu"}, {"rows": 3}, {"name": "x"}, [])),
        *(
            DENSE | {"kernel_initializer": value}
            for value in (None, "zeros", {"name": "custom"}, {"name": "zeros", "a": 1})
        ),
        *(
            DENSE | {"kernel_regularizer": value}
            for value in ("l2", {"name": "l9"}, {"name": "l2"}, {"name": "l2", "strength": -1})
        ),
        *(
            DENSE | {"kernel_constraint": value}
            for value in (3, {"name": "max_norm"}, {"name": "max_norm", "limit": 0, "axis": 0})
        ),
        *(MODEL | {"layers": value} for value in (None, 3, {}, "ab", [None], [3], [DENSE | {"units": 0}])),
        *(MODEL | {"layers": [{"class": "shared", "layer": value}]} for value in (0, 1, -1, 9, True, "0", None)),
        {"class": "shared", "layer": 0},
        {"class": "SpectralNorm", "layer": nn.ReLU().config(), "n_iterations": 1, "eps": 1e-12},
        {"class": "Dropout", "rate": 1.0},
        {"class": "Dropout", "rate": 10**400},
        {"class": "LeakyReLU", "slope": None},
        nested(200),
    ],
    ids=lambda config: str(config)[:40],
)
def test_malformed_data_is_refused(config):
    with pytest.raises(FormatError):
        nn.from_data(config)


def test_deep_but_not_too_deep():
    assert nn.from_data(nested(90)).config() == nested(90)


def test_from_config_of_another_class():
    with pytest.raises(FormatError, match="describes a Dense, not a Sequential"):
        nn.Sequential.from_config(DENSE)


def test_the_table_is_closed():
    with pytest.raises(TypeError):
        nn.LAYERS["Own"] = Own
    assert "Own" not in nn.LAYERS
