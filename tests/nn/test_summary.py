"""The table of layers, and the outputs of all layers; neither leaves a trace in the model or the random numbers."""

from __future__ import annotations

import numpy as np
import pytest

from fcdense import nn
from fcdense.errors import ArgumentError, ShapeError
from fcdense.random import manual_seed, random_state


def model():
    return nn.Sequential(
        nn.Flatten(),
        nn.Dense(4, "relu"),
        nn.BatchNorm(),
        nn.Dropout(0.5),
        nn.Sequential(nn.Dense(3, dtype="float32"), nn.Softmax()),
    )


def test_table_with_an_input_shape():
    assert model().summary((2, 3)).splitlines() == [
        "Layer                        Output  Parameters  Activation",
        "-----------------------------------------------------------",
        "layers.0 (Flatten)           (B, 6)           0",
        "layers.1 (Dense)             (B, 4)          28  relu",
        "layers.2 (BatchNorm)         (B, 4)           8",
        "layers.3 (Dropout)           (B, 4)           0",
        "layers.4.layers.0 (Dense)    (B, 3)          15  linear",
        "layers.4.layers.1 (Softmax)  (B, 3)           0  softmax",
        "-----------------------------------------------------------",
        "Parameters: 51 (51 trainable), 236 bytes with buffers",
    ]


def test_table_of_what_is_not_built():
    text = nn.Sequential(nn.Dense(4, in_features=1_000), nn.Dense(3)).summary()
    assert text.splitlines()[2:] == [
        "layers.0 (Dense)  (..., 4)       4,004  linear",
        "layers.1 (Dense)  (..., 3)   not built  linear",
        "--------------------------------------------------",
        "Parameters: 4,004 (4,004 trainable), 16,016 bytes with buffers; "
        "2 more not built: give input_shape, or call the model once",
    ]


def test_frozen_and_shared_layers():
    layer = nn.Dense(3, in_features=3).freeze()
    text = nn.Sequential(layer, layer, nn.Dense(1, in_features=3)).summary(3)
    assert text.count("Dense") == 2
    assert "Parameters: 16 (4 trainable), 64 bytes" in text


def test_a_single_layer_and_a_module_of_ones_own():
    assert "Dense  (B, 5, 4)          16  linear" in nn.Dense(4, in_features=3).summary((5, 3))

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.parameter(np.ones(2, np.float32))
            self.layer = nn.Dense(2)

        def forward(self, x):
            y = self.layer(x)
            return y, (y * self.gain).sum()

    text = Own().summary(7)
    assert "Own            tuple            2" in text
    assert "layer (Dense)  (B, 2)          16  linear" in text
    assert "Parameters: 18" in text


def test_it_leaves_no_trace():
    manual_seed(0)
    one = model()
    one.summary((2, 3))
    assert all(module.training for module in one.modules())
    assert "forward" not in vars(one[1])
    assert not one[1].is_built
    nn.layer_outputs(one, np.ones((4, 2, 3), np.float32))
    assert not one[1].is_built
    drawn = random_state().generator.random(), list(random_state().words)
    manual_seed(0)
    assert drawn == (random_state().generator.random(), list(random_state().words))


@pytest.mark.parametrize("shape", [0, (0,), (-1, 3), (2.5,), "784", (True,), [[3]]])
def test_shapes_that_are_none(shape):
    with pytest.raises(ArgumentError, match="without the batch axis"):
        model().summary(shape)


def test_a_shape_that_does_not_fit():
    with pytest.raises(ShapeError, match=r"Dense 'layers\.0': x has 4 features"):
        nn.Sequential(nn.Dense(2, in_features=3)).summary(4)


def test_layer_outputs(rng):
    one = nn.Sequential(nn.Dense(4, "relu"), nn.Sequential(nn.Dense(3), nn.BatchNorm()))
    x = rng.standard_normal((5, 2)).astype(np.float32)
    one(x)
    before = one.state_dict()
    outputs = nn.layer_outputs(one, x)
    assert [name for name, _ in outputs] == [
        "layers.0",
        "layers.1.layers.0",
        "layers.1.layers.1",
        "layers.1",
        "Sequential",
    ]
    np.testing.assert_array_equal(outputs[0][1].numpy(), one[0](x).numpy())
    np.testing.assert_array_equal(outputs[1][1].numpy(), one[1][0](one[0](x)).numpy())
    assert not outputs[-1][1].requires_grad
    assert all((array == before[name]).all() for name, array in one.state_dict().items())


def test_layer_outputs_of_a_layer_that_is_called_twice():
    relu = nn.ReLU()
    outputs = nn.layer_outputs(nn.Sequential(relu, nn.Tanh(), relu), np.ones(3))
    assert [name for name, _ in outputs] == ["layers.0", "layers.1", "layers.0", "Sequential"]
