"""Random numbers: one seed for everything that is drawn (initial weights, dropout)."""

from __future__ import annotations

import operator
import threading

import numpy as np

from fcdense.errors import ArgumentError


class RandomState:
    """A generator for initial values, and the counter from which each dropout call takes its own stream."""

    def __init__(self, seed: int | None = None) -> None:
        sequence = np.random.SeedSequence(seed)
        self.generator = np.random.default_rng(sequence)
        self.key = int(sequence.generate_state(1, np.uint64)[0])
        self.counter = 0
        self._counting = threading.Lock()

    def next_stream(self) -> tuple[int, int]:
        """(key, counter) of the next dropout call."""
        with self._counting:
            self.counter += 1
            return self.key, self.counter


_state = RandomState()


def manual_seed(seed: int) -> None:
    """Start every random stream anew from `seed` (a non-negative integer): the same seed draws the same numbers.

    Unless it is called, each process draws different ones.
    """
    global _state
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if number < 0:
        raise ArgumentError(f"seed is {seed!r}; expected a non-negative integer.")
    _state = RandomState(number)


def random_state() -> RandomState:
    """The state that layers draw from."""
    return _state
