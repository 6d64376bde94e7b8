"""The driver on a real GPU: what its tests on the processor take from documentation is seen to be so."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import fcdense as fc
from fcdense.backends import cuda_probes
from fcdense.errors import OutOfMemory
from fcdense.program import trace

pytestmark = pytest.mark.gpu
F32 = np.dtype(np.float32)
LARGE = 1 << 24
TWICE_AND_ONE = trace(lambda x: 2.0 * x + 1.0, 1, name="twice_and_one")


@pytest.fixture
def backend() -> Any:
    return fc.device("cuda").backend


def test_every_probe_passes() -> None:
    assert [probe for probe in cuda_probes() if not probe.passed] == []


def test_kernels_are_compiled_for_this_chip(backend: Any) -> None:
    capability = backend.driver.device.compute_capability
    assert backend.driver.architecture in (f"sm_{capability}", f"sm_{capability}a")


def test_an_upload_has_read_the_array_when_it_returns(backend: Any) -> None:
    """Pinned memory too, which CUDA copies from when it comes to it."""
    import cupy

    pinned = np.frombuffer(cupy.cuda.alloc_pinned_memory(4 * LARGE), np.float32, LARGE)
    for values in (np.empty(LARGE, np.float32), pinned):
        sent = []
        for number in range(4):
            values[:] = number
            sent.append(backend.from_host(values))
        values[:] = -1
        for number, array in enumerate(sent):
            there = backend.to_host(array)
            assert (there == number).all()


def test_launches_on_large_arrays_keep_their_order(backend: Any) -> None:
    """Memory that is given back while kernels run is used by those that come after, on the same stream."""
    x = backend.from_host(np.zeros(LARGE, np.float32))
    for _ in range(16):
        y = backend.empty((LARGE,), F32)
        backend.map(TWICE_AND_ONE, (x,), out=(y,))
        x = y
    x[0] = 5.0
    backend.map(TWICE_AND_ONE, (x,), out=(x,))
    there = backend.to_host(x)
    assert there[0] == 11.0
    assert (there[1:] == 2.0**17 - 1).all()


def test_threads_with_other_devices_and_streams(backend: Any) -> None:
    import cupy

    start = threading.Barrier(4)

    def work(number: int) -> bool:
        cupy.cuda.Device(number % cupy.cuda.runtime.getDeviceCount()).use()
        start.wait()
        with cupy.cuda.Stream(non_blocking=True):
            x = backend.from_host(np.full(100_000, number, np.float32))
            for _ in range(50):
                y = backend.empty(x.shape, F32)
                backend.map(TWICE_AND_ONE, (x,), out=(y,))
                backend.map(TWICE_AND_ONE, (y,), out=(x,))
                x[...] = np.full(100_000, number, np.float32)
            return bool((backend.to_host(x) == number).all() and (backend.to_host(y) == 2 * number + 1).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_a_recorded_step_is_replayed_beside_other_threads(backend: Any) -> None:
    x, other = (backend.from_host(np.zeros(1000, np.float32)) for _ in range(2))
    stop = threading.Event()

    def go_on() -> None:
        while not stop.is_set():
            backend.map(TWICE_AND_ONE, (backend.from_host(np.zeros(1000, np.float32)),), out=(other,))

    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(go_on)
        for _ in range(20):
            x[...] = np.zeros(1000, np.float32)
            replay = backend.driver.record(lambda: backend.map(TWICE_AND_ONE, (x,), out=(x,)))
            for _ in range(10):
                replay()
            assert (backend.to_host(x) == 2.0**10 - 1).all()
        stop.set()
        busy.result()
    assert (backend.to_host(other) == 1.0).all()


def test_arrays_of_a_callers_stream(backend: Any) -> None:
    """Copies of 64 MB on the caller's stream are still under way when the driver's is given its work, and back."""
    import cupy

    values = np.arange(LARGE, dtype=np.float32)
    with backend.driver.device, cupy.cuda.Stream(non_blocking=True) as stream:
        first = cupy.empty(LARGE, np.float32)
        for round_ in range(8):
            given = values + round_
            first.set(given, stream=stream)
            second = cupy.empty_like(first)
            second.data.copy_from_device_async(first.data, first.nbytes, stream)
            y = backend.empty((LARGE,), F32)
            backend.map(TWICE_AND_ONE, (backend.driver.adopt(second),), out=(y,))
            second.data.memset_async(0xFF, second.nbytes, stream)  # once the driver has read it
            del second
            result = backend.driver.hand_over(y)
            del y
            there = result.get(stream=stream)
            del result
            np.testing.assert_array_equal(there, 2 * given + 1)


@pytest.mark.alone
def test_what_is_too_large_is_refused_and_all_goes_on(backend: Any) -> None:
    import cupy

    free, total = cupy.cuda.runtime.memGetInfo()
    with pytest.raises(OutOfMemory, match=r"^cuda:0 cannot hold an array of [\d,]+ bytes; [\d,]+ are free \(shape"):
        backend.empty((2 * total,), np.dtype(np.uint8))
    array = backend.empty((free // 2,), np.dtype(np.uint8))
    del array
    backend.driver.check()
