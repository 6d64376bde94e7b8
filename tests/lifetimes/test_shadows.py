"""The 16-bit copies of parameters that move, and how often copies are made."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

import fcdense as fc
from fcdense.backends import Device
from fcdense.errors import CaptureError, GraphError
from fcdense.shadow import Shadow
from tests.shadows import (
    COUNTING,
    DEVICES,
    CountingBackend,
    X,
    by_an_assignment_before_a_step,
    by_assign,
    by_training_in_float32,
    check,
    expected,
    loss_of,
    network,
    train,
)


@pytest.fixture(params=DEVICES)
def on(request: pytest.FixtureRequest) -> Iterator[Device]:
    with fc.use_device(DEVICES[request.param]), fc.use_precision("bfloat16"):
        fc.manual_seed(0)
        yield DEVICES[request.param]


@pytest.fixture
def reference() -> Iterator[CountingBackend]:
    with fc.use_device(DEVICES["reference"]), fc.use_precision("bfloat16"):
        fc.manual_seed(0)
        COUNTING.casts = 0
        yield COUNTING


# ---- parameters that move --------------------------------------------------------------------------------------------


def test_an_optimizer_that_is_made_later(on: Device) -> None:
    model = network()
    step = fc.capture(lambda x: model(x))
    for _ in range(3):
        check(model, step(X))
    optimizer = fc.optim.SGD(model.parameters(), 0.125)
    check(model)
    train(model, optimizer)
    check(model)
    with pytest.raises(CaptureError, match="has moved"):
        step(X)


def test_layers_that_are_added_later(on: Device) -> None:
    model = network()
    optimizer = fc.optim.SGD(model.parameters(), 0.125)
    train(model, optimizer)
    model.append(fc.nn.Dense(3, in_features=3))
    optimizer.add_parameters(model[2].parameters())
    for _ in range(2):
        train(model, optimizer)
        check(model)
    assert model[2].kernel.arena is not model[0].kernel.arena


def test_a_parameter_of_two_layers(on: Device) -> None:
    model = fc.nn.Sequential(
        fc.nn.Dense(8, in_features=8), fc.nn.Dense(8, in_features=8), fc.nn.Dense(3, in_features=8)
    )
    model[1].kernel = model[0].kernel
    check(model)
    optimizer = fc.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        train(model, optimizer)
        check(model)
    assert model[0].kernel.arena is not None
    assert len(model[0].kernel.arena.shadows) == 1


def test_moves_to_another_device_and_back(on: Device) -> None:
    model = network()
    optimizer = fc.optim.SGD(model.parameters(), 0.125)
    train(model, optimizer)
    with fc.use_precision("float32"):
        model.to("cpu")
        train(model, optimizer)
    model.to(on)
    check(model)
    train(model, optimizer)
    check(model)


def test_moves_without_an_optimizer(on: Device) -> None:
    model = network()
    check(model)
    model.to("cpu")
    by_assign(model, None)
    model.to(on)
    check(model)


def test_copies_have_their_own(on: Device) -> None:
    model = network()
    optimizer = fc.optim.SGD(model.parameters(), 0.125)
    train(model, optimizer)
    again = copy.deepcopy(model)
    train(model, optimizer)
    check(model)
    check(again)
    by_assign(again, None)
    check(again)
    check(model)


def test_pickled_models_begin_without_one() -> None:
    with fc.use_device("reference"), fc.use_precision("bfloat16"):
        model = network()
        check(model)
        again = pickle.loads(pickle.dumps(model))
        by_assign(model, None)
        check(again)
        check(model)


def test_both_dtypes_at_once(on: Device) -> None:
    model = network()
    optimizer = fc.optim.SGD(model.parameters(), 0.125)
    for _ in range(3):
        with fc.use_precision("float16"):
            halves = model(X).numpy().astype(float)
        np.testing.assert_allclose(halves, expected(model), rtol=2.0**-6, atol=2.0**-6)
        check(model)
        train(model, optimizer)
    assert {str(dtype) for dtype in model[0].kernel.arena.shadows} == {"float16", "bfloat16"}


# ---- backward passes -------------------------------------------------------------------------------------------------


def test_a_change_between_forward_and_backward_is_refused(on: Device) -> None:
    model = network()
    fc.optim.SGD(model.parameters(), 0.125)
    loss = loss_of(model(X))
    by_assign(model, None)
    with pytest.raises(GraphError, match="changed in place"):
        loss.backward()


# ---- what it costs ---------------------------------------------------------------------------------------------------


def gradients(model: Any, optimizer: Any, x: Any) -> None:
    optimizer.zero_grad()
    loss_of(model(x)).backward()


@pytest.mark.parametrize("captured", ["nothing", "a step", "all but the update"])
def test_training_makes_one_copy_and_keeps_it(captured: str, reference: CountingBackend) -> None:
    model = network()
    optimizer = fc.optim.Adam(model.parameters(), 0.01)
    step, backward = partial(train, model, optimizer), partial(gradients, model, optimizer)
    run = {"nothing": step, "a step": fc.capture(step), "all but the update": fc.capture(backward)}[captured]
    counts = []
    for _ in range(5):
        run(X)
        if captured == "all but the update":
            optimizer.step()
        counts.append(reference.casts)
        check(model)
    assert counts == [2, 3, 4, 5, 6]  # the gradient of each loss, and one copy


def test_a_model_without_optimizer_is_copied_once(reference: CountingBackend) -> None:
    model = network()
    for _ in range(3):
        check(model)
    assert reference.casts == 2
    by_assign(model, None)
    check(model)
    assert reference.casts == 3


def test_an_optimizer_does_not_keep_up_what_nobody_uses(on: Device) -> None:
    model = network()
    optimizer = fc.optim.SGD(model.parameters(), 0.125)
    train(model, optimizer)
    (shadow,) = model[0].kernel.arena.shadows.values()
    for _ in range(2):
        by_training_in_float32(model, optimizer)
        assert not shadow.is_current
    check(model)


def test_an_optimizer_does_not_write_what_was_out_of_date(reference: CountingBackend) -> None:
    model = network()
    optimizer = fc.optim.SGD(model.parameters(), 0.125)
    train(model, optimizer)
    (shadow,) = model[0].kernel.arena.shadows.values()
    assert isinstance(shadow, Shadow)
    assert shadow.is_current
    by_an_assignment_before_a_step(model, optimizer)
    assert not shadow.is_current
    check(model)
    assert shadow.is_current
