"""Where a replay finds its arguments: in the caller's arrays, if nothing stands against it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fcdense.arena import Array
from fcdense.backends.instructions import Instruction
from fcdense.backends.spans import overlap
from fcdense.kernels.numba.pool import address


class Argument:
    """An array that instructions read: they can be told to read another one in its place.

    Parameters
    ----------
    target : Array
    instructions : sequence of Instruction
        All that run.
    kept : sequence of Array
        What somebody reads afterwards.
    """

    def __init__(self, target: Array, instructions: Sequence[Instruction], kept: Sequence[Array]) -> None:
        self._target, self._dtype = target, target.dtype
        self._own = self._now = address(target)
        tables = [table for one in instructions for table in (one.arguments, *one.tables)]
        self._places = [(table, int(i)) for table in tables for i in np.flatnonzero(table == self._own)]
        self._is_fixed = (
            not target.flags.c_contiguous
            or any(overlap(target, array) for array in kept)
            or any(self._holds(one) for one in instructions)
        )

    def _holds(self, one: Instruction) -> bool:
        """Whether an instruction writes the array, or reads some part of it whose address is another one."""
        words = np.concatenate([one.arguments, *one.tables])
        parts = [array for array in one.reads if overlap(self._target, array)]
        return any(overlap(self._target, array) for array in one.writes) or any(
            address(part) != self._own or self._own not in words for part in parts
        )

    def read(self, array: Array | None) -> None:
        """Have `array`, of the same shape, read from now on, by a copy if need be; None for the target itself."""
        where = self._own
        if array is not None:
            if not self._is_fixed and array.dtype is self._dtype and _is_foreign(array):
                where = address(array)
            else:
                np.copyto(self._target, array)
        if where != self._now:
            for table, i in self._places:
                table[i] = where
            self._now = where


def _is_foreign(array: Array) -> bool:
    """Whether this memory belongs to the caller: no view of an array of ours, which the instructions may write."""
    if not array.flags.carray:  # contiguous, aligned and writable
        return False
    base = array.base
    return base is None or (isinstance(base, np.ndarray) and base.dtype == array.dtype and base.flags.owndata)
