"""Memory that is not there: which bytes were asked for, and that a failure leaves everything for the next try."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import fcdense as fc
from fcdense.errors import OutOfMemory
from fcdense.layout import ALIGNMENT
from tests.bad_input.unchanged import facts, refused, state_of

ROWS, FEATURES, HIDDEN, CLASSES = 301, 23, 211, 19
"""Odd sizes, whose arrays are kept by no workspace yet, and all large enough to be asked for by their bytes."""


@contextmanager
def failing_at(call: int) -> Iterator[list[int]]:
    """The large array number `call` (from 0) that is asked for is not to be had; the list counts all of them."""
    sizes: list[int] = []

    def watched(real: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        def allocate(shape: Any, dtype: Any = float, *rest: Any, **options: Any) -> np.ndarray:
            if dtype is np.uint8 and isinstance(shape, int):
                sizes.append(shape)
                if len(sizes) == call + 1:
                    raise MemoryError
            return real(shape, dtype, *rest, **options)

        return allocate

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "empty", watched(np.empty))
        patch.setattr(np, "zeros", watched(np.zeros))
        yield sizes


def in_a_thread(function: Callable[[], Any]) -> Any:
    """With a workspace of its own, in which no array waits."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


def model(in_features: int | None = FEATURES) -> fc.nn.Sequential:
    fc.manual_seed(0)
    hidden = fc.nn.Dense(HIDDEN, "gelu", in_features=in_features)
    return fc.nn.Sequential(hidden, fc.nn.LayerNorm(), fc.nn.Dropout(0.2), fc.nn.Dense(CLASSES))


def data() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.normal(size=(ROWS, FEATURES)).astype(np.float32), generator.integers(0, CLASSES, ROWS)


def step(network: fc.nn.Module, optimizer: fc.optim.Optimizer) -> None:
    x, y = data()
    optimizer.zero_grad()
    fc.losses.cross_entropy(network(x), y).backward()
    optimizer.step()


def test_a_step_that_fails_anywhere_changes_nothing():
    """Forward, loss, backward: each array in turn is not to be had, and after all of it the step is the same."""
    network, undisturbed = model(), model()
    optimizer, other = (fc.optim.Adam(m.parameters(), weight_decay=0.1) for m in (network, undisturbed))
    for trained, by in ((network, optimizer), (undisturbed, other)):
        fc.manual_seed(1)
        step(trained, by)
    optimizer.zero_grad()
    with failing_at(-1) as sizes:
        in_a_thread(lambda: fc.losses.cross_entropy(network(data()[0]), data()[1]).backward())
    assert len(sizes) >= 8
    optimizer.zero_grad()
    before = state_of(network, optimizer)
    for call, size in enumerate(sizes):
        fc.manual_seed(2)
        with (
            failing_at(call),
            pytest.raises(OutOfMemory, match=rf"{size - ALIGNMENT:,} bytes .* smaller batch or smaller"),
        ):
            in_a_thread(lambda: step(network, optimizer))
        optimizer.zero_grad()
        assert state_of(network, optimizer) == before
    fc.manual_seed(2)
    in_a_thread(lambda: step(network, optimizer))
    fc.manual_seed(2)
    step(undisturbed, other)
    assert state_of(network, optimizer) == state_of(undisturbed, other)


@pytest.mark.parametrize("in_features", [FEATURES, None])
@pytest.mark.parametrize("call", range(4))
def test_the_arena_or_a_slot_that_fails_is_made_at_the_next_try(call, in_features):
    """Values, gradients, and both slots of Adam, when the first step needs them."""

    def two_steps(fails: bool) -> list[Any]:
        network = model(in_features)
        optimizer = fc.optim.Adam(network.parameters())
        fc.manual_seed(1)
        fc.losses.cross_entropy(network(data()[0]), data()[1]).backward()
        if fails:
            before = facts(network)
            with failing_at(call) as sizes, pytest.raises(OutOfMemory, match=r"bytes \(shape \(\d+,\), float32\)"):
                optimizer.step()
            assert len(sizes) == call + 1
            assert facts(network) == before
        optimizer.step()
        step(network, optimizer)
        return state_of(network, optimizer)

    assert two_steps(fails=True) == two_steps(fails=False)


def test_training_can_go_on_with_a_smaller_batch():
    trainer = fc.Trainer(model())
    x, y = data()
    trainer.fit(x[:50], y[:50], batch_size=25, verbose=False)
    with refused(OutOfMemory, "bytes", "smaller batch", keeps=(trainer.optimizer, trainer.model)), failing_at(0):
        in_a_thread(lambda: trainer.fit(x, y, batch_size=ROWS, verbose=False))
    trainer.fit(x, y, batch_size=25, verbose=False)
    assert np.isfinite(trainer.history["loss"]).all()


def test_predicting_leaves_the_model_as_it_was():
    network = model()
    network.train()
    trainer = fc.Trainer(network)
    with refused(OutOfMemory, "bytes", keeps=(trainer,)), failing_at(0):
        in_a_thread(lambda: trainer.predict(data()[0], batch_size=ROWS))
    assert all(module.training for module in network.modules())
    assert trainer.predict(data()[0], batch_size=10).shape == (ROWS, CLASSES)


def test_more_than_any_machine_has():
    huge = np.broadcast_to(np.float32(1), (2**20, 2**24))
    for call in (fc.tensor, fc.nn.Dense(2)):
        with refused(OutOfMemory, f"{2**46:,} bytes", "(1048576, 16777216), float32"):
            call(huge)
    row = fc.tensor(np.ones((1, 2), np.float32))
    column = fc.Tensor(np.broadcast_to(np.float32(1), (2**45, 1)), row.device)
    with refused(OutOfMemory, f"{2**48:,} bytes", "(35184372088832, 2), float32"):
        column * row
