"""The temporary arrays of a replay: made once, and shared by the primitives of which one runs after another."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fcdense.arena import Array
from fcdense.backends.base import Backend

BYTES = np.dtype(np.uint8)


class Temporaries:
    """Arrays for primitives that run one after another: those of each lie where those of the one before lay."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._blocks: list[Array] = []
        self._kept: list[Array] = []
        self._lent = 0

    def take_back(self) -> None:
        """The primitive is done with its arrays."""
        self._lent = 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """One more array of undefined contents for this primitive."""
        nbytes = math.prod(shape) * dtype.itemsize
        number, self._lent = self._lent, self._lent + 1
        if number == len(self._blocks):
            self._blocks.append(self._backend.empty((nbytes,), BYTES))
        elif self._blocks[number].size < nbytes:
            self._kept.append(self._blocks[number])  # earlier primitives work in it
            self._blocks[number] = self._backend.empty((nbytes,), BYTES)
        strides = tuple(dtype.itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        return self._backend.view(self._blocks[number], 0, shape, strides, dtype)
