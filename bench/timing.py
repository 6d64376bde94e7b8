"""Time per call: interleaved rounds over several candidates, medians and quartiles."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from fcdense.errors import FcdenseError

from .cases import Lap

ATTEMPTS = 3


class Timed(Protocol):
    """What can be timed."""

    def time(self, calls: int) -> Lap:
        """Time this many calls, from the start of the first to the end of all work they began."""


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Attributes
    ----------
    min_time : float
        Seconds of measured calls for each candidate, all rounds together. A call that is longer than its share of
        this is still made once in every round.
    warmup : float
        Seconds of calls that are not counted, whenever a candidate takes over: caches and clocks come back, and the
        threads of the candidate before it fall asleep. On two cores a product of OpenBLAS took twice its time for 50 to
        100 ms after another process's, whose threads were still spinning.
    rounds : int
        In every round each candidate has its turn, so that a clock that drifts hits all alike. Every other round goes
        backwards, so that none always follows the same one.
    max_others : float
        A sample during which other processes used more cores than this is taken again, up to three times in all, and
        then left out.
    """

    min_time: float = 0.2
    warmup: float = 0.15
    rounds: int = 11
    max_others: float = 0.25

    @property
    def sample_ns(self) -> int:
        return math.ceil(1e9 * self.min_time / self.rounds)


@dataclass(frozen=True)
class Timing:
    """Seconds per call, a sample for each round: the mean over `calls` calls, or None where it was disturbed.

    `failure` says why a candidate did not get to the end, or is empty.
    """

    calls: int
    samples: tuple[float | None, ...]
    failure: str = ""

    @property
    def kept(self) -> list[float]:
        """The samples that were not disturbed."""
        return [sample for sample in self.samples if sample is not None]

    @property
    def quartiles(self) -> tuple[float, float, float]:
        first, median, third = np.percentile(self.kept, [25, 50, 75])
        return float(first), float(median), float(third)


def measure(candidates: Sequence[Timed], plan: Plan) -> list[Timing]:
    """A timing for each candidate, all of which are prepared. One that fails has no more turns."""
    turns = [Turns(candidate, plan) for candidate in candidates]
    for turn in turns:
        turn.attempt(turn.begin)
    warmup = plan.warmup if len(candidates) > 1 else 0.0  # one candidate alone stays warm
    in_order = list(turns)
    for _ in range(plan.rounds):
        for turn in in_order:
            turn.attempt(partial(turn.take, warmup))
        in_order.reverse()
    return [Timing(turn.calls, tuple(turn.samples), turn.failure) for turn in turns]


class Turns:
    """Those of one candidate."""

    def __init__(self, candidate: Timed, plan: Plan) -> None:
        self.calls = 0
        self.samples: list[float | None] = []
        self.failure = ""
        self._candidate, self._plan = candidate, plan

    def attempt(self, work: Callable[[], None]) -> None:
        """Do it, unless something has failed before."""
        if not self.failure:
            try:
                work()
            except FcdenseError as error:
                self.failure = str(error)

    def begin(self) -> None:
        """Find out how many calls a sample takes."""
        warm_up(self._candidate, self._plan.warmup)
        self.calls = calls_for(self._candidate, self._plan.sample_ns)

    def take(self, warmup: float) -> None:
        """One more sample."""
        self.samples.append(sample(self._candidate, self.calls, warmup, self._plan.max_others))


def sample(candidate: Timed, calls: int, warmup: float, max_others: float) -> float | None:
    """Seconds per call, or None if other processes disturbed every attempt."""
    for _ in range(ATTEMPTS):
        warm_up(candidate, warmup)
        lap = candidate.time(calls)
        if lap.others <= max_others:
            return 1e-9 * lap.ns / calls
    return None


def warm_up(candidate: Timed, seconds: float) -> None:
    """Call until `seconds` have passed."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        candidate.time(1)


def calls_for(candidate: Timed, sample_ns: int) -> int:
    """How many calls last `sample_ns` or a little longer."""
    calls = 1
    while (elapsed := candidate.time(calls).ns) < sample_ns:
        calls = min(10 * calls, math.ceil(1.1 * calls * sample_ns / max(elapsed, 1)))
    return calls
