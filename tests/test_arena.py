"""Arenas, and the workspace: what is lent stays whole, what is free is used again, nothing grows."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from fcdense.arena import Arena, Array, Version, Workspace, host_empty
from fcdense.backends.cpu import CpuBackend
from fcdense.errors import OutOfMemory
from fcdense.layout import ALIGNMENT, Layout, Span

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
SHAPE = (100, 100)  # 40 kB in float32: more than the workspace's smallest


class Counter:
    """An allocator that counts; `make` decides whether arrays own their memory or are cut from it."""

    def __init__(self, make: Callable[[tuple[int, ...], np.dtype[Any]], Array] = host_empty) -> None:
        self.make = make
        self.calls = 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        self.calls += 1
        return self.make(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        array = self.empty(shape, dtype)
        array.fill(0)
        return array


@pytest.fixture(params=[host_empty, np.empty], ids=["aligned", "owning"])
def allocator(request: pytest.FixtureRequest) -> Counter:
    return Counter(request.param)


# ---- workspace -------------------------------------------------------------------------------------------------------


def test_a_free_array_is_used_again(allocator: Counter) -> None:
    workspace = Workspace(allocator)
    addresses = set()
    for _ in range(5):
        array = workspace.empty(SHAPE, F32)
        addresses.add(array.ctypes.data)
        del array
    assert allocator.calls == len(addresses) == 1


def test_arrays_in_use_are_different(allocator: Counter) -> None:
    workspace = Workspace(allocator)
    held = [workspace.empty(SHAPE, F32) for _ in range(4)]
    for i, array in enumerate(held):
        array.fill(i)
    assert [int(array.min()) for array in held] == [int(array.max()) for array in held] == [0, 1, 2, 3]
    del held[1]
    del array
    workspace.empty(SHAPE, F32).fill(9)
    assert [int(array[0, 0]) for array in held] == [0, 2, 3]
    assert allocator.calls == 4


VIEWS: dict[str, Callable[[Array], Any]] = {
    "slice": lambda a: a[10:20, ::2],
    "reshape": lambda a: a.reshape(-1),
    "transpose": lambda a: a.T,
    "view of a view": lambda a: a[1:].reshape(-1)[5:],
    "broadcast": lambda a: np.broadcast_to(a[0], (7, 100)),
    "dtype": lambda a: a.view(np.uint8),
    "memoryview": memoryview,
    "frombuffer": lambda a: np.frombuffer(a, np.uint8),
    "asarray": lambda a: np.asarray(memoryview(a)),
    "as_strided": lambda a: np.lib.stride_tricks.as_strided(a, (2, 2)),
    "element": lambda a: a[5:6, 5:6].reshape(()),
    "dlpack": np.from_dlpack,
    "flat iterator": lambda a: a.flat,
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_an_array_is_lent_as_long_as_a_view_of_it_lives(allocator: Counter, view: Callable[[Array], Any]) -> None:
    workspace = Workspace(allocator)
    array = workspace.empty(SHAPE, F32)
    held = view(array)
    del array
    other = workspace.empty(SHAPE, F32)
    assert allocator.calls == 2
    del held, other
    gc.collect()
    again = [workspace.empty(SHAPE, F32) for _ in range(2)]
    assert allocator.calls == 2
    assert again[0].ctypes.data != again[1].ctypes.data


def test_shapes_and_dtypes_do_not_mix(allocator: Counter) -> None:
    workspace = Workspace(allocator)
    for shape, dtype in ((SHAPE, F32), (SHAPE, F64), ((10_000,), F32), ((50, 200), F32)):
        array = workspace.empty(shape, dtype)
        assert (array.shape, array.dtype) == (shape, dtype)
        del array
    assert allocator.calls == 4


def test_small_arrays_are_not_kept() -> None:
    allocator = Counter()
    workspace = Workspace(allocator)
    for _ in range(3):
        assert workspace.empty((10,), F32).shape == (10,)
        assert workspace.empty((), F32).shape == ()
        assert workspace.empty((0, 10_000), F32).size == 0
    assert allocator.calls == 9


def test_nothing_grows_over_a_thousand_steps(allocator: Counter) -> None:
    """The arrays of a small network: forward all alive, then freed one by one; every tenth batch is smaller."""
    workspace = Workspace(allocator)

    def step(batch: int) -> None:
        forward = [workspace.empty((batch, width), F32) for width in (300, 200, 200, 300)]
        gradient = workspace.empty((batch, 300), F32)
        while forward:
            below = workspace.empty(forward.pop().shape, F32)
            gradient = below
        assert gradient.shape == (batch, 300)

    for number in range(1000):
        step(100 if number % 10 else 37)
    assert allocator.calls <= 2 * 10


def test_capacity_releases_what_is_free_and_oldest_first(allocator: Counter) -> None:
    workspace = Workspace(allocator, capacity=3 * 40_000)
    alive = {rows: weakref.ref(workspace.empty((rows, 100), F32)) for rows in (98, 99, 100)}
    assert all(ref() is not None for ref in alive.values())
    workspace.empty((101, 100), F32)
    assert [rows for rows, ref in alive.items() if ref() is None] == [98]


def test_a_shape_that_was_added_to_is_not_old(allocator: Counter) -> None:
    workspace = Workspace(allocator, capacity=3 * 40_000)
    first = workspace.empty((98, 100), F32)
    other = weakref.ref(workspace.empty((99, 100), F32))
    second = workspace.empty((98, 100), F32)
    alive = [weakref.ref(first), weakref.ref(second)]
    del first, second
    workspace.empty((101, 100), F32)
    assert other() is None
    assert all(ref() is not None for ref in alive)


def test_capacity_does_not_touch_what_is_lent(allocator: Counter) -> None:
    workspace = Workspace(allocator, capacity=100_000)
    held = [workspace.empty((100 + i, 100), F32) for i in range(6)]
    for i, array in enumerate(held):
        array.fill(i)
    workspace.empty((50, 100), F32).fill(-1)
    assert [float(array[0, 0]) for array in held] == [0, 1, 2, 3, 4, 5]
    released = [weakref.ref(array) for array in held]
    del held, array
    workspace.empty((100, 100), F32)
    assert allocator.calls == 7, "what was lent is still known to the workspace"
    workspace.empty((49, 100), F32)
    assert sum(ref() is not None for ref in released) <= 2


def test_ever_new_shapes_stay_within_capacity(allocator: Counter) -> None:
    workspace = Workspace(allocator, capacity=10 * 40_000)
    alive = [weakref.ref(workspace.empty((100, 100 + i), F32)) for i in range(200)]
    assert sum(ref() is not None for ref in alive) <= 10


def test_one_array_above_the_capacity_is_lent_all_the_same(allocator: Counter) -> None:
    workspace = Workspace(allocator, capacity=1000)
    big = workspace.empty(SHAPE, F32)
    big.fill(1)
    other = workspace.empty(SHAPE, F32)
    assert not np.shares_memory(big, other)


def test_running_out_of_memory_changes_nothing() -> None:
    def make(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        if shape == (1, 10_000):
            raise OutOfMemory("no")
        return host_empty(shape, dtype)

    allocator = Counter(make)
    workspace = Workspace(allocator)
    held = workspace.empty(SHAPE, F32)
    held.fill(3)
    with pytest.raises(OutOfMemory):
        workspace.empty((1, 10_000), F32)
    del held
    assert float(workspace.empty(SHAPE, F32)[0, 0]) == 3
    assert allocator.calls == 2


def test_threads_never_share_a_buffer() -> None:
    backend, workers = CpuBackend(), 4
    start = threading.Barrier(workers)

    def work(mark: int) -> bool:
        start.wait()
        whole = True
        for _ in range(200):
            arrays = [backend.workspace.empty(SHAPE, F32) for _ in range(3)]
            for i, array in enumerate(arrays):
                array.fill(10 * mark + i)
            whole &= all(bool((array == 10 * mark + i).all()) for i, array in enumerate(arrays))
            del arrays, array
        return whole

    with ThreadPoolExecutor(workers) as pool:
        assert all(pool.map(work, range(workers)))


def test_an_array_may_be_freed_by_another_thread() -> None:
    """A tensor made in one thread and dropped in another goes back to its own thread's pool."""
    workspace = Workspace(Counter())
    handed = [workspace.empty(SHAPE, F32)]
    address = handed[0].ctypes.data
    with ThreadPoolExecutor(1) as pool:
        pool.submit(handed.clear).result()
    assert workspace.empty(SHAPE, F32).ctypes.data == address


# ---- arena -----------------------------------------------------------------------------------------------------------

ENTRIES = [("kernel", (37, 41)), ("bias", (41,)), ("scale", ()), ("nothing", (0, 3)), ("last", (7, 11))]


@pytest.fixture(params=["float16", "float32", "float64"])
def arena(request: pytest.FixtureRequest) -> Arena:
    dtype = np.dtype(request.param)
    return Arena(Layout.pack(ENTRIES, dtype.itemsize), dtype, CpuBackend())


def gaps(arena: Arena, buffer: Array) -> Array:
    """What lies between the slots."""
    outside = np.ones(arena.layout.size, bool)
    for slot in arena.layout.slots:
        outside[slot.offset : slot.stop] = False
    return buffer[outside]


def test_buffers_start_at_zero_and_aligned(arena: Arena) -> None:
    for buffer in (arena.values, arena.gradients, arena.new_buffer()):
        assert buffer.shape == (arena.layout.size,)
        assert buffer.dtype == arena.dtype
        assert not buffer.any()
        for i, slot in enumerate(arena.layout.slots):
            view = arena.view(buffer, i)
            assert view.shape == slot.shape
            assert np.shares_memory(view, buffer) or not view.size
            if buffer.nbytes >= 4096 and view.size:
                assert view.ctypes.data % ALIGNMENT == 0


def test_buffers_are_apart(arena: Arena) -> None:
    buffers = [arena.values, arena.gradients, arena.new_buffer(), arena.new_buffer()]
    assert not any(np.shares_memory(a, b) for i, a in enumerate(buffers) for b in buffers[:i])


def test_views_do_not_overlap_and_leave_the_gaps_zero(arena: Arena) -> None:
    for i in range(len(ENTRIES)):
        arena.view(arena.values, i)[...] = i + 1
    for i in range(len(ENTRIES)):
        assert (arena.view(arena.values, i) == i + 1).all()
    assert gaps(arena, arena.values).size > 0
    assert not gaps(arena, arena.values).any()


def test_cut_is_the_part_inside_a_span(arena: Arena) -> None:
    (span,) = arena.layout.spans(range(len(ENTRIES)))
    assert span == Span(0, arena.layout.size)
    part = Arena.cut(arena.values, Span(arena.layout.slots[1].offset, arena.layout.end(2)))
    assert part.size == arena.layout.end(2) - arena.layout.slots[1].offset
    part.fill(5)
    assert (arena.view(arena.values, 1) == 5).all()
    assert (arena.view(arena.values, 2) == 5).all()
    assert not arena.view(arena.values, 0).any()
    assert not arena.view(arena.values, 4).any()


def test_a_new_arena_is_in_use() -> None:
    arena = Arena(Layout.pack([], 4), F32, CpuBackend())
    assert arena.values.size == 0
    assert not arena.retired
    assert arena.version.number == 0


def test_version_counts() -> None:
    version = Version()
    version.bump()
    version.bump()
    assert version.number == 2
