"""Training on a real GPU: the numbers of the reference, the same bits from a replay, and memory that stays flat."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

import fcdense as fc
from tests.cuda.test_training import CASES, trained

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("network", "optimizer"), CASES)
def test_steps_are_those_of_the_reference(network: str, optimizer: str) -> None:
    with fc.use_device("reference"):
        losses, parameters = trained(network, optimizer, False)
    with fc.use_device("cuda"):
        found, values = trained(network, optimizer, False)
    np.testing.assert_allclose(found, losses, rtol=2e-4)
    for ours, theirs in zip(values, parameters, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(("network", "optimizer"), CASES)
def test_a_replay_has_the_bits_of_an_eager_step(network: str, optimizer: str) -> None:
    with fc.use_device("cuda"):
        (losses, parameters), (replayed, values) = (trained(network, optimizer, captured) for captured in (False, True))
    assert replayed == losses
    for ours, theirs in zip(values, parameters, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_network_learns() -> None:
    data = fc.data.digits().split(0.2, seed=0)
    with fc.use_device("cuda"):
        fc.manual_seed(0)
        model = fc.nn.Sequential(fc.nn.Dense(128, "relu"), fc.nn.Dense(64, "gelu"), fc.nn.Dense(10))
        trainer = fc.Trainer(model, "cross_entropy", "adam", metrics=["accuracy"], learning_rate=0.002)
        trainer.fit(data.x_train, data.y_train, epochs=10, batch_size=64, verbose=False)
        assert not trainer.not_captured
        assert trainer.evaluate(data.x_test, data.y_test)["accuracy"] > 0.95


@pytest.mark.parametrize("capture", [True, False])
def test_a_callers_arrays_have_the_bits_of_the_hosts(capture: bool) -> None:
    import cupy

    data = fc.data.digits()
    found = []
    for convert in (np.asarray, cupy.asarray):
        x, y = convert(data.x), convert(data.y.astype(np.int32))
        with fc.use_device("cuda"):
            fc.manual_seed(0)
            model = fc.nn.Sequential(fc.nn.Dense(32, "relu"), fc.nn.Dense(10))
            trainer = fc.Trainer(model, metrics=["accuracy"], capture=capture)
            history = trainer.fit(x, y, epochs=2, batch_size=64, validation_split=0.2, verbose=False)
            predicted = fc.predict(model, x)
            assert type(predicted) is type(x)
        found.append((list(history), [p.numpy() for p in model.parameters()], cupy.asnumpy(predicted)))
    (wanted, expected, outputs), (logs, values, predictions) = found
    assert logs == wanted
    np.testing.assert_array_equal(predictions, outputs)
    for ours, theirs in zip(values, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_callers_targets_and_gradients_may_be_overwritten_at_once() -> None:
    import cupy

    values = np.random.default_rng(0).standard_normal((1 << 15, 64)).astype(np.float32)
    with fc.use_device("cuda"), cupy.cuda.Stream(non_blocking=True):
        for _ in range(4):
            x = fc.tensor(values, requires_grad=True)
            given = cupy.asarray(values + 1)
            loss = fc.losses.mse(x, given)
            given.fill(0)
            given = cupy.asarray(values)
            (x * 2).backward(given)
            given.fill(0)
            np.testing.assert_allclose(loss.item(), 1.0, rtol=1e-5)
            np.testing.assert_array_equal(x.grad.numpy(), 2 * values)


def step_of(model: Any, optimizer: Any) -> Any:
    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        loss = fc.losses.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


@pytest.mark.alone
@pytest.mark.parametrize(("captured", "steps"), [(True, 10_000), (False, 1_000)])
def test_memory_stays_flat(captured: bool, steps: int) -> None:
    import cupy

    rng = np.random.default_rng(0)
    with fc.use_device("cuda") as on:
        driver: Any = on.backend.driver  # type: ignore[attr-defined]
        fc.manual_seed(0)
        model = fc.nn.Sequential(fc.nn.Dense(64, "relu"), fc.nn.Dropout(0.1), fc.nn.Dense(10))
        model(np.zeros((32, 20), np.float32))
        step = step_of(model, fc.optim.Adam(model.parameters(), 1e-3))
        run = fc.capture(step) if captured else step
        held = []
        for number in range(1, steps + 1):
            x, y = rng.normal(size=(32, 20)).astype(np.float32), rng.integers(0, 10, 32)
            loss = run(fc.tensor(x), fc.tensor(y))
            if number in (steps // 10, steps):
                assert np.isfinite(loss.numpy())
                with driver.device:
                    held.append((driver._pool.total_bytes(), cupy.cuda.runtime.memGetInfo()[0]))
    assert held[0][0] == held[1][0]
    if "PYTEST_XDIST_WORKER" not in os.environ:  # others take memory meanwhile
        assert held[1][1] >= held[0][1]
