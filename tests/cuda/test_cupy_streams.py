"""The driver beside other streams, its recorded steps, forked processes, and the whole library above it."""

from __future__ import annotations

import gc
import itertools
import os
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest

import fcdense as fc
from fcdense.backends import Device
from fcdense.backends.cuda import CudaBackend
from fcdense.errors import CaptureError, DeviceError
from tests import emulation
from tests.cuda import fake_cupy
from tests.cuda.fake_cuda import CUDADriverError, Machine
from tests.cuda.fake_cuda import Device as Gpu
from tests.cuda.fake_streams import CUDARuntimeError, Stream
from tests.cuda.test_cupy_driver import advance, driver_of, next_stream, numbers, words
from tests.cuda.test_training import trained
from tests.emulation import EmulatedDriver

pytestmark = pytest.mark.skipif(not emulation.is_available(), reason="no g++ here")
U64 = np.dtype(np.uint64)
NUMBER = itertools.count()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return fake_cupy.install(monkeypatch)


@pytest.fixture
def driver(machine: Machine) -> Any:
    machine.run = next_stream
    return driver_of(0)


# ---- arrays of a caller, who works on a stream of his own ------------------------------------------------------------


class Caller:
    """Somebody who uses CuPy on a stream of their own, and waits for that stream alone."""

    def __init__(self, machine: Machine) -> None:
        import cupy

        self.cupy: Any = cupy
        self._machine = machine
        with Gpu(machine, 0):
            self.stream = Stream(machine, non_blocking=True)

    def array(self, *values: int) -> Any:
        made = self.cupy.ndarray((len(values),), U64, self._machine.default_pool.malloc(8 * len(values)))
        for place, value in enumerate(values):
            made[place] = value
        return made

    def read(self, array: Any) -> list[int]:
        out = np.empty(array.shape, array.dtype)
        array.get(self.stream, out=out)
        values: list[int] = out.tolist()
        return values


@pytest.fixture
def caller(machine: Machine) -> Caller:
    return Caller(machine)


def test_launches_come_after_what_the_caller_did(driver: Any, caller: Caller) -> None:
    with caller.stream:
        given = caller.array(7, 1)
        adopted = driver.adopt(given)
    assert driver.address(adopted) == given.data.ptr
    assert (adopted.shape, adopted.strides, adopted.dtype) == (given.shape, given.strides, given.dtype)
    out = words(driver, 0, 0)
    advance(driver, adopted, out)
    assert numbers(driver, out) == [7, 1]


def test_the_caller_goes_on_once_the_launches_are_done(driver: Any, caller: Caller) -> None:
    out = words(driver, 0, 0)
    with caller.stream:
        given = caller.array(7, 1)
        advance(driver, driver.adopt(given)[:], out)
        given[0] = 100
        assert caller.read(given) == [100, 2]
    assert numbers(driver, out) == [7, 1]


def test_memory_of_the_caller_is_free_once_the_launches_are_done(driver: Any, caller: Caller) -> None:
    out = words(driver, 0, 0)
    with caller.stream:
        given = caller.array(7, 1)
        place, adopted = given.data.ptr, driver.adopt(given)
        del given
        assert caller.array(0, 0).data.ptr != place
        advance(driver, adopted, out)
        del adopted
        other = caller.array(100, 100)
        assert other.data.ptr == place
        assert caller.read(other) == [100, 100]
    assert numbers(driver, out) == [7, 1]


def test_results_are_there_when_the_caller_reads(driver: Any, caller: Caller) -> None:
    state, out = words(driver, 7, 1), words(driver, 0, 0)
    advance(driver, state, out)
    with caller.stream:
        result = driver.hand_over(out)
        assert type(result) is caller.cupy.ndarray
        assert result.data.ptr == driver.address(out)
        assert caller.read(result) == [7, 1]


def test_results_stay_until_the_caller_has_read_them(driver: Any, caller: Caller) -> None:
    state, out = words(driver, 7, 1), words(driver, 0, 0)
    advance(driver, state, out)
    with caller.stream:
        result, copied = driver.hand_over(out), caller.array(0, 0)
        place = driver.address(out)
        del out
        assert driver.address(words(driver, 3, 3)) != place
        copied[:] = result
        del result
        other = words(driver, 5, 5)
        assert driver.address(other) == place
        assert numbers(driver, other) == [5, 5]
        assert caller.read(copied) == [7, 1]


def test_an_array_of_another_gpu(caller: Caller, machine: Machine) -> None:
    given = caller.array(7, 1)
    with pytest.raises(DeviceError, match="The array lies on cuda:0, expected cuda:1"):
        driver_of(1).adopt(given)


# ---- recorded steps --------------------------------------------------------------------------------------------------


def test_replays_repeat_the_launches_in_order(driver: Any, machine: Machine) -> None:
    state, out = words(driver, 7, 1), words(driver, 0, 0)

    def calls() -> None:
        advance(driver, state, out)
        advance(driver, out, driver.empty((2,), U64))

    replay = driver.record(calls)
    assert numbers(driver, state) == [7, 1]
    for _ in range(3):
        replay()
        advance(driver, state, out)
    replay()
    assert numbers(driver, state) == [7, 8]
    assert numbers(driver, out) == [7, 8]
    assert machine.calls.count("graphLaunch") == 4


def test_nothing_but_launches_is_captured(driver: Any, machine: Machine) -> None:
    def calls() -> None:
        state = words(driver, 7, 1)
        for _ in range(3):
            advance(driver, state, driver.empty((2,), U64))

    driver.record(calls)
    begin, end = (machine.calls.index(name) for name in ("streamBeginCapture", "streamEndCapture"))
    assert machine.calls[begin + 1 : end] == ["launchKernel"] * 3
    assert driver.stream.captured is None


def test_parts_wait_for_those_that_they_come_after(driver: Any, machine: Machine) -> None:
    """The machine runs a graph's work as late in its order as may be: what is not ordered comes the wrong way round."""
    first, second, third = (words(driver, 0, 0) for _ in range(3))

    def calls(after: tuple[int, ...]) -> None:
        driver.begin_part(0, ())
        advance(driver, first, second)  # second = first as it was
        driver.begin_part(1, ())
        advance(driver, third, driver.empty((2,), U64))
        driver.begin_part(1, after)
        advance(driver, second, third)

    for after, expected in (((0,), [7, 1]), ((), [8, 1])):
        first[:], second[:], third[:] = [7, 1], [8, 1], [0, 0]
        begin = len(machine.calls)
        driver.record(partial(calls, after))()
        assert numbers(driver, third) == expected
        waits = machine.calls[begin:].count("streamWaitEvent")
        assert waits == 2 + len(after), "the fork, the join, and what is awaited"


def test_nothing_else_gets_into_a_graph(driver: Any, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    state, others, out = words(driver, 7, 1), words(driver, 8, 1), words(driver, 0, 0)
    adopted = [driver.adopt(others)]
    called = machine.called

    def meanwhile(name: str, index: int | None = None) -> None:
        called(name, index)
        if name == "launchKernel" and adopted:
            adopted.clear()
            with ThreadPoolExecutor(1) as pool:
                pool.submit(advance, driver, others, out).result()

    monkeypatch.setattr(machine, "called", meanwhile)
    replay = driver.record(lambda: advance(driver, state, out))
    replay()
    replay()
    assert numbers(driver, state) == [7, 3]
    assert numbers(driver, others) == [8, 2]


def test_memory_of_a_recording_lives_as_long(driver: Any) -> None:
    state, places = words(driver, 7, 1), []

    def calls() -> None:
        out = driver.empty((2,), U64)
        places.append(driver.address(out))
        advance(driver, state, out)

    replay = driver.record(calls)
    others = [driver.empty((2,), U64) for _ in range(3)]
    assert places[0] not in map(driver.address, others)
    replay()
    assert numbers(driver, state) == [7, 2]
    del replay
    assert driver.address(driver.empty((2,), U64)) == places[0]


FAILS = {"launchKernel": CUDADriverError("INVALID"), "streamEndCapture": CUDARuntimeError("Unsupported")}


@pytest.mark.parametrize("name", FAILS)
def test_a_failed_capture_changes_nothing(name: str, driver: Any, machine: Machine) -> None:
    state, out = words(driver, 7, 1), words(driver, 0, 0)
    advance(driver, state, out)

    def calls() -> None:
        advance(driver, state, out)
        machine.fails[name] = FAILS[name]

    with pytest.raises(CaptureError, match=f"cuda:0: 1 launches do not become a CUDA graph: {FAILS[name]}"):
        driver.record(calls)
    streams = [stream for ref in machine.streams if (stream := ref()) is not None]
    assert all(stream.captured is None for stream in streams)
    advance(driver, state, out)
    driver.record(lambda: advance(driver, state, out))()
    assert numbers(driver, state) == [7, 4]


def test_what_calls_raise_is_raised(driver: Any, machine: Machine) -> None:
    state, out = words(driver, 7, 1), words(driver, 0, 0)

    def calls() -> None:
        advance(driver, state, out)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        driver.record(calls)
    assert "streamBeginCapture" not in machine.calls
    driver.record(lambda: advance(driver, state, out))()
    assert numbers(driver, state) == [7, 2]


def test_a_recording_inside_of_one(driver: Any) -> None:
    with pytest.raises(CaptureError, match="cannot be recorded while this thread records another one"):
        driver.record(lambda: driver.record(lambda: None))
    driver.record(lambda: None)()


def test_other_threads_go_on_while_one_records(driver: Any) -> None:
    mine, others, out = words(driver, 7, 1), words(driver, 8, 1), words(driver, 0, 0)

    def calls() -> None:
        advance(driver, mine, out)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(advance, driver, others, out).result()

    replay = driver.record(calls)
    assert numbers(driver, mine) == [7, 1]
    assert numbers(driver, others) == [8, 2]
    replay()
    assert numbers(driver, mine) == [7, 2]
    assert numbers(driver, others) == [8, 2]


# ---- ends ------------------------------------------------------------------------------------------------------------


def refused(driver: Any, state: Any) -> bool:
    """Whether a driver that was started before a fork says so, whatever it is asked for."""
    asked = (
        lambda: driver.empty((2,), U64),
        lambda: words(driver, 1, 2),
        lambda: driver.download(state),
        lambda: driver.check(),
        lambda: driver.record(lambda: None),
        lambda: state.__setitem__(0, 1),
        lambda: driver.adopt(state),
    )
    for ask in asked:
        with pytest.raises(DeviceError, match=r"cuda:0 was in use before this process was forked, .*'spawn'"):
            ask()
    return True


def passes_in_a_child(check: Callable[[], bool]) -> bool:
    """Whether a check holds in a forked process."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    deadline = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    return ended[0] == child and os.waitstatus_to_exitcode(ended[1]) == 0


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
may_fork = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@forks
@may_fork
def test_a_forked_process_is_told(driver: Any) -> None:
    state = words(driver, 7, 1)
    lent = [driver.adopt(state)]
    assert passes_in_a_child(lambda: lent.clear() is None and refused(driver, state))
    assert numbers(driver, lent[0]) == [7, 1]


@forks
@may_fork
def test_a_forked_process_may_be_seeded(machine: Machine) -> None:
    with fc.use_device(Device("cupy", next(NUMBER), backend=CudaBackend(driver_of(0)))):
        assert fc.nn.Dropout(0.5)(fc.tensor(np.ones(4))).shape == (4,)

    def drawn() -> bool:
        with fc.use_device("cpu"):
            fc.manual_seed(3)
            return fc.nn.Dropout(0.5)(fc.tensor(np.ones(64))).numpy().any()  # type: ignore[no-any-return]

    assert passes_in_a_child(drawn)


def test_nothing_keeps_a_driver_alive(machine: Machine) -> None:
    driver = driver_of(0)
    driver.check()
    driver.record(lambda: None)()
    gone = weakref.ref(driver)
    del driver
    gc.collect()
    assert gone() is None


# ---- the whole library -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("network", "optimizer"), [("dropout", "adam"), ("plain", "adamw, clipped")])
@pytest.mark.parametrize("captured", [False, True])
def test_training_is_that_of_the_emulation(network: str, optimizer: str, captured: bool, machine: Machine) -> None:
    # Under names of their own: the random state keeps words for each device by its name.
    ours, theirs = (
        Device("cupy", next(NUMBER), backend=CudaBackend(driver)) for driver in (driver_of(0), EmulatedDriver())
    )
    with fc.use_device(theirs):
        losses, parameters = trained(network, optimizer, captured)
    with fc.use_device(ours):
        found, values = trained(network, optimizer, captured)
    assert found == losses
    for a, b in zip(values, parameters, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not any(null.waiting for null in machine.null), "something was left to a stream that is not the driver's"
    if captured:
        assert machine.calls.count("graphLaunch") >= 3
        after = machine.calls[len(machine.calls) - machine.calls[::-1].index("graphLaunch") :]
        assert "malloc" not in after
