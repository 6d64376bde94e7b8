"""Launches whose kernels are still being compiled: their order, what waits for them, and what becomes of failures."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from fcdense.cuda import compile as compiling
from fcdense.errors import DeviceError
from tests import emulation
from tests.cuda import fake_cupy
from tests.cuda.fake_cuda import CUDADriverError, Machine
from tests.cuda.fake_streams import CUDARuntimeError
from tests.cuda.test_cupy_driver import KERNEL, U64, WORK, advance, arguments, driver_of, next_stream, numbers, words

pytestmark = pytest.mark.skipif(not emulation.is_available(), reason="no g++ here")


class Compiler:
    """One that is done with kernels when a test says so, or when it is `open`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.begun = threading.Semaphore(0)
        self.error: Exception | None = None
        monkeypatch.setattr(compiling, "code", self._code)

    def _code(self, kernel: Any, architecture: str) -> bytes:
        self.begun.release()
        assert self.open.wait(20)
        if self.error is not None:
            raise self.error
        return kernel.text.encode()  # type: ignore[no-any-return]

    def is_done_in(self, seconds: float) -> None:
        threading.Timer(seconds, self.open.set).start()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = fake_cupy.install(monkeypatch, capacity=1 << 20)
    made.run = next_stream
    return made


@pytest.fixture
def compiler(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiler]:
    made = Compiler(monkeypatch)
    yield made
    made.open.set()


@pytest.fixture
def driver(machine: Machine) -> Any:
    return driver_of(0)


def others(count: int) -> list[Any]:
    """Kernels of other names that do the same."""
    return [KERNEL._replace(text=f"{KERNEL.text} // {number}") for number in range(count)]


def test_kernels_are_compiled_side_by_side(driver: Any, compiler: Compiler) -> None:
    state, out = words(driver, 7, 1), words(driver, 0, 0)
    for kernel in others(4):
        driver.launch(kernel, (1, 1, 1), arguments(driver, state, out))
    assert [compiler.begun.acquire(timeout=20) for _ in range(4)] == [True] * 4, "none is done, and all are begun"
    compiler.open.set()
    assert numbers(driver, out) == [7, 4]


def test_kernels_of_a_step_are_compiled_side_by_side(driver: Any, machine: Machine, compiler: Compiler) -> None:
    state, out = words(driver, 7, 1), words(driver, 0, 0)

    def calls() -> None:
        for kernel in others(4):
            driver.launch(kernel, (1, 1, 1), arguments(driver, state, out))
        assert [compiler.begun.acquire(timeout=20) for _ in range(4)] == [True] * 4
        compiler.is_done_in(0.02)

    driver.record(calls)()
    assert "moduleLoadData" not in machine.calls[machine.calls.index("streamBeginCapture") :]
    assert numbers(driver, out) == [7, 4]


def test_a_kernel_that_is_there_waits_for_one_that_is_not(driver: Any, machine: Machine, compiler: Compiler) -> None:
    state, out, last = words(driver, 7, 1), words(driver, 0, 0), words(driver, 0, 0)
    compiler.open.set()
    advance(driver, state, out)
    assert numbers(driver, out) == [7, 1]
    compiler.open.clear()
    driver.launch(others(1)[0], (1, 1, 1), arguments(driver, state, out))
    advance(driver, out, last)
    assert len(machine.launched) == 1
    compiler.open.set()
    assert numbers(driver, last) == [7, 2]
    advance(driver, state, out)
    assert len(machine.launched) == 4, "with nothing before it, it is launched at once"


@pytest.mark.parametrize("name", [name for name in WORK if name not in ("empty", "view", "launch", "record")])
def test_what_goes_to_the_stream_waits(name: str, driver: Any, machine: Machine, compiler: Compiler) -> None:
    state, out, used = words(driver, 7, 1), words(driver, 0, 0), words(driver, 0, 0)
    kernel = others(1)[0]
    driver.launch(kernel, (1, 1, 1), arguments(driver, state, used))
    machine.calls.clear()
    compiler.is_done_in(0.02)
    WORK[name](driver, state, out)
    assert machine.launched[0][0].text == kernel.text
    calls = [call for call in machine.calls if call not in ("moduleLoadData", "malloc")]
    assert calls[0] == "launchKernel"
    assert numbers(driver, used) == [7, 1]


def test_replays_wait(driver: Any, compiler: Compiler) -> None:
    state, out, last = words(driver, 7, 1), words(driver, 0, 0), words(driver, 0, 0)
    compiler.open.set()
    replay = driver.record(lambda: advance(driver, state, last))
    compiler.open.clear()
    driver.launch(others(1)[0], (1, 1, 1), arguments(driver, state, out))
    driver.launch(others(1)[0], (1, 1, 1), arguments(driver, state, out))
    compiler.is_done_in(0.02)
    replay()
    assert numbers(driver, out) == [7, 2]
    assert numbers(driver, last) == [7, 3]


def test_work_of_others_waits(driver: Any, machine: Machine, compiler: Compiler) -> None:
    advance(driver, words(driver, 7, 1), words(driver, 0, 0))
    compiler.is_done_in(0.02)
    driver.enqueue(lambda stream: machine.called("library"))
    assert machine.calls[-2:] == ["launchKernel", "library"]


def test_nothing_stays_behind_while_arrays_are_lent(driver: Any, machine: Machine, compiler: Compiler) -> None:
    lent = driver.hand_over(words(driver, 0, 0))
    compiler.is_done_in(0.02)
    advance(driver, words(driver, 7, 1), words(driver, 0, 0))
    assert len(machine.launched) == 1
    del lent
    compiler.open.clear()
    driver.launch(others(1)[0], (1, 1, 1), arguments(driver, words(driver, 7, 1), words(driver, 0, 0)))
    assert len(machine.launched) == 1


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_memory_of_what_waits_is_not_given_up(limit: int, driver: Any, machine: Machine, compiler: Compiler) -> None:
    driver._pool.limit = limit
    out, state = words(driver, 0, 0), driver.upload(np.arange(7, 64_007, dtype=np.uint64))
    given = arguments(driver, state, out)
    driver.launch(KERNEL, (1, 1, 1), given)
    del state
    compiler.is_done_in(0.02)
    assert driver.empty((100_000,), U64).size
    assert numbers(driver, out) == [7, 8]


def test_a_failure_drops_what_came_after_it(driver: Any, machine: Machine, compiler: Compiler) -> None:
    state, out = words(driver, 7, 1), words(driver, 0, 0)
    compiler.error = DeviceError("does not compile")
    for kernel in others(3):
        driver.launch(kernel, (1, 1, 1), arguments(driver, state, out))
    compiler.is_done_in(0.02)
    with pytest.raises(DeviceError, match="does not compile"):
        driver.download(out)
    assert numbers(driver, state) == [7, 1]
    assert not machine.launched
    compiler.error = None
    driver.launch(others(1)[0], (1, 1, 1), arguments(driver, state, out))
    assert numbers(driver, state) == [7, 2]


def test_a_failed_launch_drops_what_came_after_it(driver: Any, machine: Machine, compiler: Compiler) -> None:
    state, out = words(driver, 7, 1), words(driver, 0, 0)
    machine.fails["launchKernel"] = CUDADriverError("CUDA_ERROR_ILLEGAL_ADDRESS")
    for kernel in others(3):
        driver.launch(kernel, (1, 1, 1), arguments(driver, state, out))
    compiler.open.set()
    with pytest.raises(DeviceError, match="cuda:0: 'next_stream' was not launched, or a kernel before it has failed"):
        driver.download(out)
    assert numbers(driver, state) == [7, 1]


def test_ctrl_c_while_a_kernel_is_compiled(driver: Any, compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    state, out = words(driver, 7, 1), words(driver, 0, 0)
    for kernel in others(3):
        driver.launch(kernel, (1, 1, 1), arguments(driver, state, out))

    def interrupted(self: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Future, "result", interrupted)
        driver.download(out)
    compiler.open.set()
    assert numbers(driver, out) == [7, 3]


def test_threads_see_each_others_launches(driver: Any, compiler: Compiler) -> None:
    state, out = words(driver, 7, 1), words(driver, 0, 0)
    advance(driver, state, out)
    compiler.is_done_in(0.02)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(numbers, driver, out).result() == [7, 1]


def test_failures_are_named(driver: Any, machine: Machine) -> None:
    state, out = words(driver, 7, 1), words(driver, 0, 0)
    machine.fails["moduleLoadData"] = CUDADriverError("CUDA_ERROR_UNSUPPORTED_PTX_VERSION")
    with pytest.raises(DeviceError, match=r"UNSUPPORTED_PTX_VERSION\. Does nvidia-smi name an older CUDA"):
        advance(driver, state, out)
        driver.download(out)
    machine.fails["moduleLoadData"] = CUDADriverError("CUDA_ERROR_OUT_OF_MEMORY: out of memory")
    with pytest.raises(DeviceError, match=r"out of memory\. Free some of its memory"):
        advance(driver, state, out)
        driver.download(out)
    machine.fails["memcpyAsync"] = CUDARuntimeError("cudaErrorIllegalAddress")
    with pytest.raises(DeviceError, match="cuda:0: 16 bytes were not sent: cudaErrorIllegalAddress"):
        state[...] = np.array([0, 0], np.uint64)
    machine.fails["memcpyAsync"] = CUDARuntimeError("cudaErrorIllegalAddress")
    with pytest.raises(DeviceError, match="cuda:0: 16 bytes were not sent"):
        words(driver, 0, 0)
    machine.fails["launchKernel"] = CUDADriverError("CUDA_ERROR_ILLEGAL_ADDRESS")
    with pytest.raises(DeviceError, match="cuda:0: 'next_stream' was not launched, or a kernel before it has failed"):
        advance(driver, state, out)
        driver.download(out)
    machine.fails["streamSynchronize"] = CUDARuntimeError("cudaErrorIllegalAddress")
    with pytest.raises(DeviceError, match="cuda:0: a kernel that was launched before has failed: cudaErrorIllegalAd"):
        driver.download(state)
    replay = driver.record(lambda: advance(driver, state, out))
    machine.fails["graphLaunch"] = CUDARuntimeError("cudaErrorIllegalAddress")
    with pytest.raises(DeviceError, match="cuda:0: a recorded step was not launched, or a kernel before it has failed"):
        replay()
    assert numbers(driver, state) == [7, 1]
