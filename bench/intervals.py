"""Intervals: how much faster one candidate is than another, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from .results import Row

LEVEL = 0.95


@dataclass(frozen=True)
class Ratio:
    """A median over rounds, and an interval around it."""

    median: float
    low: float
    high: float


def ratio(ours: Row, theirs: Row) -> Ratio | None:
    """Their time over ours, round by round: above 1, ours is faster. None: no round was quiet for both.

    Neighbouring turns of one round saw the same machine, so a clock that drifts, or a neighbour that comes and goes,
    cancels in each round's ratio, and only what is left spreads.
    """
    rounds = zip(ours.samples, theirs.samples, strict=False)
    ratios = [their / our for our, their in rounds if our is not None and their is not None]
    return median_interval(ratios) if ratios else None


def median_interval(values: Sequence[float]) -> Ratio:
    """The median, and the narrowest pair of order statistics that holds the true one with 95 % probability.

    Each value lies below the true median with probability 1/2, whatever the distribution, so the k-th smallest and k-th
    largest of n miss it with probability 2 Σ_{i<k} C(n, i) / 2^n. Fewer than six values cannot give 95 %; then it is
    the smallest and largest.

    Source: H. A. David and H. N. Nagaraja, Order Statistics, 3rd ed., 2003, section 7.1.
    """
    ordered = sorted(values)
    n, k = len(ordered), 0
    missed = 2.0 / 2**n
    while k + 1 < (n + 1) // 2:
        missed += 2.0 * comb(n, k + 1) / 2**n
        if missed > 1.0 - LEVEL:
            break
        k += 1
    return Ratio(float(np.median(ordered)), ordered[k], ordered[n - 1 - k])
