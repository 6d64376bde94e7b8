"""Shapes and strides of the operands of a launch, in as few axes as they can be told in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Numbers = tuple[int, ...]


def strides_in(array: Any, shape: Numbers) -> Numbers:
    """The strides of `array`, in elements, when it is broadcast to `shape`."""
    size = int(array.dtype.itemsize)
    own = [0 if n == 1 else int(s) // size for n, s in zip(array.shape, array.strides, strict=True)]
    return (0,) * (len(shape) - len(own)) + tuple(own)


def collapsed(shape: Numbers, strides: Sequence[Numbers]) -> tuple[Numbers, list[Numbers]]:
    """The same walk over all arrays in fewer axes: those of length 1 fall away, those that follow each other join.

    At least one axis is left.
    """
    axes = [(n, [s[d] for s in strides]) for d, n in enumerate(shape) if n != 1]
    joined: list[tuple[int, list[int]]] = []
    for n, steps in axes:
        if joined and all(outer == n * inner for outer, inner in zip(joined[-1][1], steps, strict=True)):
            joined[-1] = (joined[-1][0] * n, steps)
        else:
            joined.append((n, steps))
    if not joined:
        joined = [(1, [0] * len(strides))]
    return tuple(n for n, _ in joined), [tuple(steps[k] for _, steps in joined) for k in range(len(strides))]


def padded(shape: Numbers, strides: Sequence[Numbers], dims: int) -> tuple[Numbers, list[Numbers]]:
    """With axes of length 1 in front, so that there are `dims`."""
    lead = dims - len(shape)
    return (1,) * lead + tuple(shape), [(0,) * lead + tuple(s) for s in strides]


def blocks(count: int, size: int) -> int:
    """How many blocks of `size` hold `count`."""
    return -(-count // size)
