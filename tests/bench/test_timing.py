"""The clockwork, driven by candidates whose calls take a known time."""

from __future__ import annotations

import itertools
import statistics

import numpy as np
import pytest

from fcdense.bench.cases import Lap
from fcdense.bench.timing import ATTEMPTS, Plan, Timing, calls_for, measure, sample, warm_up
from fcdense.errors import DeviceError


class Clockwork:
    """A candidate whose every call takes `ns`, and which notes who was asked for how many calls.

    `others` says how many cores other processes use in its next turns; none in those after.
    """

    def __init__(self, name: str, ns: float, log: list[tuple[str, int]]) -> None:
        self.name, self.ns, self.log = name, ns, log
        self.others: list[float] = []

    def time(self, calls: int) -> Lap:
        self.log.append((self.name, calls))
        return Lap(round(self.ns * calls), self.others.pop(0) if self.others else 0.0)


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
    forth = [("fast", fast.calls), ("slow", slow.calls)]
    assert log[-6:] == [*forth, *forth[::-1], *forth], "there, back, and there again"
    assert slow.calls == 1
    assert fast.calls * 1e4 >= plan.sample_ns == 1_000_000
    assert fast.samples == pytest.approx([1e-5] * 3)
    assert slow.samples == pytest.approx([1e-2] * 3)


def test_a_turn_begins_with_calls_that_are_not_counted() -> None:
    log: list[tuple[str, int]] = []
    timings = measure([Clockwork("a", 1e6, log), Clockwork("b", 1e6, log)], Plan(min_time=3e-2, warmup=1e-4, rounds=3))
    assert [timing.calls for timing in timings] == [10, 10]
    turns = [(name, list(turn)) for name, turn in itertools.groupby(log, key=lambda entry: entry[0])]
    # each one warms up and is tried; then a round forth, one back and one forth: "b" and "a" have two turns on end
    assert [name for name, _ in turns] == ["a", "b", "a", "b", "a", "b"]
    for (_, turn), samples in zip(turns[2:], [1, 2, 2, 1], strict=True):
        assert [calls for _, calls in turn].count(10) == samples
        assert turn[0][1] == 1
        assert turn[-1][1] == 10


def test_a_disturbed_sample_is_taken_again() -> None:
    log: list[tuple[str, int]] = []
    candidate = Clockwork("a", 1e6, log)
    candidate.others = [0.26, 1.5, 0.25]
    assert sample(candidate, 7, 0.0, 0.25) == pytest.approx(1e-3)
    assert log == [("a", 7)] * 3


def test_a_round_that_stays_disturbed_has_no_sample() -> None:
    candidate = Clockwork("a", 1e7, [])
    plan = Plan(min_time=3e-2, warmup=0.0, rounds=3)
    candidate.others = [0.0, *[1.0] * ATTEMPTS]  # one call finds out how long it takes, then there are three rounds
    (timing,) = measure([candidate], plan)
    assert timing.samples == (None, pytest.approx(1e-2), pytest.approx(1e-2))
    assert timing.kept == [pytest.approx(1e-2)] * 2
    assert timing.quartiles == pytest.approx((1e-2, 1e-2, 1e-2))


def test_one_candidate_alone_stays_warm() -> None:
    log: list[tuple[str, int]] = []
    measure([Clockwork("a", 1e6, log)], Plan(min_time=2e-2, warmup=1e-4, rounds=2))
    assert log[-2:] == [("a", 10)] * 2
    assert log[0] == ("a", 1)


def test_one_that_fails_has_no_more_turns() -> None:
    class Broken(Clockwork):
        """Fails at its fifth turn."""

        def time(self, calls: int) -> Lap:
            if len([name for name, _ in self.log if name == self.name]) == 4:
                raise DeviceError("no more")
            return super().time(calls)

    log: list[tuple[str, int]] = []
    plan = Plan(min_time=5e-3, warmup=0.0, rounds=5)
    broken, whole = measure([Broken("a", 1e6, log), Clockwork("b", 1e6, log)], plan)
    assert (broken.failure, whole.failure) == ("no more", "")
    assert len(broken.samples) < 5
    assert whole.samples == pytest.approx([1e-3] * 5)
    assert [name for name, _ in log].count("a") == 4


def test_warm_up_ends() -> None:
    log: list[tuple[str, int]] = []
    warm_up(Clockwork("a", 1.0, log), 0.0)
    assert log == []
    warm_up(Clockwork("a", 1.0, log), 0.001)
    assert log
