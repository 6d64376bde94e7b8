"""The instructions around a replay that runs many times in a row."""

from __future__ import annotations

import numpy as np

from fcdense.arena import Array
from fcdense.backends.instructions import FLOATS, MANY_ELEMENTS, Instruction, chunks, compiled_kernel
from fcdense.backends.replay import Feed, Keep
from fcdense.kernels.numba import rows
from fcdense.kernels.numba.pool import address
from fcdense.kernels.numba.spread import ROW_UNIT

CHUNK = 4096
"""Elements of one chunk of a result."""


def take_rows(feed: Feed, number: Array) -> list[Instruction] | None:
    """The rows of round `number`; None where the arrays do not suit the kernel."""
    source, order, target = feed
    width = int(np.prod(target.shape[1:], dtype=int))
    if not _copied(source, target) or source.shape[1:] != target.shape[1:] or not order.flags.c_contiguous:
        return None
    words = (address(source), width, address(order), address(number), len(target), address(target))
    return [_copy("take_rows", np.array(words), len(target), ROW_UNIT, target.size, (source, order, number), target)]


def keep(result: Keep, number: Array) -> list[Instruction] | None:
    """A result of round `number` beside those of the others; None where the arrays do not suit the kernel."""
    source, target = result
    if not _copied(source, target) or target.shape[1:] != source.shape:
        return None
    words = (address(source), source.size, address(number), address(target))
    return [_copy("keep", np.array(words), source.size, CHUNK, source.size, (source, number), target)]


def next_round(number: Array) -> list[Instruction]:
    """number += 1."""
    words = np.array((address(number),), np.int64)
    return [Instruction(compiled_kernel(rows, "next_round", FLOATS[0]), words, (number,), (number,))]


def _copied(a: Array, b: Array) -> bool:
    """Whether the kernels copy from one to the other: contiguous numbers of 4 or 8 bytes, of one kind."""
    return (
        a.dtype == b.dtype
        and a.itemsize in (4, 8)
        and bool(a.size and b.size)
        and all(x.flags.c_contiguous and x.flags.aligned for x in (a, b))
    )


def _copy(
    name: str, words: Array, count: int, chunk: int, size: int, reads: tuple[Array, ...], target: Array
) -> Instruction:
    real = next(dtype for dtype in FLOATS if dtype.itemsize == target.itemsize)  # whose bits are those of any number
    kernel = compiled_kernel(rows, name, real)
    return chunks(kernel, words, count, chunk, cost=size / MANY_ELEMENTS, reads=reads, writes=(target,))
