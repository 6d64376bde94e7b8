"""Layouts: where named arrays lie in one flat buffer. No arrays here, only names, shapes and aligned offsets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

ALIGNMENT = 64
"""Bytes: one cache line, one AVX-512 register, four times what a 16-byte vector load or TMA row needs."""


@dataclass(frozen=True)
class Slot:
    """One array's place in a flat buffer; `offset` and `size` count elements."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def stop(self) -> int:
        return self.offset + self.size


@dataclass(frozen=True)
class Span:
    """A contiguous run of elements `start:stop` of a flat buffer."""

    start: int
    stop: int


@dataclass(frozen=True)
class Layout:
    """Slots in the order in which they lie in one buffer of `size` elements.

    Every slot starts on a multiple of `ALIGNMENT` bytes. The gaps belong to the buffer: they are zero and stay zero,
    so that a pass over a span of several slots may run straight through them.
    """

    slots: tuple[Slot, ...]
    size: int

    @classmethod
    def pack(cls, entries: Iterable[tuple[str, tuple[int, ...]]], itemsize: int) -> Layout:
        """Lay out `(name, shape)` entries one after another for elements of `itemsize` bytes."""
        step = ALIGNMENT // itemsize
        slots: list[Slot] = []
        offset = 0
        for name, shape in entries:
            slot = Slot(name, tuple(shape), offset)
            slots.append(slot)
            offset = -(-slot.stop // step) * step
        return cls(tuple(slots), offset)

    def end(self, index: int) -> int:
        """Where slot `index` ends, its gap included."""
        return self.slots[index + 1].offset if index + 1 < len(self.slots) else self.size

    def spans(self, indices: Sequence[int]) -> list[Span]:
        """The fewest contiguous spans that hold exactly the slots `indices` (ascending)."""
        spans: list[Span] = []
        for index in indices:
            start, stop = self.slots[index].offset, self.end(index)
            if spans and spans[-1].stop == start:
                spans[-1] = Span(spans[-1].start, stop)
            else:
                spans.append(Span(start, stop))
        return spans
