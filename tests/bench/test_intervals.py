"""Ratios of two candidates, and how sure they are."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from fcdense.bench.intervals import Ratio, median_interval, ratio
from tests.bench.made_up import row


@pytest.mark.parametrize(
    ("n", "low", "high"),
    # From tables of the binomial distribution: 6 to 8 values need both ends, 9 the second from each end, ...
    [(1, 1, 1), (2, 1, 2), (5, 1, 5), (6, 1, 6), (8, 1, 8), (9, 2, 8), (11, 2, 10), (12, 3, 10), (20, 6, 15)],
)
def test_order_statistics(n: int, low: int, high: int) -> None:
    found = median_interval(np.random.default_rng(n).permutation(n) + 1.0)
    assert (found.low, found.high) == (low, high)
    assert found.median == (n + 1) / 2


@pytest.mark.parametrize("n", range(6, 60))
def test_it_is_the_narrowest_that_holds_95_percent(n: int) -> None:
    rank = round(median_interval([float(i) for i in range(n)]).low)  # so many values lie outside at each end

    def missed(outside: int) -> float:
        return 2 * sum(comb(n, i) for i in range(outside + 1)) / 2**n

    assert missed(rank) <= 0.05
    assert missed(rank + 1) > 0.05 or 2 * (rank + 1) >= n - 1


def test_a_ratio_is_taken_round_by_round() -> None:
    """The machine became three times slower in half of the rounds, which the ratio does not notice."""
    drift = [1.0, 3.0, 1.0, 3.0, 1.0, 3.0, 1.0, 3.0, 1.0]
    ours, theirs = row("cpu", samples=drift), row("torch", samples=[2.0 * slow for slow in drift])
    assert ratio(ours, theirs) == Ratio(2.0, 2.0, 2.0)


def test_disturbed_rounds_are_left_out() -> None:
    ours, theirs = row("cpu", samples=[1.0, None, 1.0]), row("torch", samples=[3.0, 100.0, None])
    assert ratio(ours, theirs) == Ratio(3.0, 3.0, 3.0)
    assert ratio(row("cpu", samples=[None]), row("torch", samples=[1.0])) is None
