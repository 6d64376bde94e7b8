"""State: what state_dict holds, and that load_state_dict takes all of it or nothing."""

from __future__ import annotations

import numpy as np
import pytest

from fcdense import nn
from fcdense.errors import ArgumentError, DTypeError, DTypeWarning, GraphError
from fcdense.parameter import pack
from fcdense.random import manual_seed, random_state
from fcdense.tensor import tensor


def network(lazy=False):
    sizes = (None, None, None) if lazy else (3, 4, 4)
    return nn.Sequential(
        nn.Dense(4, "tanh", in_features=sizes[0]),
        nn.BatchNorm(in_features=sizes[1]),
        nn.SpectralNorm(nn.Dense(2, in_features=sizes[2])),
    )


def test_what_it_holds():
    state = network().state_dict()
    assert {name: array.shape for name, array in state.items()} == {
        "layers.0.kernel": (3, 4),
        "layers.0.bias": (4,),
        "layers.1.scale": (4,),
        "layers.1.bias": (4,),
        "layers.2.layer.kernel": (4, 2),
        "layers.2.layer.bias": (2,),
        "layers.1.running_mean": (4,),
        "layers.1.running_var": (4,),
        "layers.2.u": (2,),
    }
    assert all(type(array) is np.ndarray and array.flags.owndata for array in state.values())


def test_copies_out_and_in():
    model = network()
    state = model.state_dict()
    state["layers.0.kernel"][:] = 7.0
    assert not (model[0].kernel.numpy() == 7.0).any()
    model.load_state_dict(state)
    assert (model[0].kernel.numpy() == 7.0).all()
    state["layers.0.kernel"][:] = 8.0
    assert (model[0].kernel.numpy() == 7.0).all()


@pytest.mark.parametrize("lazy", [False, True])
def test_round_trip(lazy, rng):
    model, other = network(), network(lazy)
    x = rng.standard_normal((6, 3)).astype(np.float32)
    model(x)  # moves the statistics and u
    manual_seed(5)
    before = random_state().generator.bit_generator.state
    other.load_state_dict(model.state_dict())
    assert random_state().generator.bit_generator.state == before  # nothing was drawn
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name], array)
    np.testing.assert_array_equal(model.eval()(x).numpy(), other.eval()(x).numpy())
    assert other[0].in_features == 3
    assert other[1].running_mean.dtype == np.float32


def test_values_stay_in_their_arena():
    model, other = network(), network()
    pack(model.parameters())
    memory = model[0].kernel.array
    model.load_state_dict(other.state_dict())
    assert model[0].kernel.array is memory
    np.testing.assert_array_equal(memory, other[0].kernel.numpy())


def test_everything_wrong_is_listed_and_nothing_changes():
    model = network()
    before = model.state_dict()
    state = {name: array + 1.0 for name, array in before.items()}
    del state["layers.0.kernel"]
    del state["layers.1.running_mean"]
    state["surplus"] = np.zeros(3)
    state["layers.0.bias"] = np.zeros(9, np.float32)
    state["layers.2.u"] = np.zeros((2, 2), np.float32)
    with pytest.raises(ArgumentError) as caught:
        model.load_state_dict(state)
    message = str(caught.value)
    for part in (
        "Missing: layers.0.kernel, layers.1.running_mean.",
        "Unexpected: surplus.",
        "layers.0.bias is (9,), expected (4,)",
        "layers.2.u is (2, 2), expected (2,)",
    ):
        assert part in message
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize(
    ("name", "array", "expected"),
    [
        ("layers.0.kernel", np.zeros((3, 5)), r"expected \(in_features, 4\)"),
        ("layers.0.kernel", np.zeros(4), r"expected \(in_features, 4\)"),
        ("layers.0.kernel", np.zeros((0, 4)), r"expected \(in_features, 4\)"),
        ("layers.0.bias", np.zeros(3), r"expected \(4,\)"),
        ("layers.1.running_var", np.zeros(5), r"expected \(4,\)"),
        ("layers.2.u", np.zeros(3), r"expected \(2,\)"),
    ],
)
def test_a_model_that_is_not_built_refuses_what_cannot_be_its_own(name, array, expected):
    with nn.unbuilt():
        model = network(lazy=True)
    with pytest.raises(ArgumentError, match=expected):
        model.load_state_dict(network().state_dict() | {name: array.astype(np.float32)})
    assert not model[0].is_built
    model.load_state_dict(network().state_dict())


def test_in_features_that_was_given_is_held():
    with nn.unbuilt():
        layer = nn.Dense(4, in_features=3)
    assert not layer.is_built
    with pytest.raises(ArgumentError, match=r"kernel is \(7, 4\), expected \(3, 4\)"):
        layer.load_state_dict({"kernel": np.zeros((7, 4), np.float32), "bias": np.zeros(4, np.float32)})


def test_deferred_layers_draw_when_called():
    with nn.unbuilt():
        model = network()
    with pytest.raises(GraphError):
        model.state_dict()
    assert model(np.ones((3, 3), np.float32)).shape == (3, 2)
    assert set(model.state_dict()) == set(network().state_dict())


def test_a_buffer_without_a_shape_has_no_state():
    model = nn.BatchNorm(use_scale=False, use_bias=False)
    with pytest.raises(GraphError, match="Buffer 'running_mean' has no shape yet"):
        model.state_dict()


def test_dtypes():
    layer = nn.Dense(2, in_features=2)
    wide = {"kernel": np.full((2, 2), 1.0 + 1e-12), "bias": np.zeros(2, np.float16)}
    with pytest.warns(DTypeWarning, match="float64, wider than"):
        layer.load_state_dict(wide)
    assert layer.kernel.dtype == np.float32
    layer.load_state_dict({"kernel": [[1, 2], [3, 4]], "bias": tensor([1.0, 2.0], "float32")})
    assert layer.kernel.numpy().tolist() == [[1.0, 2.0], [3.0, 4.0]]
    with pytest.raises(DTypeError, match=r"state\['kernel'\] is complex"):
        layer.load_state_dict(wide | {"kernel": np.ones((2, 2), complex)})


@pytest.mark.parametrize("state", [None, [("kernel", 1)], "file"])
def test_not_a_dict(state):
    with pytest.raises(ArgumentError, match="expected a dict"):
        nn.Dense(2).load_state_dict(state)


def test_parameters_in_lists_and_scalar_buffers():
    class Mixture(nn.Module):
        def __init__(self, start):
            super().__init__()
            self.weights = [nn.parameter(np.full(2, start)), {"last": nn.parameter(np.full(3, start))}]
            self.register_buffer("calls", np.array(start))

    model, other = Mixture(1.0), Mixture(2.0)
    assert list(model.state_dict()) == ["weights.0", "weights.1.last", "calls"]
    model.load_state_dict(other.state_dict())
    assert model.weights[1]["last"].numpy().tolist() == [2.0, 2.0, 2.0]
    assert model.calls.item() == 2.0
