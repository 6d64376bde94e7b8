"""Recorded primitive calls, and what runs them again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fcdense.arena import Array


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
    """

    primitive: str
    arguments: Mapping[str, Any]
    reads: tuple[Array, ...]
    writes: tuple[Array, ...]


class Replay(ABC):
    """A list of calls, ready to run as often as wanted over the arrays that they name.

    Attributes
    ----------
    consumed : sequence of Array
        Gradients that the calls write and a run does not, as it takes them into the update at once.
    """

    consumed: Sequence[Array] = ()

    @abstractmethod
    def run(self) -> None:
        """All calls, in order."""

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

    def describe(self) -> list[str]:
        return self._served
