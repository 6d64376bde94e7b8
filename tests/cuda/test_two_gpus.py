"""A caller's arrays on either of two GPUs, whichever of them is current: on a stand-in for CuPy.

The oracle is the same call with NumPy's arrays.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import fcdense as fc
from fcdense.backends import Device
from fcdense.backends.cuda import CudaBackend
from fcdense.errors import DeviceError
from tests import emulation
from tests.cuda import fake_cuda, fake_cupy
from tests.cuda.fake_cuda import Machine
from tests.cuda.test_cupy_driver import driver_of
from tests.cuda.test_interop import CLASSES, ROWS, callers, network, parameters, read

pytestmark = pytest.mark.skipif(not emulation.is_available(), reason="no g++ here")
NUMBER = itertools.count(2000)
PLACES = [(own, current) for own in (0, 1) for current in (0, 1)]
"""Where the model and its arrays lie, and the GPU that is current while they are used."""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return fake_cupy.install(monkeypatch)


@contextmanager
def at(machine: Machine, own: int, current: int) -> Iterator[tuple[Any, Any]]:
    """The GPU `own` as the device for models, with rows and classes on it, while another one may be current."""
    with fake_cuda.Device(machine, own):
        x, y = callers(machine, ROWS), callers(machine, CLASSES)
    on = Device("cupy", next(NUMBER), backend=CudaBackend(driver_of(own)))
    with fc.use_device(on), fake_cuda.Device(machine, current):
        yield x, y
        assert machine.devices[-1] == current


@pytest.mark.parametrize(("own", "current"), PLACES)
def test_arrays_are_used_where_they_lie(machine: Machine, own: int, current: int) -> None:
    with at(machine, own, current) as (x, y):
        model = network()
        assert fc.losses.cross_entropy(model(x), y).item() == fc.losses.cross_entropy(model(ROWS), CLASSES).item()
        found = fc.predict(model, x)
        assert found.data.device_id == own
        with fake_cuda.Device(machine, own):
            np.testing.assert_array_equal(read(machine, found), fc.predict(model, ROWS))
        np.testing.assert_array_equal(fc.tensor(x[::2, ::-1]).numpy(), ROWS[::2, ::-1])


@pytest.mark.parametrize("options", [{}, {"metrics": [lambda p, t: float(np.abs(p).max())]}, {"capture": False}])
@pytest.mark.parametrize(("own", "current"), PLACES)
def test_training_gathers_rows_where_they_lie(
    machine: Machine, own: int, current: int, options: dict[str, Any]
) -> None:
    def trained(x: Any, y: Any) -> list[np.ndarray]:
        model = network()
        trainer = fc.Trainer(model, **options)
        trainer.fit(x, y, epochs=2, batch_size=4, validation_split=0.25, verbose=False)
        assert trainer.not_captured == ("" if options.get("capture", True) else "capture=False")
        return parameters(model)

    with at(machine, own, current) as (x, y):
        for ours, theirs in zip(trained(x, y), trained(ROWS, CLASSES), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_arrays_of_another_gpu_are_refused_whichever_is_current(machine: Machine) -> None:
    for own, current in PLACES:
        with at(machine, 1 - own, current) as (x, y):
            pass
        with at(machine, own, current):
            model = network()
            before = parameters(model)
            for call in (
                lambda x=x: fc.tensor(x),
                lambda m=model, x=x: m(x),
                lambda m=model, x=x: fc.predict(m, x),
                lambda m=model, x=x, y=y: fc.Trainer(m).fit(x, y, verbose=False),
                lambda m=model, y=y: fc.losses.cross_entropy(m(ROWS), y),
            ):
                expected = rf"lies on cuda:{1 - own}, expected cuda:{own}\. Copy it there first: .*Device\({own}\)"
                with pytest.raises(DeviceError, match=expected):
                    call()
            for ours, theirs in zip(parameters(model), before, strict=True):
                np.testing.assert_array_equal(ours, theirs)


class OfAnotherLibrary:
    """An array that is not CuPy's, in the memory of one that is."""

    def __init__(self, array: Any) -> None:
        self.array, self.nbytes = array, array.nbytes

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.array.__cuda_array_interface__ | {"strides": None}  # type: ignore[no-any-return]


@pytest.mark.parametrize(("own", "current"), PLACES)
def test_arrays_of_other_libraries_lie_where_their_memory_does(machine: Machine, own: int, current: int) -> None:
    with at(machine, own, current) as (x, _):
        np.testing.assert_array_equal(fc.tensor(OfAnotherLibrary(x)).numpy(), ROWS)
        assert fc.tensor(OfAnotherLibrary(x[:0])).shape == (0, 6)
    with at(machine, 1 - own, current), pytest.raises(DeviceError, match=f"lies on cuda:{own}"):
        fc.tensor(OfAnotherLibrary(x))


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_one_optimizer_over_both(machine: Machine, clip_norm: float | None) -> None:
    """Their gradients have one norm; where one of them is not finite, neither's parameters change."""
    both = [Device("cupy", next(NUMBER), backend=CudaBackend(driver_of(index))) for index in (0, 1)]
    values, slopes = [ROWS[:4], ROWS[4:7]], [ROWS[8:12], ROWS[12:15]]
    length = float(np.sqrt(sum((slope.astype(np.float64) ** 2).sum() for slope in slopes)))
    made = []
    for on, value in zip(both, values, strict=True):
        with fc.use_device(on):
            made.append(fc.nn.parameter(value))
    optimizer = fc.optim.SGD(made, 0.5, clip_norm=clip_norm)
    for parameter, slope in zip(made, slopes, strict=True):
        parameter.grad = slope
    assert optimizer.step(check_finite=True)
    assert optimizer.gradient_norm == pytest.approx(length, rel=1e-6)
    shrunk = 0.5 if clip_norm is None else 0.5 * clip_norm / length
    for parameter, value, slope in zip(made, values, slopes, strict=True):
        np.testing.assert_allclose(parameter.numpy(), value - shrunk * slope, rtol=1e-5, atol=1e-6)
    for bad in range(2):
        before = [parameter.numpy() for parameter in made]
        for number, (parameter, slope) in enumerate(zip(made, slopes, strict=True)):
            parameter.grad = slope * np.float32(np.nan) if number == bad else slope
        assert not optimizer.step(check_finite=True)
        for parameter, value in zip(made, before, strict=True):
            np.testing.assert_array_equal(parameter.numpy(), value)
