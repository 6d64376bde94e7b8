"""Memory: the arena that holds a model's parameters, and the workspace that lends temporary buffers."""

from __future__ import annotations

import math
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import numpy as np

from fcdense.errors import OutOfMemory
from fcdense.layout import ALIGNMENT, Layout, Span

Array = Any
"""A backend's array: NumPy's on the CPU, CuPy's on CUDA."""


SMALL = 4096
"""Bytes below which aligning an array costs more than it gains."""


def host_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """A NumPy array of undefined contents, aligned to `ALIGNMENT` bytes from `SMALL` bytes on."""
    return _host_array(np.empty, shape, dtype)


def host_zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """The same, of zeros; the system keeps no memory for pages of a large array that nobody writes."""
    return _host_array(np.zeros, shape, dtype)


def _host_array(allocate: Callable[..., Array], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < SMALL:
        return allocate(shape, dtype)
    try:
        raw = allocate(nbytes + ALIGNMENT, np.uint8)
    except (MemoryError, ValueError):  # NumPy calls a size beyond its index type a ValueError
        raise too_large(shape, dtype) from None
    start = -raw.ctypes.data % ALIGNMENT
    return np.ndarray(shape, dtype, buffer=raw, offset=start)


def too_large(shape: tuple[int, ...], dtype: np.dtype[Any]) -> OutOfMemory:
    """The error for an array that host memory cannot hold."""
    return OutOfMemory(
        f"The CPU cannot hold an array of {math.prod(shape) * dtype.itemsize:,} bytes (shape {shape}, {dtype}). "
        "Use a smaller batch or smaller layers."
    )


class Buffers(Protocol):
    """What lends arrays of undefined contents for as long as they are used."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array: ...


class Allocator(Buffers, Protocol):
    """What arena and workspace ask of a backend."""

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array: ...


class Version:
    """A counter that every in-place write raises; views of one storage share it.

    The tape notes it when it saves an array and refuses to use the array once the number has moved.
    """

    __slots__ = ("_continued", "number")

    watch: ClassVar[Callable[[Version], None] | None] = None
    """Told of every write while a step is being recorded."""

    def __init__(self) -> None:
        self.number = 0
        self._continued: tuple[Version, int] | None = None

    def bump(self) -> None:
        """Note that the storage was written."""
        self.number += 1
        if Version.watch is not None:
            Version.watch(self)

    def continue_in(self, other: Version) -> None:
        """The contents moved to the storage of `other`: what happens there from now on counts here as well."""
        self._continued = other, other.number

    def changes_since(self, number: int) -> int:
        """How often the contents were changed since `number` was read."""
        changes = self.number - number
        if self._continued is not None:
            other, start = self._continued
            changes += other.changes_since(start)
        return changes


class Arena:
    """Parameters of one device and dtype: their values and their gradients, each in one flat aligned buffer.

    A `Parameter` holds views. Passes over all parameters (optimizer, norm, all-reduce) walk `Layout.spans` instead of
    looping over tensors. `retired` is set when the parameters have moved elsewhere: what still points here is stale.
    `shadows` are copies of the values in other dtypes (`fcdense.shadow`).
    """

    def __init__(self, layout: Layout, dtype: np.dtype[Any], allocator: Allocator) -> None:
        self.layout = layout
        self.dtype = dtype
        self.allocator = allocator
        self.version = Version()
        self.retired = False
        self.shadows: dict[np.dtype[Any], Any] = {}
        self.values = self.new_buffer()
        self.gradients = self.new_buffer()

    def new_buffer(self) -> Array:
        """A zeroed buffer of this arena's layout, for values, gradients or an optimizer's slots."""
        return self.allocator.zeros((self.layout.size,), self.dtype)

    def view(self, buffer: Array, index: int) -> Array:
        """The part of `buffer` that belongs to slot `index`, in its shape."""
        slot = self.layout.slots[index]
        return buffer[slot.offset : slot.stop].reshape(slot.shape)

    @staticmethod
    def cut(buffer: Array, span: Span) -> Array:
        """The flat part of `buffer` inside `span`."""
        return buffer[span.start : span.stop]


class Shelf:
    """The arrays of one shape and dtype in a workspace.

    A search looks at the first arrays, which are the most likely to be in the cache, and then at a few more where the
    search before it ended: its cost does not grow with the number of arrays, and every idle one is found in time.
    """

    look = 8

    def __init__(self) -> None:
        self.arrays: list[Array] = []
        self._cursor = 0

    def idle(self) -> Array | None:
        """An array that nobody uses, if one is found soon."""
        count = len(self.arrays)
        for place in range(min(count, self.look)):
            array = self.arrays[place]
            if _references(array) in _IDLE:
                return array
        for _ in range(min(count - self.look, self.look)):
            self._cursor = (self._cursor + 1) % count
            array = self.arrays[self._cursor]
            if _references(array) in _IDLE:
                return array
        return None


class Workspace:
    """Lends arrays and takes them back by itself: an array is free again once nobody but the pool refers to it.

    NumPy lets every view refer to the memory's owner, so an array stays lent while it or any view of it lives. A
    training step of fixed shapes therefore runs in the buffers of the step before it, and nothing is returned by hand.
    Arrays below `smallest` bytes are not kept: asking the system for them is as fast as finding them.
    """

    smallest = 16 * 1024

    def __init__(self, allocator: Allocator, capacity: int = 1 << 30) -> None:
        self._allocator = allocator
        self._capacity = capacity
        self._held = 0
        self._pool: OrderedDict[tuple[tuple[int, ...], np.dtype[Any]], Shelf] = OrderedDict()

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array of undefined contents."""
        key = (shape, dtype)
        shelf = self._pool.get(key)
        if shelf is not None:
            idle = shelf.idle()
            if idle is not None:
                return idle
        array = self._allocator.empty(shape, dtype)
        if array.nbytes >= self.smallest:
            self._held += array.nbytes
            if self._held > self._capacity:
                self.release(self._capacity)
            self._pool.setdefault(key, Shelf()).arrays.append(array)
            self._pool.move_to_end(key)
        return array

    def release(self, keep: int = 0) -> None:
        """Let go of idle arrays, the longest known shapes first, until the pool holds at most `keep` bytes."""
        for key, shelf in list(self._pool.items()):
            arrays = shelf.arrays
            for index in range(len(arrays) - 1, -1, -1):
                array = arrays[index]
                if self._held > keep and _references(array) in _IDLE:
                    del arrays[index]
                    self._held -= array.nbytes
            if not arrays:
                del self._pool[key]


def _references(array: Array) -> tuple[int, int]:
    """References to an array, and to the memory that it was cut from (0 where it owns its memory)."""
    return sys.getrefcount(array), 0 if array.base is None else sys.getrefcount(array.base)


def _idle_references() -> frozenset[tuple[int, int]]:
    """What `_references` counts while only a list and one local variable hold the array."""
    arrays = [np.empty(8), np.ndarray((1,), buffer=np.empty(8))]
    counts = set()
    for array in arrays:
        counts.add(_references(array))
    return frozenset(counts)


_IDLE = _idle_references()
