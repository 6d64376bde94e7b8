"""The clockwork, driven by candidates whose calls take a known time."""

from __future__ import annotations

import itertools
import statistics

import numpy as np
import pytest

from fcdense.bench.timing import Plan, Timing, calls_for, measure, warm_up


class Clockwork:
    """A candidate whose every call takes `ns`, and which notes who was asked for how many calls."""

    def __init__(self, name: str, ns: float, log: list[tuple[str, int]]) -> None:
        self.name, self.ns, self.log = name, ns, log

    def time(self, calls: int) -> int:
        self.log.append((self.name, calls))
        return round(self.ns * calls)


def test_quartiles_are_numpys(rng: np.random.Generator) -> None:
    samples = rng.exponential(size=11)
    timing = Timing(1, tuple(samples))
    assert timing.quartiles == pytest.approx(tuple(np.quantile(samples, [0.25, 0.5, 0.75])), rel=1e-15)
    # with 4k + 3 samples the quartiles are samples themselves
    ordered = sorted(samples)
    assert timing.quartiles[1] == statistics.median(samples)
    assert timing.quartiles[0] == pytest.approx((ordered[2] + ordered[3]) / 2)
    assert timing.quartiles[2] == pytest.approx((ordered[7] + ordered[8]) / 2)


@pytest.mark.parametrize("ns", [0.4, 3.0, 250.0, 9.9e5, 1e6, 5e8])
def test_calls_fill_a_sample_and_not_much_more(ns: float) -> None:
    sample_ns = 1_000_000
    calls = calls_for(Clockwork("a", ns, []), sample_ns)
    assert ns * calls >= 0.999 * sample_ns
    assert ns * (calls - 1) <= 1.2 * sample_ns


def test_rounds_are_interleaved() -> None:
    log: list[tuple[str, int]] = []
    plan = Plan(min_time=3e-3, warmup=0.0, rounds=3)
    fast, slow = measure([Clockwork("fast", 1e4, log), Clockwork("slow", 1e7, log)], plan)
    assert log[-6:] == [("fast", fast.calls), ("slow", slow.calls)] * 3
    assert slow.calls == 1
    assert fast.calls * 1e4 >= plan.sample_ns == 1_000_000
    assert fast.samples == pytest.approx([1e-5] * 3)
    assert slow.samples == pytest.approx([1e-2] * 3)


def test_a_turn_begins_with_calls_that_are_not_counted() -> None:
    log: list[tuple[str, int]] = []
    timings = measure([Clockwork("a", 1e6, log), Clockwork("b", 1e6, log)], Plan(min_time=2e-2, warmup=1e-4, rounds=2))
    assert [timing.calls for timing in timings] == [10, 10]
    turns = [list(turn) for _, turn in itertools.groupby(log, key=lambda entry: entry[0])]
    assert len(turns) == 6, "each one warms up and is tried, and then they alternate twice"
    for turn in turns[2:]:
        assert [calls for _, calls in turn] == [1] * (len(turn) - 1) + [10]
        assert len(turn) > 1


def test_one_candidate_alone_stays_warm() -> None:
    log: list[tuple[str, int]] = []
    measure([Clockwork("a", 1e6, log)], Plan(min_time=2e-2, warmup=1e-4, rounds=2))
    assert log[-2:] == [("a", 10)] * 2
    assert log[0] == ("a", 1)


def test_warm_up_ends() -> None:
    log: list[tuple[str, int]] = []
    warm_up(Clockwork("a", 1.0, log), 0.0)
    assert log == []
    warm_up(Clockwork("a", 1.0, log), 0.001)
    assert log
