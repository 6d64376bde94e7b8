"""Where arrays lie in memory, and whether they share any."""

from __future__ import annotations

from typing import Any

import numpy as np

from fcdense.arena import Array


def interface(array: Array) -> dict[str, Any]:
    """Where an array lies and in which form, as NumPy and CuPy tell it."""
    on_gpu: dict[str, Any] | None = getattr(array, "__cuda_array_interface__", None)
    return array.__array_interface__ if on_gpu is None else on_gpu


class _AtTheSamePlace:
    """Looks like host memory at an array's addresses, for questions that read none of it."""

    def __init__(self, array: Array) -> None:
        self.__array_interface__ = interface(array)


def share_memory(a: Array, b: Array) -> bool:
    """Whether an element of one lies where an element of the other does, in any device's memory."""
    x, y = (array if isinstance(array, np.ndarray) else np.asarray(_AtTheSamePlace(array)) for array in (a, b))
    return np.shares_memory(x, y)


def same_memory(a: Array, b: Array) -> bool:
    """Whether two arrays are the same elements in the same places."""
    return a is b or all(interface(a)[key] == interface(b)[key] for key in ("data", "shape", "strides", "typestr"))


def span(array: Array) -> tuple[int, int]:
    """First byte, and the byte after the last one."""
    start = int(interface(array)["data"][0])
    if not array.size:
        return start, start
    reach = [(n - 1) * step for n, step in zip(array.shape, array.strides, strict=True)]
    return start + sum(min(r, 0) for r in reach), start + sum(max(r, 0) for r in reach) + array.itemsize


def overlap(a: Array, b: Array) -> bool:
    """Whether the bytes from the lowest to the highest element have one in common."""
    (a0, a1), (b0, b1) = span(a), span(b)
    return a0 < b1 and b0 < a1
