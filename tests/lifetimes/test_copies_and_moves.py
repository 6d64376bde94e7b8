"""Models that are copied, moved, saved and dropped while they are trained: training goes on with the same bits."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

import fcdense as fc
from fcdense.errors import GraphError
from tests.lifetimes.network import (
    LABELS,
    STEPS,
    X,
    adam,
    assert_close,
    bits,
    network,
    train,
    undisturbed,
)

# ---- copied ----------------------------------------------------------------------------------------------------------

COPIES: dict[str, Callable[[Any], Any]] = {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("order", ["model first", "optimizer first"])
def test_copies_of_model_and_optimizer_go_on_with_the_same_bits(copied, order):
    model = network()
    optimizer = adam(model)
    train(model, optimizer, range(7))
    pair = (model, optimizer) if order == "model first" else (optimizer, model)
    twins = COPIES[copied](pair)
    twin, by_twin = twins if order == "model first" else twins[::-1]
    before = bits(model)
    assert bits(twin) == before
    train(twin, by_twin, range(7, STEPS))
    assert bits(twin) == undisturbed()
    assert bits(model) == before
    train(model, optimizer, range(7, STEPS))
    assert bits(model) == undisturbed()


def test_a_copy_between_backward_and_step_has_no_gradient():
    model = network()
    optimizer = adam(model)
    fc.losses.cross_entropy(model(X), LABELS).backward()
    twin, by_twin = copy.deepcopy((model, optimizer))
    with pytest.raises(GraphError, match="no gradient"):
        by_twin.step()
    optimizer.step()
    assert bits(model) != bits(twin)


# ---- moved -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moved", ["all", "first layer", "last layer", "one parameter"])
def test_to_another_device_and_back_while_training(moved):
    """The reference device computes in float64 as well, in another order."""
    model = network()
    optimizer = adam(model)
    parts = {"all": model, "first layer": model[0], "last layer": model[3]}
    train(model, optimizer, range(5))
    old = weakref.ref(next(model.parameters()).arena)
    if moved == "one parameter":
        model[3].bias.move(fc.device("reference"))
    else:
        parts[moved].to("reference")

    def across(x: np.ndarray) -> fc.Tensor:
        h = fc.tensor(x)
        for layer in model:
            h = layer(h.to(fc.nn.device_of(layer)))
        return h.to("cpu")

    if moved == "one parameter":
        model[3].bias.move(fc.device("cpu"))
    train(across, optimizer, range(5, 12))
    model.to("cpu")
    train(model, optimizer, range(12, STEPS))
    other = network()
    by_other = adam(other)
    train(other, by_other, range(STEPS))
    assert_close(model, other.state_dict(), 1e-11)
    assert optimizer.steps == STEPS
    if moved == "all":
        gc.collect()
        assert old() is None, "the optimizer keeps an arena alive that nobody lives in"


def test_a_move_forgets_the_gradients():
    model = network()
    optimizer = adam(model)
    fc.losses.cross_entropy(model(X), LABELS).backward()
    model.to("reference")
    before = bits(model)
    with pytest.raises(GraphError, match="no gradient"):
        optimizer.step()
    assert bits(model) == before
    train(lambda x: model(fc.tensor(x, device="reference")), optimizer, range(3))


# ---- saved -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("through", ["state_dict", "file"])
def test_states_go_into_fresh_models(lazy, through, tmp_path):
    model = network()
    optimizer = adam(model)
    train(model, optimizer, range(9))
    if through == "file":
        fresh = fc.load(fc.save(tmp_path / "model.safetensors", model))
        fresh.train()
    else:
        fresh = network(lazy)
        fresh.load_state_dict(model.state_dict())
    by_fresh = adam(fresh)
    by_fresh.load_state_dict(optimizer.state_dict())
    assert bits(fresh) == bits(model)
    before = bits(model)
    train(fresh, by_fresh, range(9, STEPS))
    assert bits(fresh) == undisturbed()
    assert bits(model) == before


def test_back_to_an_earlier_state_while_training():
    model = network()
    optimizer = adam(model)
    train(model, optimizer, range(9))
    saved = model.state_dict(), optimizer.state_dict()
    train(model, optimizer, range(50, 60))
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    train(model, optimizer, range(9, STEPS))
    assert bits(model) == undisturbed()


# ---- for a long time -------------------------------------------------------------------------------------------------


def test_memory_does_not_grow():
    """2,000 steps: batches of changing size, graphs that nobody walks, a moved layer and a failed call now and then."""
    model = network()
    optimizer = adam(model)

    def some(steps: Iterable[int]) -> int:
        for step in steps:
            rows = slice(0, 16 if step % 4 else 11)
            optimizer.zero_grad()
            fc.losses.cross_entropy(model(X[rows]), LABELS[rows]).backward()
            optimizer.step()
            if step % 20 == 0:
                model(X)
                model.state_dict()
                with pytest.raises(fc.errors.ShapeError):
                    model(X[:, 1:])
            if step % 100 == 0:
                model[0].to("reference").to("cpu")
        gc.collect()
        return sys.getallocatedblocks()

    some(range(200))
    before = some(range(100))
    assert some(range(2000)) - before < 200, "Python objects, of which every array is one"


def test_a_model_that_is_dropped_is_freed():
    model = network()
    optimizer = adam(model)
    train(model, optimizer, range(3))
    arena = weakref.ref(next(model.parameters()).arena)
    del model, optimizer
    gc.collect()
    assert arena() is None
