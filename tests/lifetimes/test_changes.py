"""Models that change while they are trained: shared, tied, frozen, grown; the optimizer follows.

Parameters lie in flat arenas, and an optimizer holds spans of them. Whatever happens to a model, training must go on as
if each parameter were alone: the oracles are plain NumPy, the same bits without the change, or one optimizer for each.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest

import fcdense as fc
from fcdense.errors import DTypeWarning, GraphError
from tests import plain_numpy
from tests.lifetimes.network import (
    LABELS,
    STEPS,
    VALUES,
    Bits,
    X,
    adam,
    assert_close,
    bits,
    dense,
    network,
    train,
    undisturbed,
)

# ---- one parameter, several models and optimizers --------------------------------------------------------------------


@pytest.mark.parametrize("lazy", [False, True])
def test_an_encoder_shared_by_two_models_is_trained_by_both(lazy):
    fc.manual_seed(0)
    encoder, classifier, regressor = dense(4, "tanh", None if lazy else 5), dense(3), dense(2, "gelu")
    first, second = fc.nn.Sequential(encoder, classifier), fc.nn.Sequential(encoder, regressor)
    by_first = fc.optim.SGD(first.parameters(), learning_rate=0.1, momentum=0.9)
    for model in (first, second):
        model(X)
    by_second = fc.optim.Adam(second.parameters(), learning_rate=0.01)
    named = {"encoder": encoder, "classifier": classifier, "regressor": regressor}
    start = {f"{n}.{key}": array for n, layer in named.items() for key, array in layer.state_dict().items()}
    plain = plain_numpy.Network(start, {"encoder": "tanh", "classifier": "linear", "regressor": "gelu"})
    momentum, plain_adam = plain_numpy.Momentum(0.1, 0.9), plain_numpy.Adam(0.01)
    for step in range(STEPS):
        for optimizer, model, head, target, loss, oracle in (
            (by_first, first, "classifier", LABELS, fc.losses.cross_entropy, momentum),
            (by_second, second, "regressor", VALUES, fc.losses.mse, plain_adam),
        ):
            optimizer.zero_grad()
            value = loss(model(X), target)
            value.backward()
            optimizer.step()
            of = plain_numpy.cross_entropy if head == "classifier" else plain_numpy.mean_squared_error
            expected, gradients = plain.gradients(["encoder", head], X, target, of)
            oracle.step(plain.parameters, gradients)
            assert value.item() == pytest.approx(expected, rel=1e-12), step
    everything = fc.nn.Sequential(encoder, classifier, regressor)
    assert_close(everything, dict(zip(everything.state_dict(), plain.parameters.values(), strict=True)))


@pytest.mark.parametrize("when", ["before packing", "after packing"])
def test_tied_kernels_get_the_sum_of_both_gradients(when):
    """An autoencoder of one kernel, used forwards and transposed, beside a chain that uses it twice."""

    class Tied(fc.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = dense(5, "tanh", 5), dense(5, None, 5)

        def forward(self, x: fc.Tensor) -> fc.Tensor:
            h = self.second(self.first(x))
            return h @ self.first.kernel.T

    fc.manual_seed(0)
    model = Tied()
    optimizer = fc.optim.Adam(model.parameters(), learning_rate=0.01) if when == "after packing" else None
    model.second.kernel = model.first.kernel
    optimizer = optimizer or fc.optim.Adam(model.parameters(), learning_rate=0.01)
    w, b1, b2 = (np.array(p.numpy()) for p in model.parameters())
    parameters, oracle = {"w": w, "b1": b1, "b2": b2}, plain_numpy.Adam(0.01)
    for _ in range(STEPS):
        optimizer.zero_grad()
        fc.losses.mse(model(X), X).backward()
        optimizer.step()
        w, b1, b2 = parameters.values()
        h1 = np.tanh(X @ w + b1)
        h2 = h1 @ w + b2
        dy = 2 * (h2 @ w.T - X) / X.size
        dh2 = dy @ w
        dz1 = dh2 @ w.T * (1 - h1**2)
        gradients = {"w": dy.T @ h2 + h1.T @ dh2 + X.T @ dz1, "b1": dz1.sum(axis=0), "b2": dh2.sum(axis=0)}
        oracle.step(parameters, gradients)
    names = ("first.kernel", "first.bias", "second.bias")
    assert_close(model, dict(zip(names, parameters.values(), strict=True)))
    twin = copy.deepcopy(model)
    assert twin.second.kernel is twin.first.kernel
    assert bits(twin) == bits(model)


# ---- frozen, grown, replaced -----------------------------------------------------------------------------------------


def test_frozen_for_a_while():
    """Ten steps of all, ten of the head, ten of all; the encoder's own count of steps waits with it."""
    fc.manual_seed(0)
    model = fc.nn.Sequential(dense(6, "gelu", 5), dense(4, "tanh", 6), dense(3, None, 4))
    optimizer = fc.optim.Adam(model.parameters(), learning_rate=0.02)
    names = ["layers.0", "layers.1", "layers.2"]
    plain = plain_numpy.Network(model.state_dict(), dict(zip(names, ("gelu", "tanh", "linear"), strict=True)))
    oracle = plain_numpy.Adam(0.02)
    for step in range(30):
        if step == 10:
            model[:2].freeze()
        if step == 20:
            model[:2].unfreeze()
        frozen = 10 <= step < 20
        optimizer.zero_grad()
        fc.losses.cross_entropy(model(X), LABELS).backward()
        assert [p.has_grad for p in model.parameters()] == [not frozen] * 4 + [True] * 2
        optimizer.step()
        _, gradients = plain.gradients(names, X, LABELS, plain_numpy.cross_entropy)
        oracle.step(plain.parameters, {n: g for n, g in gradients.items() if not frozen or n.startswith("layers.2")})
    assert_close(model, plain.parameters)


def test_frozen_between_backward_and_step():
    model = network()
    optimizer = adam(model)
    train(model, optimizer, range(3))
    fc.losses.cross_entropy(model(X), LABELS).backward()
    model[0].freeze()
    before = bits(model)
    optimizer.step()
    changed = [name for name, value in bits(model).items() if value != before[name]]
    assert changed == ["layers.1.scale", "layers.1.bias", "layers.3.kernel", "layers.3.bias"]


def test_a_graph_from_before_the_optimizer_knows_of_its_steps():
    """Packing moves the values, and is no change; a step is one."""
    model = network()
    before, packed = model(X).sum(), model(X).sum()
    optimizer = adam(model)
    packed.backward()
    train(model, optimizer, range(1))
    with pytest.raises(GraphError, match="changed in place"):
        before.backward()


@pytest.mark.parametrize("lazy", [False, True])
def test_a_layer_that_is_added_or_replaced_later(lazy):
    """One optimizer of a growing model does what one optimizer for each layer does."""

    def grow(separate: bool) -> Bits:
        fc.manual_seed(0)
        model = fc.nn.Sequential(dense(6, "tanh", 5), dense(3, None, 6))
        made = [adam(layer) for layer in model] if separate else [adam(model)]

        def take(layer: fc.nn.Module) -> None:
            if separate:
                made.append(adam(layer))
            else:
                made[0].add_parameters(layer.parameters())

        train(model, made, range(5))
        model.insert(1, dense(6, "gelu", None if lazy else 6))
        if lazy:
            model(X)
        take(model[1])
        train(model, made, range(5, 10))
        model[0] = dense(6, "relu", None if lazy else 5)
        if lazy:
            model(X)
        take(model[0])
        if separate:
            del made[0]  # the layer that nobody calls any more
        train(model, made, range(10, 15))
        return bits(model)

    assert grow(separate=False) == grow(separate=True)


def test_an_optimizer_made_before_the_sizes_are_known():
    model = network(lazy=True)
    optimizer = adam(model)
    assert not any(p.is_built for p in model.parameters())
    train(model, optimizer, range(STEPS))
    assert bits(model) == undisturbed()


def test_layers_of_different_precision():
    """A float64 layer between float32 layers lies in an arena of its own; each kernel is updated in its own dtype."""

    def mixed(separate: bool) -> Bits:
        fc.manual_seed(0)
        layers = dense(6, "tanh", 5, "float32"), dense(6, "gelu", 6, "float64"), dense(3, None, 6, "float32")
        model = fc.nn.Sequential(*layers)
        with pytest.warns(DTypeWarning):
            model(X)
        before = bits(model)
        train(model, [adam(layer) for layer in model] if separate else adam(model), range(STEPS))
        assert all(bits(model)[name] != before[name] for name in before)
        assert [p.grad.dtype for p in model.parameters()] == [p.dtype for p in model.parameters()]
        return bits(model)

    assert mixed(separate=False) == mixed(separate=True)
