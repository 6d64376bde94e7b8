"""Memory that ends in the middle of training: `OutOfMemory` and nothing else, and all that was learned is as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np
import pytest

import fcdense as fc
from fcdense.backends import Device
from fcdense.backends.cuda import CudaBackend
from fcdense.captured_rounds import Rounds
from fcdense.errors import OutOfMemory
from tests import emulation
from tests.emulation import EmulatedArray, EmulatedDriver

pytestmark = pytest.mark.skipif(not emulation.is_available(), reason="no g++ here")
RNG = np.random.default_rng(0)
BATCHES, ROWS, FEATURES, CLASSES = 3, 9, 8, 3
X = RNG.normal(size=(BATCHES * ROWS, FEATURES)).astype(np.float32)
Y = RNG.integers(0, CLASSES, BATCHES * ROWS)
State = dict[str, np.ndarray]


class ScarceDriver(EmulatedDriver):
    """Refuses some of the arrays that it is asked for, by their number since `begin`."""

    def __init__(self) -> None:
        super().__init__()
        self.begin()

    def begin(self, refused: range = range(0)) -> None:
        self.asked, self.refused = 0, refused

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> EmulatedArray:
        self.asked += 1
        if self.asked in self.refused:
            raise OutOfMemory(f"{self.name} cannot hold an array of 1 bytes; 0 are free.")
        return super().empty(shape, dtype)


@pytest.fixture(scope="module")
def driver() -> ScarceDriver:
    return ScarceDriver()


@contextmanager
def fresh(driver: ScarceDriver) -> Iterator[None]:
    """A device on which nothing has been computed yet."""
    driver.begin()
    with fc.use_device(Device("emu", 0, backend=CudaBackend(driver))):
        yield


def learned(model: Any, optimizer: Any) -> State:
    """Parameters, buffers, and all that the optimizer knows."""
    state = optimizer.state_dict()
    entries = {f"{p}.{key}": v for p, entry in state["parameters"].items() for key, v in entry.items()}
    counts = {name: state[name] for name in ("steps", "skipped_steps")}
    return {name: np.array(value) for name, value in (*model.state_dict().items(), *entries.items(), *counts.items())}


def assert_same(ours: State, theirs: State, when: str) -> None:
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if ours[name].tobytes() != theirs[name].tobytes()]
    assert not different, when


class Steps:
    """A training of a few steps; the batches are on the device."""

    def __init__(self, is_captured: bool, precision: str) -> None:
        fc.manual_seed(0)
        self.model = fc.nn.Sequential(
            fc.nn.Dense(17, "gelu", in_features=FEATURES, kernel_constraint=fc.constraints.max_norm(0.9)),
            fc.nn.LayerNorm(in_features=17),
            fc.nn.Dense(CLASSES, in_features=17),
        )
        self.optimizer = fc.optim.AdamW(self.model.parameters(), 0.01, weight_decay=0.1, clip_norm=1.0)
        self._precision = precision
        self._run = fc.capture(self._step) if is_captured else self._step
        self._batches = [(fc.tensor(x), fc.tensor(y)) for x, y in zip(np.split(X, 3), np.split(Y, 3), strict=True)]

    def _step(self, x: Any, y: Any) -> Any:
        self.optimizer.zero_grad()
        with fc.use_precision(self._precision):
            loss = fc.losses.cross_entropy(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss

    def make(self, *numbers: int) -> Steps:
        for number in numbers:
            self._run(*self._batches[number])
        return self

    @property
    def learned(self) -> State:
        return learned(self.model, self.optimizer)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("how", "failing", "fewest"), [("eager", 0, 30), ("eager", 1, 20), ("captured", 1, 30)])
def test_a_step_without_memory_changes_nothing(
    how: str, failing: int, fewest: int, precision: str, driver: ScarceDriver
) -> None:
    """Each array that a step asks for is refused in turn: the first step, a later one, the one that is recorded."""
    with fresh(driver):
        steps = Steps(how == "captured", precision).make(*range(failing))
        before = steps.learned
        driver.begin()
        after, asked = steps.make(failing).learned, driver.asked
    assert asked >= fewest
    for refused in range(1, asked + 1):
        with fresh(driver):
            steps = Steps(how == "captured", precision).make(*range(failing))
            driver.begin(range(refused, refused + 2))  # a refused array is asked for once more
            with pytest.raises(OutOfMemory):
                steps.make(failing)
            driver.begin()
            assert_same(steps.learned, before, f"array {refused} of {asked} is refused")
            assert_same(steps.make(failing).learned, after, f"the step after array {refused} of {asked} was refused")


NETWORKS: dict[str, Any] = {
    "in one go": lambda: fc.nn.Sequential(fc.nn.Dense(5, "tanh", in_features=FEATURES), fc.nn.Dense(3, in_features=5)),
    "one by one": lambda: fc.nn.Sequential(fc.nn.Dense(3, in_features=FEATURES), fc.nn.BatchNorm(in_features=3)),
}


class Learned(fc.callbacks.Callback):
    """What was learned before the first step and after each."""

    def __init__(self, trainer: Any) -> None:
        self.states = [learned(trainer.model, trainer.optimizer)]

    def on_step_end(self, step: int, logs: Any) -> None:
        self.states.append(learned(self.trainer.model, self.trainer.optimizer))


def trainer_of(network: str, capture: bool = True) -> Any:
    fc.manual_seed(0)
    return fc.Trainer(NETWORKS[network](), "cross_entropy", "adam", capture=capture)


@pytest.mark.parametrize("network", NETWORKS)
def test_fit_without_memory(
    network: str, driver: ScarceDriver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each array in turn: batches are computed as if not captured, or replayed singly; else those before it count."""
    x, y, options = X[:12], Y[:12], {"batch_size": 3, "shuffle": False, "verbose": False}
    grouped: list[int] = []
    run = Rounds.run
    monkeypatch.setattr(Rounds, "run", lambda self, rows: grouped.append(run(self, rows)) or grouped[-1])
    with fresh(driver):
        trainer = trainer_of(network, capture=False)
        states = Learned(trainer)
        trainer.fit(x, y, callbacks=[states], **options)
        expected = states.states
    with fresh(driver):
        trainer = trainer_of(network)
        driver.begin()
        trainer.fit(x, y, **options)
        assert_same(learned(trainer.model, trainer.optimizer), expected[-1], "nothing is refused")
        asked = driver.asked
    ends = set()
    caplog.set_level("INFO", "fcdense")
    for refused in range(1, asked + 1):
        with fresh(driver):
            trainer, when = trainer_of(network), f"array {refused} of {asked} is refused"
            driver.begin(range(refused, refused + 2))
            grouped.clear()
            try:
                trainer.fit(x, y, **options)
                ends.add(trainer.not_captured or ("in one go" if any(grouped) else "one by one"))
            except OutOfMemory:
                ends.add("out of memory")
            driver.begin()
            made = trainer.optimizer.steps
            assert_same(learned(trainer.model, trainer.optimizer), expected[made], when)
            if made < len(expected) - 1:
                trainer.fit(x[3 * made :], y[3 * made :], **options)
                assert_same(learned(trainer.model, trainer.optimizer), expected[-1], f"fit again after {when}")
    assert ends == {"out of memory", "refused", "one by one"}
    assert ("steps are replayed one by one: emu cannot hold" in caplog.text) == (network == "in one go")


class Noting(fc.nn.Module):
    """Notes in which mode it was called last."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.seen = fc.nn.Dense(2, in_features=FEATURES), False

    def forward(self, x: Any) -> Any:
        self.seen = self.training
        return self.dense(x).sum()


def test_a_recording_without_memory_leaves_modules_as_they_were(driver: ScarceDriver) -> None:
    failures = 0
    for refused in count(1):
        with fresh(driver):
            model, x = Noting(), fc.tensor(X)
            step = fc.capture(lambda x, model=model: model(x))
            step(x)
            model.eval()
            driver.begin(range(refused, refused + 2))
            try:
                step(x)
            except OutOfMemory:
                failures += 1
                assert model.seen
            else:
                assert not model.seen
                break
    assert failures > 3
