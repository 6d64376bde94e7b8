"""What of a recorded step may run side by side: never two pieces of work of which one writes what the other uses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcdense.cuda.driver import LANES
from fcdense.cuda.lanes import Place, Work, arranged

MEMORY = np.zeros(64, np.uint8)
PARTS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 4)).map(lambda p: MEMORY[p[0] : p[0] + p[1]]), max_size=3)


def work(reads: Sequence[Any], writes: Sequence[Any]) -> Work:
    return Work(lambda lane: None, reads, writes)


def before(places: Sequence[Place]) -> list[set[int]]:
    """For each piece of work all that comes before it."""
    found: list[set[int]] = []
    for number, place in enumerate(places):
        assert all(earlier < number for earlier in place.after)
        at_once = {*place.after, *(k for k in range(number) if places[k].lane == place.lane)}
        found.append(at_once.union(*(found[k] for k in at_once)))
    return found


def meets(a: Work, b: Work) -> bool:
    pairs = [(x, y) for x in a.writes for y in (*b.reads, *b.writes)] + [(x, y) for x in a.reads for y in b.writes]
    return any(np.shares_memory(x, y) for x, y in pairs)


@given(st.lists(st.builds(work, PARTS, PARTS), max_size=30))
def test_what_meets_is_in_order(steps: list[Work]) -> None:
    places = arranged(steps)
    earlier = before(places)
    assert all(0 <= place.lane < LANES for place in places)
    for a, b in combinations(range(len(steps)), 2):
        assert a in earlier[b] or not meets(steps[a], steps[b])


def test_gradients_of_a_kernel_run_beside_those_of_the_layer_below() -> None:
    x, dz, dx, dw = np.split(MEMORY, 4)
    w = np.zeros(3)
    steps = [work([x], [dz]), work([dz, w], [dx]), work([x, dz], [dw]), work([dw, dx], [w])]
    assert arranged(steps) == [Place(0, ()), Place(0, ()), Place(1, (0,)), Place(1, (1,))]


def test_a_chain_stays_on_one_lane() -> None:
    cells = np.split(MEMORY, 16)
    assert set(arranged([work([a], [b]) for a, b in pairwise(cells)])) == {Place(0, ())}


@pytest.mark.parametrize("count", [1, 5])
def test_what_was_awaited_is_not_awaited_again(count: int) -> None:
    x, y, *others = np.split(MEMORY, 16)
    steps = [work([], [x]), work([], [y]), *(work([x, y, *others[:k]], [others[k]]) for k in range(count))]
    assert [place.after for place in arranged(steps)] == [(), (), (0,), *[()] * (count - 1)]
