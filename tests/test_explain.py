"""`explain`: the calls of a model's passes, in words."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

import fcdense as fc
from fcdense.errors import ArgumentError
from tests.training import same

X = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
Y = np.array([0, 1, 2, 0])


def network() -> fc.nn.Sequential:
    fc.manual_seed(1)
    return fc.nn.Sequential(fc.nn.Dense(6, "relu"), fc.nn.Dropout(0.5), fc.nn.Dense(3))


def primitives(lines) -> list[str]:
    return [line.primitive for line in lines]


def test_the_forward_pass():
    explained = fc.explain(network(), X)
    assert explained.device == "cpu"
    assert list(explained.passes) == ["forward"]
    first, second = explained.passes["forward"]
    assert first[:3] == ("dense relu", "4x5 5x6 6", "4x6")
    assert second[:3] == ("dense", "4x6 6x3 3", "4x3")
    assert first.served_by
    assert explained.notes == ("predict replays the forward pass.",)
    text = repr(explained)
    assert text.startswith("forward on cpu, 2 calls\n")
    assert "dense relu  4x5 5x6 6" in text


def test_the_training_step():
    explained = fc.explain(network(), X, Y, loss="cross_entropy", optimizer="adam")
    found = primitives(explained.passes["training step"])
    assert found[:5] == ["dense relu", "next_stream", "dropout", "dense", "softmax_xent"]
    assert found[-2:] == ["map adam", "map next_update"]
    assert explained.notes[1] == "Trainer replays the training step."
    without = fc.explain(network(), X, Y, loss="cross_entropy")
    assert primitives(without.passes["training step"])[-1] == "dense_grad_weight"
    console = Console(file=io.StringIO(), width=200)
    console.print(explained)
    written = console.file.getvalue()
    assert "softmax_xent" in written
    assert "Trainer replays the training step." in written


def test_who_serves_a_call():
    with fc.use_device("reference"):
        lines = fc.explain(network(), X).passes["forward"]
    assert {line.served_by for line in lines} == {"reference"}


class Reading(fc.nn.Module):
    def forward(self, x):
        return x * float(x.sum())


def indirect(prediction, target):
    return fc.losses.cross_entropy(prediction, target) * 2.0


def test_what_is_not_captured_and_why():
    explained = fc.explain(Reading(), X)
    assert explained.passes == {"forward": ()}
    assert explained.notes[0].startswith("predict calls Python for every forward pass: Values (shape ()) were read")
    notes = fc.explain(network(), X, Y, loss=indirect).notes
    assert notes[1].startswith("Trainer calls Python for every training step: the loss is a function that calls")


def test_looking_changes_nothing():
    model = network()
    model(X)
    model.train()
    state, words = model.state_dict(), fc.random.random_state().words.copy()
    drawn = str(fc.random.random_state().generator.bit_generator.state)
    arrays = [p.array for p in model.parameters()]
    fc.explain(model, X, Y, loss="cross_entropy", optimizer="adam")
    assert same(model.state_dict(), state)
    assert [p.array is a for p, a in zip(model.parameters(), arrays, strict=True)] == [True] * 4
    assert all(module.training for module in model.modules())
    assert (fc.random.random_state().words == words).all()
    assert str(fc.random.random_state().generator.bit_generator.state) == drawn
    lazy = network()
    fc.explain(lazy, X)
    assert not lazy[0].is_built


def test_arguments():
    for given in ({"y": Y}, {"loss": "mse"}, {"optimizer": "sgd"}):
        with pytest.raises(ArgumentError, match="y and loss together"):
            fc.explain(network(), X, **given)
