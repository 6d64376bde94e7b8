"""Recorded primitive calls, and what runs them again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fcdense.arena import Array
from fcdense.backends.spans import overlap
from fcdense.precision import current_precision


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call of one primitive.

    Attributes
    ----------
    primitive : str
    arguments : mapping
        Every argument by name, defaults included. Arrays are fixed: each run of the call uses the same memory.
    reads : tuple of Array
        The arrays whose values the call uses: its inputs, and outputs that it adds to or may leave as they are.
    writes : tuple of Array
        The arrays that it writes.
    precision : str
        That of products where it was made (`fcdense.use_precision`).
    """

    primitive: str
    arguments: Mapping[str, Any]
    reads: tuple[Array, ...]
    writes: tuple[Array, ...]
    precision: str = field(default_factory=current_precision)


def commute(a: Call, b: Call) -> bool:
    """Whether two calls may change places."""
    pairs = [(x, y) for x in a.writes for y in (*b.reads, *b.writes)] + [(x, y) for x in a.reads for y in b.writes]
    return not any(overlap(x, y) for x, y in pairs)


class Feed(NamedTuple):
    """What a round reads: ``target = source[order[round * len(target) :][: len(target)]]``, before the calls.

    Attributes
    ----------
    source : Array (N, ...)
    order : Array (M,)
        int64, each at least 0 and below N.
    target : Array (B, ...)
    """

    source: Array
    order: Array
    target: Array


class Keep(NamedTuple):
    """What a round leaves: ``target[round] = source``, after the calls; `target` has one axis more."""

    source: Array
    target: Array


class Replay(ABC):
    """A list of calls, ready to run as often as wanted over the arrays that they name.

    Attributes
    ----------
    consumed : sequence of Array
        Gradients that the calls write and a run does not, as it takes them into the update at once.
    """

    consumed: Sequence[Array] = ()
    _made = 0

    @property
    def runs(self) -> int:
        """How often all calls were made; where they are compiled, Ctrl-C is heard afterwards."""
        return self._made

    @abstractmethod
    def run(self) -> None:
        """All calls, in order."""

    def loading(self, targets: Sequence[Array]) -> Callable[[Sequence[Array | None]], None] | None:
        """What makes the calls with other host arrays for `targets` (None: as they are); None where that cannot be.

        It may read them where they lie, or copy them into the targets.
        """
        return None

    def rounds(
        self, feeds: Sequence[Feed], keeps: Sequence[Keep], go_on: Array | None = None
    ) -> Callable[[int], int] | None:
        """What runs the calls n times, as rounds 0 .. n - 1, and says how many it made; None where that cannot be.

        With `go_on`, a float64 of shape (), a round after which it holds 0 is the last one.
        """
        if not all(isinstance(array, np.ndarray) for part in (*feeds, *keeps) for array in part):
            return None

        def run(count: int) -> int:
            for number in range(count):
                for source, order, target in feeds:
                    target[...] = source[order[number * len(target) :][: len(target)]]
                self.run()
                for source, target in keeps:
                    target[number] = source
                if go_on is not None and not go_on:
                    return number + 1
            return count

        return run

    @abstractmethod
    def describe(self) -> list[str]:
        """For each call, which implementation runs it, and why that one."""


class CallList(Replay):
    """Each primitive of `backend` called from Python, with its arguments bound beforehand."""

    def __init__(self, backend: Any, calls: Sequence[Call]) -> None:
        self._calls = [partial(getattr(backend, call.primitive), **call.arguments) for call in calls]
        self._served = [backend.implementation] * len(calls)

    def run(self) -> None:
        for call in self._calls:
            call()
        self._made += 1

    def describe(self) -> list[str]:
        return self._served
