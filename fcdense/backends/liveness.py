"""Memory for temporary arrays that are needed one after another: which of them may lie in the same place."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from typing import NamedTuple

from fcdense.layout import ALIGNMENT


class Span(NamedTuple):
    """A temporary array: its bytes, and the numbers of the first and the last call that use it."""

    nbytes: int
    first: int
    last: int


def place(spans: Sequence[Span], few: int) -> tuple[list[int], int]:
    """An aligned offset for each array, and the bytes of all; arrays that are needed in one call never overlap.

    The largest first, each at the lowest place that is free as long as it is needed. Where all of them are `few` bytes
    at most, none shares its place: what need not wait for another's memory can run beside it.

    Source: Y. Pisarchyk, J. Lee (2020), Efficient memory management for deep neural net inference, section 5.2.
    """
    if sum(-(-span.nbytes // ALIGNMENT) * ALIGNMENT for span in spans) <= few:
        spans = [span._replace(first=0, last=0) for span in spans]
    offsets = [0] * len(spans)
    placed: list[tuple[int, int, Span]] = []
    for number in sorted(range(len(spans)), key=lambda i: -spans[i].nbytes):
        span = spans[number]
        size = -(-span.nbytes // ALIGNMENT) * ALIGNMENT
        offset = 0
        for start, stop, other in placed:  # in the order of their places
            if other.first <= span.last and span.first <= other.last:
                if offset + size <= start:
                    break
                offset = max(offset, stop)
        offsets[number] = offset
        insort(placed, (offset, offset + size, span))
    return offsets, max((stop for _, stop, _ in placed), default=0)
