"""Where arrays lie in memory, and whether they share any."""

from __future__ import annotations

from fcdense.arena import Array


def span(array: Array) -> tuple[int, int]:
    """First byte, and the byte after the last one."""
    start = int(array.__array_interface__["data"][0])
    if not array.size:
        return start, start
    reach = [(n - 1) * step for n, step in zip(array.shape, array.strides, strict=True)]
    return start + sum(min(r, 0) for r in reach), start + sum(max(r, 0) for r in reach) + array.itemsize


def overlap(a: Array, b: Array) -> bool:
    """Whether the bytes from the lowest to the highest element have one in common."""
    (a0, a1), (b0, b1) = span(a), span(b)
    return a0 < b1 and b0 < a1
