"""Time per call: interleaved rounds over several candidates, medians and quartiles."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Timed(Protocol):
    """What can be timed."""

    def time(self, calls: int) -> int:
        """Nanoseconds that this many calls take, from the start of the first to the end of all work they began."""


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
        In every round each candidate has its turn, so that a clock that drifts hits all alike.
    """

    min_time: float = 0.2
    warmup: float = 0.15
    rounds: int = 11

    @property
    def sample_ns(self) -> int:
        return math.ceil(1e9 * self.min_time / self.rounds)


@dataclass(frozen=True)
class Timing:
    """Seconds per call, a sample for each round; every sample is the mean over `calls` calls."""

    calls: int
    samples: tuple[float, ...]

    @property
    def quartiles(self) -> tuple[float, float, float]:
        first, median, third = np.percentile(self.samples, [25, 50, 75])
        return float(first), float(median), float(third)


def measure(candidates: Sequence[Timed], plan: Plan) -> list[Timing]:
    """A timing for each candidate, all of which are prepared."""
    calls = []
    for candidate in candidates:
        warm_up(candidate, plan.warmup)
        calls.append(calls_for(candidate, plan.sample_ns))
    samples: list[list[float]] = [[] for _ in candidates]
    for _ in range(plan.rounds):
        for candidate, count, taken in zip(candidates, calls, samples, strict=True):
            if len(candidates) > 1:
                warm_up(candidate, plan.warmup)
            taken.append(1e-9 * candidate.time(count) / count)
    return [Timing(count, tuple(taken)) for count, taken in zip(calls, samples, strict=True)]


def warm_up(candidate: Timed, seconds: float) -> None:
    """Call until `seconds` have passed."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        candidate.time(1)


def calls_for(candidate: Timed, sample_ns: int) -> int:
    """How many calls last `sample_ns` or a little longer."""
    calls = 1
    while (elapsed := candidate.time(calls)) < sample_ns:
        calls = min(10 * calls, math.ceil(1.1 * calls * sample_ns / max(elapsed, 1)))
    return calls
