"""Gradients that cannot be had: a graph walked twice, no start, values changed in between; and what is used twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fcdense as fc
from fcdense.errors import GraphError, ShapeError
from tests.bad_input.unchanged import refused, settled, table

X, Y = table()


def loss_of(trainer: fc.Trainer) -> fc.Tensor:
    return fc.losses.cross_entropy(trainer.model(X), Y)


def test_walking_a_graph_twice():
    trainer = settled()
    loss = loss_of(trainer)
    loss.backward()
    with refused(GraphError, "computed already", "backward(retain_graph=True)", keeps=(trainer,)):
        loss.backward()
    with refused(GraphError, "computed already", "forward pass again", keeps=(trainer,)):
        (loss * 2.0).backward()  # the part below is gone


def test_walking_a_graph_twice_when_that_was_asked_for():
    trainer = settled()
    loss = loss_of(trainer)
    loss.backward(retain_graph=True)
    once = [p.grad.numpy().copy() for p in trainer.model.parameters()]
    loss.backward()
    for parameter, gradient in zip(trainer.model.parameters(), once, strict=True):
        np.testing.assert_allclose(parameter.grad.numpy(), 2.0 * gradient, rtol=1e-6)


def test_a_start_is_needed_where_there_are_several_elements():
    trainer = settled()
    y = trainer.model(X)
    with refused(ShapeError, "one element", "(12, 3)", ".sum(), .mean()", keeps=(trainer,)):
        y.backward()
    with refused(ShapeError, "The gradient has shape (3,)", "the tensor (12, 3)", keeps=(trainer,)):
        y.backward(np.ones(3, np.float32))
    y.backward(np.ones((12, 3), np.float32))


def test_nothing_to_differentiate():
    trainer = settled()
    with fc.no_grad():
        unrecorded = loss_of(trainer)
    frozen = settled()
    frozen.model.freeze()
    for tensor in (unrecorded, loss_of(frozen), fc.tensor(1.0), loss_of(trainer).detach()):
        with refused(GraphError, "requires_grad=True", "no_grad", keeps=(trainer, frozen)):
            tensor.backward()
    with refused(GraphError, "does not depend on input 0 (shape (1,))", keeps=(trainer,)):
        fc.grad(loss_of(trainer), fc.tensor([1.0], requires_grad=True))


def stepped(trainer: fc.Trainer, x: fc.Tensor) -> None:
    loss_of(trainer).backward()
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()


CHANGES: dict[str, Callable[[fc.Trainer, fc.Tensor], Any]] = {
    "an optimizer step": stepped,
    "assign": lambda trainer, x: trainer.model[2].kernel.assign(np.zeros((4, 3))),
    "load_state_dict": lambda trainer, x: trainer.model.load_state_dict(trainer.model.state_dict()),
    "in place": lambda trainer, x: x.__setitem__((0, 0), 9.0),
    "in place, through a view": lambda trainer, x: x.reshape(36).detach().__setitem__(5, 9.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_saved_values_that_were_changed(change):
    trainer = settled()
    x = fc.tensor(X)
    loss = fc.losses.cross_entropy(trainer.model(x), Y)
    CHANGES[change](trainer, x)
    with refused(GraphError, "saved an array of shape", "changed in place afterwards", keeps=(trainer,)):
        loss.backward()
    loss_of(trainer).backward()


def test_what_is_part_of_a_graph_cannot_be_changed_in_place():
    trainer = settled()
    kernel, y = trainer.model[0].kernel, trainer.model(X)
    for tensor in (kernel, y):
        with refused(GraphError, "part of a graph", ".detach().copy()", "fc.no_grad()", keeps=(trainer,)):
            tensor[0] = 1.0
    with pytest.raises(ValueError, match="read-only"):
        kernel.numpy()[0] = 1.0
    with fc.no_grad():
        kernel[0] = 1.0
    np.testing.assert_array_equal(kernel.numpy()[0], np.ones(4))


def test_a_parameter_in_two_layers_gets_the_sum():
    fc.manual_seed(0)
    first, second = (fc.nn.Dense(3, "tanh", dtype="float64", in_features=3) for _ in range(2))
    second.kernel = first.kernel
    model, x = fc.nn.Sequential(first, second), X.astype(np.float64)
    assert [name for name, _ in model.named_parameters()] == ["layers.0.kernel", "layers.0.bias", "layers.1.bias"]
    model(x).sum().backward()
    w, b1, b2 = (np.array(p.numpy()) for p in (first.kernel, first.bias, second.bias))
    h = np.tanh(x @ w + b1)
    y = np.tanh(h @ w + b2)
    dz2 = 1 - y**2
    dz1 = (dz2 @ w.T) * (1 - h**2)
    np.testing.assert_allclose(first.kernel.grad.numpy(), x.T @ dz1 + h.T @ dz2, rtol=0, atol=1e-12)


def test_a_layer_in_two_places_gets_the_sum():
    fc.manual_seed(0)
    layer = fc.nn.Dense(3, "tanh", dtype="float64", in_features=3)
    x = X.astype(np.float64)
    fc.nn.Sequential(layer, layer)(x).sum().backward()
    w, b = layer.kernel.numpy().copy(), layer.bias.numpy().copy()
    h = np.tanh(x @ w + b)
    dz2 = 1 - np.tanh(h @ w + b) ** 2
    dz1 = (dz2 @ w.T) * (1 - h**2)
    np.testing.assert_allclose(layer.kernel.grad.numpy(), x.T @ dz1 + h.T @ dz2, rtol=0, atol=1e-12)
    np.testing.assert_allclose(layer.bias.grad.numpy(), (dz1 + dz2).sum(axis=0), rtol=0, atol=1e-12)
