"""The 16-bit copies of parameters: never out of date, whoever changes the parameters and however steps are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

import fcdense as fc
from fcdense.backends import Device
from fcdense.errors import CaptureError
from tests.shadows import CHANGES, DEVICES, X, check, loss_of, network, train


@pytest.fixture(params=DEVICES)
def on(request: pytest.FixtureRequest) -> Iterator[Device]:
    with fc.use_device(DEVICES[request.param]), fc.use_precision("bfloat16"):
        fc.manual_seed(0)
        yield DEVICES[request.param]


each_change = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)


@each_change
@pytest.mark.parametrize("packed", [True, False])
def test_changes_are_seen(on: Device, change: Callable[[Any, Any], None], packed: bool) -> None:
    model = network()
    optimizer = fc.optim.SGD(model.parameters(), 0.125) if packed else None
    check(model)
    before = model(X).numpy().copy()
    change(model, optimizer or fc.optim.SGD(model.parameters(), 0.125))
    check(model)
    assert np.abs(model(X).numpy().astype(float) - before.astype(float)).max() > 0.2


@each_change
def test_a_replay_sees_them(on: Device, change: Callable[[Any, Any], None]) -> None:
    model = network()
    optimizer = fc.optim.SGD(model.parameters(), 0.125)
    step = fc.capture(lambda x: model(x))
    for _ in range(3):
        check(model, step(X))
    assert step.is_recorded
    change(model, optimizer)
    check(model, step(X))
    change(model, optimizer)
    check(model, step(X))


@each_change
def test_a_captured_training_step_sees_them(on: Device, change: Callable[[Any, Any], None]) -> None:
    results = []
    for captured in (False, True):
        fc.manual_seed(0)
        model = network()
        optimizer = fc.optim.Adam(model.parameters(), 0.1)
        run = partial(train, model, optimizer)
        run = fc.capture(run) if captured else run
        losses = []
        for number in range(6):
            losses.append(float(run(fc.tensor(X)).item()))
            if number in (2, 4):
                change(model, optimizer)
        check(model)
        results.append((losses, [p.numpy().copy() for p in model.parameters()]))
    assert results[0][0] == results[1][0]
    for eager, replayed in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_array_equal(replayed, eager)


# ---- steps that change parameters in between -------------------------------------------------------------------------


def test_a_captured_step_that_computes_before_and_after_its_update(on: Device) -> None:
    results = []
    for captured in (False, True):
        fc.manual_seed(0)
        model = network()
        optimizer = fc.optim.SGD(model.parameters(), 0.25)

        def step(x: Any, scale: Any, model: Any = model, optimizer: Any = optimizer) -> Any:
            with fc.no_grad():
                model[1].kernel[:] = model[1].kernel * scale  # before any use
            before = model(x)
            optimizer.zero_grad()
            loss_of(before).backward()
            optimizer.step()
            after = model(x)
            with fc.no_grad():
                model[0].bias[:] = model[0].bias + 1.0
                model[0].kernel[:] = model[0].kernel * 0.5  # after the last use of it
            return before, after

        run = fc.capture(step) if captured else step
        scale = fc.tensor(np.float32(1.5))
        results.append([[np.array(t.numpy()) for t in run(fc.tensor(X), scale)] for _ in range(5)])
    for eager, replayed in zip(*results, strict=True):
        for a, b in zip(eager, replayed, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_change_behind_the_last_use(on: Device) -> None:
    results = []
    for captured in (False, True):
        fc.manual_seed(0)
        model = network()
        optimizer = fc.optim.SGD(model.parameters(), 0.125)

        def step(x: Any, model: Any = model, optimizer: Any = optimizer) -> Any:
            loss = train(model, optimizer, x)
            with fc.no_grad():
                model[0].kernel[:] = model[0].kernel * 0.5
            return loss

        run = fc.capture(step) if captured else step
        results.append([float(run(fc.tensor(X)).item()) for _ in range(5)])
        check(model)
    assert results[0] == results[1]


def test_another_change_between_the_last_use_and_an_update_of_a_part(on: Device) -> None:
    results = []
    for captured in (False, True):
        fc.manual_seed(0)
        model = network()
        fc.optim.SGD(model.parameters(), 0.125)  # all parameters side by side, with one copy
        optimizer = fc.optim.SGD(model[0].parameters(), 0.125)

        def step(x: Any, model: Any = model, optimizer: Any = optimizer) -> Any:
            optimizer.zero_grad()
            loss_of(model(x)).backward()
            with fc.no_grad():
                model[1].kernel[:] = model[1].kernel * 0.5
            optimizer.step()
            return model(x)

        run = fc.capture(step) if captured else step
        results.append([np.array(run(fc.tensor(X)).numpy()) for _ in range(5)])
        check(model)
    np.testing.assert_array_equal(*map(np.array, results))


class Fading(fc.nn.Module):
    """Adds to a network's output that of a layer which it does not own, and changes that layer after its use."""

    def __init__(self, layer: fc.nn.Dense) -> None:
        super().__init__()
        self.inner = network()
        self.other = lambda: layer

    def forward(self, x: Any) -> Any:
        with fc.no_grad():
            other = self.other()
            added = other(x)
            other.kernel[:] = other.kernel * 0.75
        return self.inner(x) + added


def test_steps_in_one_call_that_leave_the_copies_behind(on: Device) -> None:
    x = np.tile(X, (8, 1))
    y = np.arange(len(x)) % 3
    results = []
    for capture in (False, True):
        fc.manual_seed(0)
        model = Fading(fc.nn.Dense(3, in_features=8))
        trainer = fc.Trainer(model, "cross_entropy", "sgd", precision="bfloat16", capture=capture)
        history = trainer.fit(x, y, epochs=3, batch_size=6, verbose=False)
        assert trainer.not_captured == ("" if capture else "capture=False")
        results.append([*model.state_dict().values(), np.array(history["loss"])])
        assert np.abs(model.other().kernel.numpy()).max() < 0.1  # 0.75 ** 24 of what it was
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_an_update_before_the_first_use(on: Device) -> None:
    results = []
    for captured in (False, True):
        fc.manual_seed(0)
        model = network()
        optimizer = fc.optim.SGD(model.parameters(), 0.25)
        loss_of(model(X)).backward()

        def step(x: Any, model: Any = model, optimizer: Any = optimizer) -> Any:
            optimizer.step()
            optimizer.zero_grad()
            y = model(x)
            loss_of(y).backward()
            return y

        run = fc.capture(step) if captured else step
        results.append([np.array(run(fc.tensor(X)).numpy()) for _ in range(5)])
        check(model)
    np.testing.assert_array_equal(*map(np.array, results))


def test_constraints(on: Device) -> None:
    for captured in (False, True):
        model = network(kernel_constraint=fc.constraints.max_norm(0.25))
        optimizer = fc.optim.SGD(model.parameters(), 0.125)
        run = partial(train, model, optimizer)
        run = fc.capture(run) if captured else run
        for _ in range(4):
            run(X)
            check(model)
        assert np.linalg.norm(model[0].kernel.numpy(), axis=0).max() <= 0.2501


def test_constrained_kernels_after_an_update_in_one_captured_step(on: Device) -> None:
    model = network(kernel_constraint=fc.constraints.max_norm(0.25))
    optimizer = fc.optim.SGD(model.parameters(), 0.125)

    @fc.capture
    def step(x: Any) -> Any:
        train(model, optimizer, x)
        return model(x)

    check(model, step(X))
    with pytest.raises(CaptureError, match="uses a parameter with a constraint after"):
        step(X)


def test_a_step_that_is_left_out(on: Device) -> None:
    model = network()
    optimizer = fc.optim.SGD(model.parameters(), 0.125)
    for captured in (False, True):
        run = partial(train, model, optimizer, check_finite=True)
        run = fc.capture(run) if captured else run
        for number in (1.0, np.inf, 1.0, np.nan, 1.0):
            with np.errstate(all="ignore"):
                run(np.full_like(X, number))
            check(model)
    assert optimizer.skipped_steps == 4
