"""Training that is broken off: a real Ctrl-C, errors of callbacks and generators, too few batches."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

import fcdense as fc
from fcdense.errors import ArgumentError, DataError
from tests.bad_input.unchanged import refused, settled, state_of, table

X, Y = table(24)


class Closing(fc.callbacks.Callback):
    """Notes what it was told."""

    def __init__(self) -> None:
        self.opened = self.closed = 0

    def on_train_begin(self, epochs: int, steps: int | None) -> None:
        self.opened += 1

    def on_train_end(self) -> None:
        self.closed += 1


class At(fc.callbacks.Callback):
    """Does something after step 2."""

    def __init__(self, action: Callable[[], Any]) -> None:
        self.action = action

    def on_step_end(self, step: int, logs: dict[str, float]) -> None:
        if step == 2:
            self.action()


def fail() -> None:
    raise OSError("the disk is gone")


def batches(count: int, then: Callable[[], Any] = lambda: None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for i in range(count):
        yield X[4 * i : 4 * i + 4], Y[4 * i : 4 * i + 4]
    then()


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


PLACES: dict[str, Callable[[Callable[[], None]], tuple[tuple[Any, ...], list[fc.callbacks.Callback]]]] = {
    "callback": lambda action: ((lambda: batches(6),), [At(action)]),
    "generator": lambda action: ((lambda: batches(3, action),), []),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("action", "error"), [(ctrl_c, KeyboardInterrupt), (fail, OSError)])
def test_whatever_ends_training_leaves_the_steps_before_it(place, action, error):
    trainer, expected = settled(), settled()
    closing = Closing()
    data, others = PLACES[place](action)
    with pytest.raises(error) as caught:
        trainer.fit(*data, callbacks=[closing, *others, closing], verbose=False)
    if place == "callback":
        assert caught.value.__notes__ == ["Raised by callback At.on_step_end."]
    elif error is OSError:
        assert caught.value.__notes__ == ["Raised by '<lambda>' while making batch 3 of epoch 1."]
    expected.fit(lambda: batches(3), verbose=False)
    assert state_of(trainer.model, trainer.optimizer) == state_of(expected.model, expected.optimizer)
    assert (closing.opened, closing.closed) == (2, 2)
    assert not any(module.training for module in trainer.model.modules())
    assert len(trainer.history) == 1
    assert np.isfinite(trainer.predict(X)).all()
    trainer.fit(X, Y, verbose=False)
    assert len(trainer.history) == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Python drops what falls in a __del__
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timer signals")
@pytest.mark.parametrize("is_new", [False, True])
@pytest.mark.parametrize("seconds", np.geomspace(1e-3, 3e-2, 6))
def test_ctrl_c_at_any_moment_leaves_a_model_that_learns(seconds, is_new):
    layers = fc.nn.Dense(4, "tanh"), fc.nn.Dropout(0.1), fc.nn.Dense(3)
    trainer = fc.Trainer(fc.nn.Sequential(*layers)) if is_new else settled(*layers)
    closing, settings = Closing(), np.geterr()
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, seconds, 2.0)  # again, should the first fall into a __del__
            trainer.fit(X, Y, epochs=10**6, batch_size=4, callbacks=[closing], verbose=False)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert np.geterr() == settings
    assert closing.opened <= closing.closed <= 1
    others = (Y + 1) % 3  # of its own ones it may have learned all that there is in two seconds
    before = trainer.evaluate(X, others)["loss"]
    assert all(np.isfinite(array).all() for array in trainer.model.state_dict().values())
    trainer.fit(X, others, epochs=30, verbose=False)
    assert trainer.evaluate(X, others)["loss"] < before


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timer signals")
def test_ctrl_c_at_any_moment_leaves_settings_as_they_were():
    """In one of ten tries it comes between the switch and the block, or where the block's end is told."""
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for microseconds in np.random.default_rng(0).uniform(20.0, 200.0, 400):
            with suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, 1e-6 * microseconds)
                while True:
                    with fc.no_grad(), fc.no_grad(), fc.use_precision("tf32"), fc.use_device("reference"):
                        pass
            assert (2.0 * fc.tensor([1.0], requires_grad=True)).requires_grad
            assert fc.current_precision() == "float32"
            assert fc.current_device().name != "reference"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


def test_a_generator_shorter_than_an_epoch():
    trainer = settled()
    words = ("'batches' ended after 2 batches of epoch 2", "steps_per_epoch=4", "pass the function that makes it")
    with pytest.raises(DataError) as caught:
        trainer.fit(batches(6), steps_per_epoch=4, epochs=2, verbose=False)
    assert all(word in str(caught.value) for word in words), caught.value
    assert not any(module.training for module in trainer.model.modules())
    with pytest.raises(DataError, match=r"'<lambda>' ended after 6 batches of epoch 2, .*yield more batches"):
        trainer.fit(lambda: batches(6), steps_per_epoch=7, verbose=False)


def test_more_steps_than_rows():
    trainer = settled()
    with refused(ArgumentError, "steps_per_epoch is 7", "24 rows make 6 batches of 4", "lower it", keeps=(trainer,)):
        trainer.fit(X, Y, batch_size=4, steps_per_epoch=7, verbose=False)


def test_a_generator_that_was_used_up():
    trainer = settled()
    generator = batches(6)
    trainer.fit(generator, verbose=False)
    with refused(DataError, "'batches'", "pass the function that makes it", keeps=(trainer,)):
        trainer.fit(generator, verbose=False)


@pytest.mark.parametrize("source", [None, 3, "data.csv", {"x": X}, X])
def test_what_makes_no_batches(source):
    trainer = settled()
    with refused(ArgumentError, "expected" if source is not X else "targets y are missing", keeps=(trainer,)):
        trainer.fit(source, verbose=False)


@pytest.mark.parametrize("batch", [None, {"x": X, "y": Y}, (X, Y, np.ones(24), Y), ()], ids=["None", "dict", "4", "0"])
def test_what_is_no_batch(batch):
    trainer = settled()
    with refused(DataError, "batch 0 of 'list'", "expected x, (x, y) or (x, y, sample_weight)", keeps=(trainer,)):
        trainer.fit([batch], verbose=False)


def test_a_callback_that_is_none():
    trainer = settled()
    with refused(ArgumentError, "callbacks holds <built-in function print>", "Callback", keeps=(trainer,)):
        trainer.fit(X, Y, callbacks=[print], verbose=False)
