"""Shapes and strides of the operands of a launch, in as few axes as they can be told in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

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


VECTOR = 4
"""Numbers that a thread takes at once where all operands allow it."""


class Vector(NamedTuple):
    """How many numbers of the last axis a thread takes at once, and the inputs that are repeated along it."""

    width: int
    repeated: frozenset[int] = frozenset()


Located = tuple[int, int, Numbers]


def vector_of(length: int, inputs: Sequence[Located], outs: Sequence[Located]) -> Vector:
    """For a last axis of `length`, and operands by address, bytes of a number, and strides.

    Several at once need whole groups, and operands whose last axis is contiguous and whose groups all lie at multiples
    of what is read at once; inputs may be repeated along it instead.
    """
    repeated = frozenset(k for k, (_, _, strides) in enumerate(inputs) if strides[-1] == 0)
    contiguous = [operand for k, operand in enumerate(inputs) if k not in repeated] + list(outs)
    if length % VECTOR or not all(_in_groups(*operand) for operand in contiguous):
        return Vector(1)
    return Vector(VECTOR, repeated)


def _in_groups(address: int, itemsize: int, strides: Numbers) -> bool:
    size = min(VECTOR * itemsize, 16)
    return strides[-1] == 1 and not address % size and not any(step * itemsize % size for step in strides[:-1])
