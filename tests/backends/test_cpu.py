"""What is particular to the CPU backend: its memory, and calls from several threads."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fcdense import activations
from fcdense.arena import SMALL
from fcdense.backends.base import Backend, uniform_stream
from fcdense.backends.cpu import CpuBackend
from fcdense.backends.reference import ReferenceBackend
from fcdense.errors import OutOfMemory
from fcdense.layout import ALIGNMENT
from tests.backends import cases
from tests.backends.calls import draw

HOST = [CpuBackend(), ReferenceBackend()]
on_host = pytest.mark.parametrize("backend", HOST, ids=lambda backend: backend.name)


@on_host
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (7, 5), (SMALL // 4,), (1023,), (100, 333)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "bool"])
def test_empty(backend: Backend, shape: tuple[int, ...], dtype: str) -> None:
    array = backend.empty(shape, np.dtype(dtype))
    assert array.shape == shape
    assert array.dtype == np.dtype(dtype)
    assert array.flags.c_contiguous
    assert array.flags.writeable
    array[...] = 1
    assert (array == 1).all()
    if array.nbytes >= SMALL:
        assert array.ctypes.data % ALIGNMENT == 0


@on_host
@pytest.mark.parametrize("shape", [(), (0,), (7, 5), (SMALL // 4,), (100, 333)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "int64", "bool"])
def test_zeros(backend: Backend, shape: tuple[int, ...], dtype: str) -> None:
    backend.empty(shape, np.dtype(dtype)).fill(1)  # what the next array of this size may find in its memory
    array = backend.zeros(shape, np.dtype(dtype))
    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
    assert array.flags.c_contiguous
    assert not array.any()
    if array.nbytes >= SMALL:
        assert array.ctypes.data % ALIGNMENT == 0


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux for the pages in memory")
def test_zeros_that_nobody_touches_take_no_memory() -> None:
    pages = Path("/proc/self/statm")
    before = int(pages.read_text().split()[1])
    array = CpuBackend().zeros((1 << 28,), np.dtype(np.float32))
    resident = (int(pages.read_text().split()[1]) - before) * os.sysconf("SC_PAGE_SIZE")
    assert resident < array.nbytes / 100


@on_host
@pytest.mark.parametrize("count", [2**50, 2**61, 2**62, 2**80])
@pytest.mark.parametrize("make", ["empty", "zeros"])
def test_more_than_there_is(backend: Backend, make: str, count: int) -> None:
    with pytest.raises(OutOfMemory, match=rf"cannot hold an array of {4 * count:,} bytes") as error:
        getattr(backend, make)((count,), np.dtype(np.float32))
    assert isinstance(error.value, MemoryError)
    assert "smaller batch" in str(error.value)


@on_host
def test_host_memory_is_the_devices(backend: Backend) -> None:
    array = np.arange(6.0).reshape(2, 3)[:, ::2]
    assert backend.from_host(array) is array
    assert backend.to_host(array) is array


def test_uniform_stream_is_philox_with_this_key() -> None:
    expected = np.random.Philox(key=np.array([12345, 67], np.uint64)).random_raw(4)
    stream = np.array([12345, 67], np.uint64)
    np.testing.assert_array_equal(uniform_stream(stream).bit_generator.random_raw(4), expected)


@on_host
def test_every_thread_has_its_own_workspace(backend: Backend) -> None:
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(lambda: backend.workspace).result()
    assert other is not backend.workspace
    assert backend.workspace is backend.workspace


def test_calls_from_several_threads() -> None:
    """Every primitive that uses temporary arrays, all threads at once on one backend: the bits of a single thread."""
    backend, rng = CpuBackend(), np.random.default_rng(0)
    some = (
        cases.dense(130, 70, 150, activations.gelu),
        cases.dense_grad_weight(300, 70, 90, "accumulate"),
        cases.act_grad(300, 70, activations.silu, "accumulate"),
        cases.softmax(150, 130, True),
        cases.softmax_xent(150, 130, False),
        cases.softmax_xent(150, 130, True),
        cases.elementwise_loss((150, 130)),
        cases.dropout((150, 130), 0.5),
    )
    values = [draw(case, "float32", rng) for case in some]
    workers = 4

    def work(start: threading.Barrier) -> list[bytes]:
        start.wait()
        results = []
        for _repeat in range(5):
            for case, given in zip(some, values, strict=True):
                mine = {
                    name: value.copy() if isinstance(case.arguments[name], cases.Out) else value
                    for name, value in given.items()
                }
                getattr(backend, case.primitive)(**mine)
                results += [mine[name].tobytes() for name, a in case.arguments.items() if isinstance(a, cases.Out)]
        return results

    with ThreadPoolExecutor(workers) as pool:
        results = list(pool.map(work, [threading.Barrier(workers)] * workers))
    alone = work(threading.Barrier(1))
    assert all(result == alone for result in results)
