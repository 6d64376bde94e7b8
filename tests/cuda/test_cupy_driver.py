"""The driver over CuPy, with a CuPy that runs on the processor and does everything as late as a GPU may."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from fcdense.arena import Workspace
from fcdense.backends.cuda import CudaBackend
from fcdense.cuda import source
from fcdense.cuda.driver import LANES
from fcdense.errors import DeviceError, OutOfMemory
from tests import emulation
from tests.cuda import fake_cupy
from tests.cuda.fake_cuda import Machine

pytestmark = pytest.mark.skipif(not emulation.is_available(), reason="no g++ here")
U64, F32 = np.dtype(np.uint64), np.dtype(np.float32)
KERNEL = source.next_stream()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Two GPUs; what kernels compute is taken from `next_stream`, the one that these tests launch."""
    made = fake_cupy.install(monkeypatch)
    made.run = next_stream
    return made


def next_stream(kernel: Any, grid: Any, arguments: Any) -> None:
    """out = state, then state[1] += 1, at the addresses in the struct."""
    state, out = (fake_cupy._at(int(address), (2,), U64, None) for address in np.frombuffer(arguments, U64))
    out[:] = state
    state[1] += 1


@pytest.fixture
def driver(machine: Machine) -> Any:
    """That of the second GPU, while the first one is everybody's current device."""
    return driver_of(1)


def driver_of(index: int) -> Any:
    from fcdense.cuda import cupy_driver

    return cupy_driver.CupyDriver(index)


def words(driver: Any, *numbers: int) -> Any:
    return driver.upload(np.array(numbers, U64))


def arguments(driver: Any, state: Any, out: Any) -> Any:
    made = np.zeros(1, KERNEL.arguments)
    made["state"], made["out"] = driver.address(state), driver.address(out)
    return made


def advance(driver: Any, state: Any, out: Any) -> None:
    driver.launch(KERNEL, (1, 1, 1), arguments(driver, state, out))


def numbers(driver: Any, array: Any) -> list[int]:
    found: list[int] = driver.download(array).tolist()
    return found


# ---- the GPU ---------------------------------------------------------------------------------------------------------

CHIPS = {"75": "sm_75", "80": "sm_80", "86": "sm_86", "89": "sm_89", "90": "sm_90a", "100": "sm_100a", "103": "sm_103a"}
CHIPS |= {"110": "sm_110a", "120": "sm_120", "121": "sm_121"}


@pytest.mark.parametrize("capability", CHIPS)
def test_architectures(capability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cupy.install(monkeypatch, capability)
    made = driver_of(1)
    assert (made.name, made.architecture, made.gpu) == ("cuda:1", CHIPS[capability], "Fake GPU")


def test_a_chip_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cupy.install(monkeypatch, "70")
    with pytest.raises(DeviceError, match=r"cuda:0 is a Fake GPU of compute capability 7\.0; fcdense needs 7\.5"):
        driver_of(0)


def test_the_stream_waits_for_no_other(driver: Any) -> None:
    assert driver.stream.non_blocking
    assert driver.stream.index == 1


def test_the_library_has_a_workspace_of_its_own(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert driver_of(0).library is None
    made = []
    monkeypatch.setattr("fcdense.cuda.cupy_driver.library_path", lambda name, title: name)
    monkeypatch.setattr(
        "fcdense.cuda.cupy_driver.CublasLt", lambda *given, device: made.append((*given, device)) or "here"
    )
    driver = driver_of(0)
    assert driver.library == "here"
    ((place, size, device),) = made
    assert (place % 256, size) == (0, 32 << 20)
    assert [memory.size for memory in machine.memories if memory.ptr == place] == [LANES * size]
    machine.devices[-1] = 1
    with device:
        assert machine.devices == [1, 0]
    assert machine.devices == [1]
    taken = driver.upload(np.zeros(size, np.uint8))
    assert abs(driver.address(taken) - place) >= size
    gone = weakref.ref(driver)
    gc.disable()  # which a thread without the device might be the one to run
    try:
        del driver, taken
        assert gone() is None
    finally:
        gc.enable()


def test_it_is_checked_by_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = fake_cupy.install(monkeypatch)
    driver_of(0).check()
    machine.run = lambda kernel, grid, given: None
    with pytest.raises(DeviceError, match=r"cuda:0 computes wrongly: 'next_stream' of \[\d+, 41\] gave \[18446744"):
        driver_of(0).check()


WORK: dict[str, Callable[[Any, Any, Any], Any]] = {
    "empty": lambda d, state, out: d.empty((5,), F32),
    "view": lambda d, state, out: d.view(state, 8, (2, 2), (0, 0), U64),
    "upload": lambda d, state, out: d.upload(np.ones((3, 2))),
    "write": lambda d, state, out: out.__setitem__(slice(1, 2), 7),
    "copy": lambda d, state, out: out.__setitem__(..., state),
    "reshape": lambda d, state, out: d.upload(np.ones((3, 2))).T.reshape(6),
    "download": lambda d, state, out: d.download(state),
    "launch": advance,
    "record": lambda d, state, out: d.record(lambda: advance(d, state, out))(),
    "check": lambda d, state, out: d.check(),
    "adopt": lambda d, state, out: d.adopt(state),
    "hand_over": lambda d, state, out: d.hand_over(state),
}


@pytest.mark.parametrize("name", WORK)
def test_device_and_stream_of_a_thread_are_left_alone(name: str, driver: Any, machine: Machine) -> None:
    state, out = words(driver, 7, 1), words(driver, 0, 0)

    def work(mine: int) -> bool:
        machine.devices[-1] = mine
        before = [list(streams) for streams in machine.current]
        WORK[name](driver, state, out)  # the machine refuses what is for another device than the current one
        return machine.devices == [mine] and [list(streams) for streams in machine.current] == before

    for mine in (0, 1):
        assert work(mine)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work, 0).result()
    assert numbers(driver, state)[0] == 7
    assert not machine.null[0].waiting
    if name not in ("adopt", "hand_over"):
        assert not machine.null[1].waiting


# ---- kernels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recorded", [False, True])
def test_arguments_arrive_as_they_were(recorded: bool, driver: Any, machine: Machine) -> None:
    kernel = source.softmax(F32, 10, True)
    given = np.zeros(1, kernel.arguments)
    given.view(np.uint8)[:] = np.random.default_rng(0).integers(0, 256, kernel.arguments.itemsize)
    expected = given.tobytes()

    def call() -> None:
        driver.launch(kernel, (3, 2, 1), given)
        given.view(np.uint8)[:] = 0

    if recorded:
        driver.record(call)
    else:
        call()
        assert driver.stream.waiting
    ((launched, grid, content),) = machine.launched
    assert content == expected
    assert grid == (3, 2, 1)
    assert (launched.text, launched.threads, launched.shared) == (kernel.text, kernel.threads, kernel.shared)


def test_threads_load_a_kernel_once(driver: Any, machine: Machine) -> None:
    start = threading.Barrier(4)

    def work(_: int) -> list[int]:
        state, out = words(driver, 7, 1), words(driver, 0, 0)
        start.wait()
        for _ in range(20):
            advance(driver, state, out)
        return numbers(driver, state)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [[7, 21]] * 4
    assert machine.calls.count("moduleLoadData") == 1


def test_work_of_others_has_its_turn(driver: Any) -> None:
    state, out, given = words(driver, 7, 1), words(driver, 0, 0), []

    def library(stream: int) -> None:
        given.append(stream)

    advance(driver, state, out)
    driver.enqueue(library)
    assert given == [driver.stream.ptr]
    replay = driver.record(lambda: driver.enqueue(library))
    assert len(given) == 2
    assert given[1] != driver.stream.ptr, "captured on the stream that everybody uses"
    replay()
    assert driver.timed(lambda: [advance(driver, state, out) for _ in range(3)]) == 0.003
    assert numbers(driver, state) == [7, 5]


@pytest.mark.parametrize("shared", [48 * 1024, 48 * 1024 + 16, 227 * 1024])
def test_shared_memory_is_asked_for(shared: int, driver: Any) -> None:
    state, out = words(driver, 7, 1), words(driver, 0, 0)
    driver.launch(KERNEL._replace(shared=shared), (1, 1, 1), arguments(driver, state, out))
    assert numbers(driver, state) == [7, 2]


def test_shared_memory_that_is_not_there(driver: Any) -> None:
    with pytest.raises(DeviceError, match=r"does not load 'next_stream' for sm_90a, 999999 bytes of shared memory"):
        driver.launch(KERNEL._replace(shared=999_999), (1, 1, 1), np.zeros(1, KERNEL.arguments))
        driver.download(words(driver, 1))
    driver.check()


# ---- memory ----------------------------------------------------------------------------------------------------------

VALUES = {
    "whole": np.arange(12, dtype=np.int64).reshape(3, 4),
    "no axes": np.array(2.5),
    "bool": np.array([True, False, True]),
    "halves": np.linspace(-3, 3, 7, dtype=np.float16),
    "strided": np.arange(24.0).reshape(4, 6)[::2, 5:0:-2],
    "transposed": np.arange(6.0).reshape(2, 3).T,
    "nothing": np.empty((3, 0), np.float32),
    "read-only": np.broadcast_to(np.float32(3), (2, 5)),
}


@pytest.mark.parametrize("name", VALUES)
def test_up_and_down(name: str, driver: Any) -> None:
    values = VALUES[name]
    array = driver.upload(values)
    assert (array.shape, array.dtype, array.flags.c_contiguous) == (values.shape, values.dtype, True)
    for given, expected in ((array, values), (array.T, values.T)):
        there = driver.download(given)
        np.testing.assert_array_equal(there, expected, strict=True)
        assert there.flags.c_contiguous
        assert there.flags.owndata


def test_what_comes_down_is_the_callers(driver: Any) -> None:
    array = words(driver, 1, 2)
    first = driver.download(array)
    first[:] = 9
    assert numbers(driver, array) == [1, 2]


def test_an_upload_has_read_the_array_when_it_returns(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fcdense.cuda.transfers import Staging

    monkeypatch.setattr(Staging, "PIECE", 64)
    monkeypatch.setattr(Staging, "AHEAD", 256)
    sent = []
    for number, size in enumerate([1, 7, 8, 9, 100, 3, 0, 2]):
        values = np.full(size, number + 1.0)
        sent.append(driver.upload(values))
        values[:] = np.nan
    for number, array in enumerate(sent):
        assert set(driver.download(array).tolist()) <= {number + 1.0}
    assert driver._staging._bytes <= 256


def test_what_is_staged_is_given_back(driver: Any) -> None:
    for _ in range(5):
        numbers(driver, words(driver, 1))
    words(driver, 1)
    assert len(driver._staging._pieces) == 1


def test_parts_are_written_in_the_order_of_launches(driver: Any) -> None:
    state, out = words(driver, 7, 1), words(driver, 0, 0)
    advance(driver, state, out)
    state[0] = 5
    state[1:] = np.array([10.0])
    advance(driver, state, out)
    matrix = driver.upload(np.zeros((2, 3), np.float32))
    matrix[:, 1] = np.array([1.5, 2.5])
    matrix[0, 2:] = out[:1]
    matrix.T[2, 1, ...] = 9
    assert numbers(driver, state) == [5, 11]
    assert numbers(driver, out) == [5, 10]
    assert numbers(driver, matrix) == [[0.0, 1.5, 5.0], [0.0, 2.5, 9.0]]
    flat = matrix.T.reshape(6)
    flat[1:3] = 4
    assert numbers(driver, flat) == [0.0, 4.0, 4.0, 2.5, 5.0, 9.0]
    turned = driver.upload(np.zeros((3, 2), np.float32))
    turned[...] = matrix.T
    assert numbers(driver, turned) == numbers(driver, matrix.T)
    with pytest.raises(ValueError, match="broadcast"):
        matrix[0] = np.zeros(7)


def test_views(driver: Any) -> None:
    base = driver.upload(np.arange(12, dtype=np.int32))
    exact = np.arange(12, dtype=np.int32)
    for offset, shape, strides in ((0, (12,), (4,)), (16, (2, 3), (12, 4)), (44, (3, 2), (0, -4)), (4, (), ())):
        view = driver.view(base, offset, shape, strides, np.dtype(np.int32))
        assert driver.address(view) == driver.address(base) + offset
        assert (view.shape, view.strides) == (shape, strides)
        np.testing.assert_array_equal(driver.download(view), np.ndarray(shape, np.int32, exact, offset, strides))
    halves = driver.view(base, 4, (2,), (2,), np.dtype(np.int16))
    del base
    driver.upload(np.full(12, 77, np.int32))
    assert numbers(driver, halves) == [1, 0]


def test_a_workspace_sees_who_uses_its_memory(driver: Any) -> None:
    workspace = Workspace(CudaBackend(driver))
    shape = (Workspace.smallest,)
    lent = workspace.empty(shape, F32)
    view = driver.view(lent, 64, (4,), (4,), F32)[1:].reshape(3, 1).T
    place = driver.address(lent)
    del lent
    assert driver.address(workspace.empty(shape, F32)) != place
    del view
    assert place in {driver.address(array) for array in [workspace.empty(shape, F32) for _ in range(2)]}


def test_memory_is_aligned_and_used_again(driver: Any, machine: Machine) -> None:
    assert {driver.address(driver.empty((size,), F32)) % 256 for size in (1, 65, 1000)} == {0}
    machine.calls.clear()
    for size in (1, 65, 1000):
        assert driver.empty((size,), F32).shape == (size,)
    assert "malloc" not in machine.calls


def test_memory_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cupy.install(monkeypatch, capacity=1 << 20).run = next_stream
    driver = driver_of(0)
    kept = driver.empty((100, 1024), F32)
    driver.empty((50, 1024), F32)
    for size, expected in ((200, 630_784), (1 << 55, 630_784)):
        with pytest.raises(OutOfMemory, match=rf"an array of {size * 4096:,} bytes; {expected + 8192:,} are free \(sh"):
            driver.empty((size, 1024), F32)
    assert driver.empty((150, 1024), F32).size
    assert kept.size
    driver.check()


def test_memory_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = fake_cupy.install(monkeypatch, capacity=4096)
    driver = driver_of(0)
    monkeypatch.setattr(driver._pool, "free_bytes", lambda: 1 << 20)
    with pytest.raises(OutOfMemory, match=r"; 1,052,672 are free, but not in one piece \(shape \(8192,\), uint8\)\."):
        driver.empty((8192,), np.dtype(np.uint8))
    assert machine.free[0] == 4096


def test_cupys_own_pool_gives_back_what_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = fake_cupy.install(monkeypatch, capacity=1 << 20)
    machine.default_pool.malloc(900_000)
    assert driver_of(0).empty((200_000,), F32).size == 200_000
