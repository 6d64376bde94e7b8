"""CuPy's arrays go into the library and its results come out, in the same memory: on a stand-in for CuPy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fcdense as fc
from fcdense.backends import Device
from fcdense.backends.cuda import CudaBackend
from fcdense.errors import CaptureError, DeviceError
from tests import emulation
from tests.cuda import fake_cupy
from tests.cuda.fake_cuda import Machine
from tests.cuda.test_cupy_driver import driver_of

pytestmark = pytest.mark.skipif(not emulation.is_available(), reason="no g++ here")
NUMBER = itertools.count(1000)
X = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return fake_cupy.install(monkeypatch)


@pytest.fixture
def on(machine: Machine) -> Iterator[Device]:
    with fc.use_device(Device("cupy", next(NUMBER), backend=CudaBackend(driver_of(0)))) as device:
        yield device


def callers(machine: Machine, values: Any) -> Any:
    """An array that somebody made with CuPy."""
    import cupy

    made = cupy.ndarray(values.shape, values.dtype, machine.default_pool.malloc(values.nbytes))
    write(made, values)
    return made


def write(array: Any, values: Any) -> None:
    """As a caller does, on the stream of the moment, for which nobody waits."""
    for place in np.ndindex(values.shape):
        array[place] = values[place]


def test_inference_reads_a_callers_array_where_it_lies(machine: Machine, on: Device) -> None:
    layer = fc.nn.Dense(3, "tanh", in_features=6)
    x = callers(machine, X)
    with fc.no_grad():
        y = layer(x)
    np.testing.assert_array_equal(y.numpy(), layer(X).numpy())
    write(x, 2 * X)
    with fc.no_grad():
        np.testing.assert_array_equal(layer(x).numpy(), layer(2 * X).numpy())


def test_what_a_gradient_is_going_to_read_is_copied(machine: Machine, on: Device) -> None:
    layer = fc.nn.Dense(3, in_features=6)
    x = callers(machine, X)
    y = layer(x)
    write(x, 0 * X)
    y.sum().backward()
    np.testing.assert_allclose(layer.kernel.grad.numpy(), np.repeat(X.sum(0)[:, None], 3, 1), rtol=1e-6)


def test_tensors_of_a_callers_array_are_copies(machine: Machine, on: Device) -> None:
    x = callers(machine, X)
    given, cast = fc.tensor(x), fc.tensor(x, dtype="float64")
    write(x, 0 * X)
    np.testing.assert_array_equal(given.numpy(), X)
    np.testing.assert_array_equal(cast.numpy(), X.astype(np.float64))
    assert given.device is on
    np.testing.assert_array_equal((fc.tensor(X) + callers(machine, X)).numpy(), 2 * X)


def test_what_cannot_be_is_refused(machine: Machine, on: Device) -> None:
    x = callers(machine, X)
    with fc.use_device("cpu"):
        with pytest.raises(DeviceError, match=r"lies on a GPU, but it is used on .*cupy\.asnumpy"):
            fc.tensor(x)
        with pytest.raises(DeviceError, match="lies on a GPU"):
            fc.nn.Dense(3, in_features=6)(x)
    layer = fc.nn.Dense(3, in_features=6)

    @fc.capture
    def step() -> Any:
        return layer(x)

    with fc.no_grad(), pytest.raises(CaptureError, match="every replay would read that"):
        for _ in range(3):
            step()


def test_results_are_handed_out_where_they_lie(machine: Machine, on: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """By DLPack, as an array for the caller's stream."""
    import cupy

    y = fc.nn.Dense(3, in_features=6)(X).detach()
    monkeypatch.setattr(cupy.ndarray, "__dlpack__", lambda array, **options: (array, options), raising=False)
    monkeypatch.setattr(type(y.array), "__dlpack_device__", lambda array: (2, 0), raising=False)
    assert y.__dlpack_device__() == (2, 0)
    array, options = y.__dlpack__(stream=7)
    assert options == {"stream": 7}
    assert array.data.ptr == y.array.data.ptr
    np.testing.assert_array_equal(on.backend.to_host(array), y.numpy())
