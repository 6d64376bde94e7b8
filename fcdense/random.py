"""Random numbers: one seed for everything that is drawn (initial weights, dropout)."""

from __future__ import annotations

import copy
import operator
import os
from contextvars import ContextVar
from typing import Any

import numpy as np

from fcdense.errors import ArgumentError
from fcdense.scope import Scope


class RandomState:
    """A generator for initial values, and the state from which each dropout call takes its own stream.

    Attributes
    ----------
    generator : numpy.random.Generator
        What initializers draw from.
    words : ndarray of uint64, shape (2,)
        The key, and the number of the next stream, from 1 on: what `Backend.next_stream` reads and advances. It is the
        same array for the whole life of the state, so that a recorded step goes on with the streams of a new seed.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.words: np.ndarray[Any, np.dtype[np.uint64]] = np.empty(2, np.uint64)
        self._elsewhere: dict[Any, Any] = {}
        self.seed(seed)

    def seed(self, seed: int | None) -> None:
        """Begin anew; None takes a seed from the system."""
        sequence = np.random.SeedSequence(seed)
        self.generator = np.random.default_rng(sequence)
        self.words[...] = int(sequence.generate_state(1, np.uint64)[0]), 1
        for on, words in self._elsewhere.items():
            on.backend.write(self.words, out=words)

    def forget_devices(self) -> None:
        """Leave the words of devices alone: in a forked process GPUs refuse to work."""
        self._elsewhere.clear()

    def words_on(self, on: Any) -> Any:
        """The words in the memory of a device; on a GPU they are its own, and go on from those of the host."""
        if on.backend.is_host:
            return self.words
        if on not in self._elsewhere:
            self._elsewhere[on] = on.backend.from_host(self.words)
        return self._elsewhere[on]

    def twin(self, *, has_words: bool) -> RandomState:
        """One that goes on alike from here; the words are this one's unless it is to have its own."""
        made = copy.copy(self)
        made.generator = copy.deepcopy(self.generator)
        if has_words:
            made.words, made._elsewhere = self.words.copy(), {}
        return made


_state = RandomState()
_aside: ContextVar[RandomState | None] = ContextVar("fcdense_random_state", default=None)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_state.forget_devices)


def manual_seed(seed: int) -> None:
    """Start every random stream anew from `seed` (a non-negative integer): the same seed draws the same numbers.

    Unless it is called, each process draws different ones.
    """
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if number < 0:
        raise ArgumentError(f"seed is {seed!r}; expected a non-negative integer.")
    _state.seed(number)


def random_state() -> RandomState:
    """The state that layers draw from."""
    return _aside.get() or _state


def drawing_aside(*, has_words: bool = True) -> Scope[RandomState]:
    """What this thread draws inside of the `with` block is as if it had not been: it and others draw the same later.

    Unless this block has words of its own, recorded steps advance those of all.
    """
    return Scope(_aside, random_state().twin(has_words=has_words))
