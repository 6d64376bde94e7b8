"""What is copied from the device to the host, for which the device stops: what is asked for, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import fcdense as fc
from fcdense.backends import Device
from fcdense.backends.cuda import CudaBackend
from fcdense.errors import DataError, GraphError
from tests import emulation
from tests.emulation import EmulatedArray, EmulatedDriver

pytestmark = pytest.mark.skipif(not emulation.is_available(), reason="no g++ here")
RNG = np.random.default_rng(0)
ROWS, FEATURES, CLASSES = 6, 4, 3
X, LABELS = RNG.normal(size=(9, ROWS, FEATURES)).astype(np.float32), RNG.integers(0, CLASSES, (9, ROWS))
BAD = (2, 3, 6)
"""Batches of `X_BAD` that are not finite."""
X_BAD = X.copy()
X_BAD[BAD, 1, 2] = np.inf


class CountingDriver(EmulatedDriver):
    """Notes the shapes of what is downloaded."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def download(self, array: EmulatedArray) -> np.ndarray:
        self.shapes.append(array.shape)
        return super().download(array)

    def told(self) -> list[tuple[int, ...]]:
        """What was downloaded since this was last asked."""
        shapes, self.shapes = self.shapes, []
        return shapes


@pytest.fixture(scope="module")
def driver() -> CountingDriver:
    return CountingDriver()


@pytest.fixture(scope="module")
def emu(driver: CountingDriver) -> Device:
    return Device("emu", 0, backend=CudaBackend(driver))


@pytest.fixture(autouse=True)
def on(emu: Device, driver: CountingDriver) -> Iterator[Device]:
    with fc.use_device(emu):
        driver.told()
        yield emu


def network() -> Any:
    fc.manual_seed(0)
    return fc.nn.Sequential(fc.nn.Dense(5, "tanh", in_features=FEATURES), fc.nn.Dense(CLASSES, in_features=5))


class Training:
    """One step after another, eager or captured."""

    def __init__(self, captured: bool, kind: str = "", rate: Any = 0.05) -> None:
        self.model = network()
        clip_norm = 0.3 if kind == "clip_norm" else None
        self.optimizer = fc.optim.Adam(self.model.parameters(), rate, clip_norm=clip_norm)
        self.scale = fc.LossScale(2.0**10) if kind == "float16" else None
        self.checks = kind == "check_finite"
        self.run = fc.capture(self.step) if captured else self.step

    def step(self, x: Any, y: Any) -> Any:
        self.optimizer.zero_grad()
        with fc.use_precision("float32" if self.scale is None else "float16"):
            loss = fc.losses.cross_entropy(self.model(x), y)
        if self.scale is None:
            loss.backward()
        else:
            self.scale.backward(loss)
        self.optimizer.step(check_finite=loss if self.checks else False, loss_scale=self.scale)
        return loss

    def known(self) -> tuple[Any, ...]:
        """All that the host can be told."""
        values = {name: array.tobytes() for name, array in self.model.state_dict().items()}
        optimizer = self.optimizer
        numbers = optimizer.steps, optimizer.skipped_steps, optimizer.gradient_norm, optimizer.learning_rate
        return values, repr(optimizer.state_dict()), repr(numbers), repr(self.scale)


KINDS = ("", "clip_norm", "check_finite", "float16")


# ---- a step ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("captured", [False, True])
def test_a_step_downloads_the_loss_that_is_asked_for(captured: bool, kind: str, driver: CountingDriver) -> None:
    made = Training(captured, kind)
    x, y = fc.tensor(X[0]), fc.tensor(LABELS[0])
    for _ in range(3):
        made.run(x, y)
    driver.told()
    done = [(3,)] if kind and not captured else []  # whether it was done: what an eager `optimizer.step` returns
    loss = made.run(x, y)
    assert driver.told() == done
    loss.item()
    assert driver.told() == [()]
    made.run(x, y)
    assert driver.told() == done


@pytest.mark.parametrize("kind", KINDS[1:])
def test_numbers_of_replays_are_read_once_when_asked_for(kind: str, driver: CountingDriver) -> None:
    made = Training(True, kind)
    for x, y in zip(X[:5], LABELS[:5], strict=True):
        made.run(x, y)
    assert made.optimizer.steps == 5
    driver.told()
    made.run(X[5], LABELS[5])
    assert driver.told() == []
    assert made.optimizer.steps == 6
    assert made.optimizer.skipped_steps == 0
    assert made.optimizer.gradient_norm > 0.0
    assert driver.told() == [(3,)]


@pytest.mark.parametrize("batches", [1, 2, 8, 16])
@pytest.mark.parametrize("precision", [None, "float16"])
@pytest.mark.parametrize("clip_norm", [None, 0.3])
def test_fit_downloads_once_for_each_batch(
    batches: int, precision: str | None, clip_norm: float | None, driver: CountingDriver
) -> None:
    """Loss, norm and whether the step was done come together."""
    trainer = fc.Trainer(network(), precision=precision, clip_norm=clip_norm)
    pairs = [(x, y) for x, y in zip(X, LABELS, strict=True)]
    trainer.fit(pairs[:1] * 3, verbose=False)
    downloads = []

    class Count(fc.callbacks.Callback):
        def on_step_end(self, step: int, logs: Any) -> None:
            downloads.append(driver.told())

    driver.told()
    trainer.fit((pairs * 2)[:batches], callbacks=[Count()], verbose=False)
    assert trainer.not_captured == ""
    assert downloads[1:] == [[(3,)]] * (batches - 1)


# ---- the numbers are those of steps that tell them at once -----------------------------------------------------------


def run(made: Training, ask: Callable[[int], bool]) -> list[Any]:
    said = []
    for number, (x, y) in enumerate(zip(X_BAD, LABELS, strict=True)):
        made.run(x, y)
        if ask(number):
            said.append((made.known(), made.optimizer.checked_loss if made.checks else None))
    return said


ASKING: dict[str, Callable[[int], bool]] = {
    "in the end": lambda number: number == len(X) - 1,
    "now and then": lambda number: number % 3 == 2,
    "always": lambda number: True,
}


@pytest.mark.parametrize("asking", ASKING)
@pytest.mark.parametrize("rate", [0.05, lambda step: 0.1 / (1 + step)], ids=["constant", "schedule"])
@pytest.mark.parametrize("kind", KINDS[1:])
def test_skipped_steps_are_counted_exactly(asking: str, rate: Any, kind: str) -> None:
    ours, theirs = Training(True, kind, rate), Training(False, kind, rate)
    assert repr(run(ours, ASKING[asking])) == repr(run(theirs, ASKING[asking]))
    assert (ours.optimizer.steps, ours.optimizer.skipped_steps) == (len(X) - len(BAD), len(BAD))


def eager_step(made: Training) -> None:
    made.step(X[0], LABELS[0])


def another_recording(made: Training) -> None:
    """A captured step of the same optimizer, which looks at nothing."""

    def other(x: Any, y: Any) -> None:
        made.optimizer.zero_grad()
        fc.losses.cross_entropy(made.model(x), y).backward()
        for parameter in list(made.model.parameters())[:2]:
            parameter.zero_grad()
        made.optimizer.step()

    if not hasattr(made, "other"):
        made.other = fc.capture(other) if made.run is not made.step else other
    made.other(X[0], LABELS[0])


def constraint(made: Training) -> None:
    for parameter in made.model.parameters():
        parameter.constraint = fc.constraints.max_norm(0.2)


def restored(made: Training) -> None:
    made.optimizer.load_state_dict(made.optimizer.state_dict())


def another_parameter(made: Training) -> None:
    made.optimizer.add_parameters([fc.nn.parameter(np.ones(3, np.float32))])


def set_by_hand(made: Training) -> None:
    made.optimizer.skipped_steps += 10


def copied(made: Training) -> None:
    twin = copy.deepcopy(made.optimizer)
    assert repr(twin.state_dict()) == repr(made.optimizer.state_dict())
    assert (twin.steps, twin.skipped_steps) == (made.optimizer.steps, made.optimizer.skipped_steps)


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize(
    "between",
    [eager_step, another_recording, constraint, restored, another_parameter, set_by_hand, copied],
    ids=lambda function: function.__name__,
)
def test_what_is_done_between_replays_that_nobody_asked_about(between: Any, kind: str) -> None:
    said = []
    for captured in (True, False):
        made = Training(captured, kind)
        for number, (x, y) in enumerate(zip(X_BAD, LABELS, strict=True)):
            made.run(x, y)
            if number in (4, 6, 7):
                between(made)
        said.append(repr(made.known()))
    assert said[0] == said[1]


@pytest.mark.parametrize("kind", KINDS[1:])
def test_parameters_count_as_changed_before_anybody_asks(kind: str) -> None:
    made, other = Training(True, kind), Training(False, kind)
    for x, y in zip(X[:4], LABELS[:4], strict=True):
        graph = made.model(X[0]).sum()
        other.run(x, y)
        made.run(x, y)
        with pytest.raises(GraphError, match="changed in place"):
            graph.backward()
        for precision in ("float32", "bfloat16", "float16"):  # of which the parameters have copies
            with fc.use_precision(precision):
                np.testing.assert_array_equal(*(m.model(X[0]).astype("float32").numpy() for m in (made, other)))


# ---- targets ---------------------------------------------------------------------------------------------------------

ROWS_OF_ONES = np.eye(CLASSES)[LABELS[0]]
TARGETS: dict[str, tuple[Any, Any, int]] = {
    "int64": (fc.losses.cross_entropy, LABELS[0], 1),
    "int32, a column": (fc.losses.cross_entropy, LABELS[0].astype(np.int32)[:, None], 1),
    "probabilities": (fc.losses.cross_entropy, 0.9 * ROWS_OF_ONES + 0.1 / CLASSES, 1),
    "0 and 1": (fc.losses.binary_cross_entropy_with_logits, ROWS_OF_ONES.astype(np.int64), 1),
    "numbers": (fc.losses.mse, RNG.normal(size=(ROWS, CLASSES)), 0),
    "bool": (fc.losses.huber, ROWS_OF_ONES.astype(bool), 0),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_target_on_the_device_is_read_once(target: str, precision: str, driver: CountingDriver) -> None:
    loss, values, reads = TARGETS[target]
    model, x, y = network(), fc.tensor(X[0]), fc.tensor(values)
    found = []
    for given in (y, y, values):  # an array of the host is looked at there
        with fc.use_precision(precision):
            result = loss(model(x), given)
        result.backward()
        found.append((driver.told(), result.item(), [p.grad.numpy().tobytes() for p in model.parameters()]))
        for parameter in model.parameters():
            parameter.zero_grad()
        driver.told()
    assert [shapes for shapes, *_ in found] == [[np.shape(values)] * reads, [], []]
    assert found[0][1:] == found[1][1:] == found[2][1:]


def test_a_target_that_was_written_is_looked_at_again() -> None:
    model, x, y = network(), fc.tensor(X[0]), fc.tensor(LABELS[0])
    fc.losses.cross_entropy(model(x), y)
    y[2] = CLASSES
    for _ in range(2):
        with pytest.raises(DataError, match=r"target is 3 in row 2; 3 logits have the classes 0 to 2"):
            fc.losses.cross_entropy(model(x), y)
    y[2] = 0
    assert np.isfinite(fc.losses.cross_entropy(model(x), y).item())
    y[1] = 2
    fc.losses.cross_entropy(model(x), y)
    with pytest.raises(DataError, match="2 logits have the classes 0 to 1"):  # the same labels for other logits
        fc.losses.cross_entropy(model(x)[:, :2], y)
    ones = fc.tensor(ROWS_OF_ONES.astype(np.float32))
    for good in (True, False):
        ones[1, 1] = 0.5 if good else 1.5
        if good:
            fc.losses.binary_cross_entropy_with_logits(model(x), ones)
        else:
            with pytest.raises(DataError, match=r"target is 1.5 in row \(1, 1\)"):
                fc.losses.binary_cross_entropy_with_logits(model(x), ones)


def test_the_buffer_of_a_captured_step_is_looked_at_as_it_is() -> None:
    model = network()
    step = fc.capture(lambda x, y: fc.losses.cross_entropy(model(x), y))
    step(X[0], LABELS[0])
    step(X[0], np.full(ROWS, CLASSES))
    with pytest.raises(DataError, match="target is 3 in row 0"):
        fc.losses.cross_entropy(model(X[0]), step.inputs[1])
