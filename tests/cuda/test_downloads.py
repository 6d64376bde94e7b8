"""What is copied from the device to the host, for which the device stops: what is asked for, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fcdense as fc
from fcdense.backends import Device
from fcdense.backends.cuda import CudaBackend
from fcdense.errors import DataError
from tests import emulation
from tests.emulation import EmulatedArray, EmulatedDriver

pytestmark = pytest.mark.skipif(not emulation.is_available(), reason="no g++ here")
RNG = np.random.default_rng(0)
ROWS, FEATURES, CLASSES = 6, 4, 3
X, LABELS = RNG.normal(size=(9, ROWS, FEATURES)).astype(np.float32), RNG.integers(0, CLASSES, (9, ROWS))


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
