"""The dispatcher: strings to devices, the fallback and its one message, and whose choice counts where."""

from __future__ import annotations

import asyncio
import copy
import logging
import pickle
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fcdense import backends
from fcdense.backends import Device, available_devices, current_device, device, probe, use_device
from fcdense.backends.cpu import CpuBackend
from fcdense.backends.reference import ReferenceBackend
from fcdense.errors import DeviceError
from tests.backends.test_probe import Driver, set_driver, set_kernels, set_libraries

CACHES = (backends._auto, backends._cuda, probe.cuda_probes)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that has asked for no device yet."""
    monkeypatch.delenv("FCDENSE_DEVICE", raising=False)
    for cache in CACHES:
        cache.cache_clear()
    yield
    for cache in CACHES:
        cache.cache_clear()


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    set_driver(monkeypatch, None)


class Cuda(CpuBackend):
    """Stands for the CUDA backend."""

    started: list[int]

    def __init__(self, index: int) -> None:
        super().__init__()
        time.sleep(0.01)
        self.started.append(index)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine where every probe passes; the list names the GPUs whose backend was started."""
    monkeypatch.setattr(Cuda, "started", [], raising=False)
    set_driver(monkeypatch, Driver(count=2))
    set_libraries(monkeypatch)
    set_kernels(monkeypatch, Cuda)
    return Cuda.started


# ---- strings ---------------------------------------------------------------------------------------------------------


def test_cpu_and_reference() -> None:
    assert isinstance(device("cpu").backend, CpuBackend)
    assert isinstance(device("reference").backend, ReferenceBackend)
    assert device("cpu") is device("cpu")
    assert device(device("cpu")) is device("cpu")
    assert (device("cpu").type, device("cpu").index, device("cpu").name) == ("cpu", None, "cpu")


NAMES = ["gpu", "CPU", "", " cpu", "cpu:0", "cuda:", "cuda:-1", "cuda:x", "cuda:1.0", "cuda:1 ", "cuda:٣", "cuda0"]


@pytest.mark.parametrize("spec", [*NAMES, 3, 0, True, None, b"cpu", ["cpu"]])
@pytest.mark.usefixtures("two_gpus")
def test_unknown_devices(spec: Any) -> None:
    with pytest.raises(DeviceError, match=r'^Unknown device .*\. Use "auto", "cpu", "cuda" or "cuda:N"\.$') as error:
        device(spec)
    assert repr(spec) in str(error.value)
    assert isinstance(error.value, RuntimeError)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("spec", ["cuda", "cuda:0", "cuda:7"])
def test_cuda_is_cuda_or_an_error_that_names_the_probe(spec: str) -> None:
    for _ in range(2):
        with pytest.raises(DeviceError, match=r"probe 'driver' failed: libcuda\.so\.1 is not there\. Install"):
            device(spec)


def test_cuda_devices(two_gpus: list[int]) -> None:
    first, second = device("cuda"), device("cuda:1")
    assert (first.name, second.name) == ("cuda:0", "cuda:1")
    assert (first.type, first.index) == ("cuda", 0)
    assert device("cuda:0") is first
    assert isinstance(second.backend, Cuda)
    assert two_gpus == [0, 1]


def test_a_gpu_that_is_not_there(two_gpus: list[int]) -> None:
    with pytest.raises(DeviceError, match=r'"cuda:2" is not there: the driver shows 2 GPU\(s\)'):
        device("cuda:2")
    assert two_gpus == []


def test_threads_start_a_gpu_once(two_gpus: list[int]) -> None:
    start = threading.Barrier(4)

    def ask(_: int) -> Device:
        start.wait()
        return device("cuda")

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, range(4)))
    assert all(d is found[0] for d in found)
    assert two_gpus == [0]


@pytest.mark.usefixtures("no_gpu")
def test_available_without_gpu() -> None:
    assert available_devices() == ("cpu",)


@pytest.mark.usefixtures("two_gpus")
def test_available_with_gpus() -> None:
    assert available_devices() == ("cpu", "cuda:0", "cuda:1")
    assert all(device(name).name == name for name in available_devices())


def test_what_is_available_here_works() -> None:
    for name in available_devices():
        assert device(name).name == name


@pytest.mark.usefixtures("two_gpus")
def test_a_device_is_a_value() -> None:
    for d in map(device, ("cpu", "reference", "cuda:1")):
        assert pickle.loads(pickle.dumps(d)) is d
        assert copy.deepcopy(d) is d
        assert d == Device(d.type, d.index, backend=CpuBackend())
        assert hash(d) == hash(Device(d.type, d.index, backend=CpuBackend()))
        assert str(d) == d.name
        assert repr(d) == f"device('{d.name}')"
    assert len({device("cpu"), device("cuda"), device("cuda:1"), device("reference")}) == 4


# ---- auto ------------------------------------------------------------------------------------------------------------


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("fcdense")]


@pytest.mark.usefixtures("no_gpu")
def test_auto_falls_back_and_says_why_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "fcdense")
    for _ in range(3):
        assert device("auto") is device() is current_device() is device("cpu")
    assert messages(caplog) == [
        "device 'auto' is the CPU: probe 'driver' failed: libcuda.so.1 is not there. "
        "Install the NVIDIA driver; in Docker, run with --gpus all."
    ]
    assert caplog.records[0].levelno == logging.INFO


def test_threads_that_fall_back_at_once_say_it_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fcdense")
    start = threading.Barrier(4)

    def slow() -> tuple[bool, str]:
        time.sleep(0.02)
        return False, "slow"

    def ask(_: int) -> Device:
        start.wait()
        return device("auto")

    monkeypatch.setattr(probe, "CHAIN", (("driver", slow),))
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(ask, range(4))) == {device("cpu")}
    assert messages(caplog) == ["device 'auto' is the CPU: probe 'driver' failed: slow"]


@pytest.mark.usefixtures("two_gpus")
def test_auto_takes_the_first_gpu_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "fcdense")
    assert device("auto") is device("cuda:0")
    assert messages(caplog) == []


# ---- whose choice counts ---------------------------------------------------------------------------------------------


def test_use_device_nests_and_ends() -> None:
    outside = current_device()
    with use_device("reference") as chosen:
        assert current_device() is chosen is device("reference")
        with use_device(device("cpu")):
            assert current_device() is device("cpu")
        assert current_device() is device("reference")
    assert current_device() is outside


def test_use_device_ends_with_an_exception() -> None:
    outside = current_device()
    with pytest.raises(KeyError), use_device("reference"):
        raise KeyError
    assert current_device() is outside


@pytest.mark.usefixtures("no_gpu")
def test_an_unusable_device_changes_nothing() -> None:
    with use_device("reference"):
        for spec in ("gpu", "cuda"):
            with pytest.raises(DeviceError), use_device(spec):
                raise AssertionError("the block must not run")
        assert current_device() is device("reference")


def test_use_device_as_decorator() -> None:
    @use_device("reference")
    def inside() -> Device:
        return current_device()

    assert inside() is inside() is device("reference")


def test_use_device_is_each_threads_own() -> None:
    inside, looked = threading.Event(), threading.Event()

    def other() -> Device:
        with use_device("reference"):
            inside.set()
            looked.wait(10)
            return current_device()

    with use_device("cpu"), ThreadPoolExecutor(1) as pool:
        result = pool.submit(other)
        inside.wait(10)
        assert current_device() is device("cpu")
        looked.set()
        assert result.result() is device("reference")


def test_use_device_is_each_tasks_own() -> None:
    async def work(spec: str) -> bool:
        with use_device(spec):
            for _ in range(3):
                await asyncio.sleep(0)
                if current_device() is not device(spec):
                    return False
        return True

    async def both() -> list[bool]:
        return await asyncio.gather(work("cpu"), work("reference"))

    assert asyncio.run(both()) == [True, True]


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FCDENSE_DEVICE", "reference")
    assert current_device() is device("reference")
    with use_device("cpu"):
        assert current_device() is device("cpu")
    monkeypatch.setenv("FCDENSE_DEVICE", "cpu")
    assert current_device() is device("cpu")


@pytest.mark.usefixtures("no_gpu")
def test_an_empty_environment_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FCDENSE_DEVICE", "")
    assert current_device() is device("cpu")


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("name", ["gpu", "cuda", "cuda:x"])
def test_a_wrong_environment_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("FCDENSE_DEVICE", name)
    with pytest.raises(DeviceError, match="The name comes from the environment variable FCDENSE_DEVICE"):
        current_device()
    with use_device("cpu"):
        assert current_device() is device("cpu")
