"""Phases and units: what depends on each other stays in order, what does not runs side by side."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("numba")

from fcdense import activations
from fcdense.backends import primitives
from fcdense.backends.instructions import Instruction
from fcdense.backends.schedule import in_order, phases
from fcdense.backends.spans import overlap, span
from fcdense.backends.table import Table

Array = np.ndarray[Any, Any]

NO_WORDS = np.zeros(1, np.int64)


def instruction(reads: Any, writes: Any, cost: float = 1.0, rows: int = 0, whole: Any = ()) -> Instruction:
    return Instruction(0, NO_WORDS, tuple(reads), tuple(writes), cost, True, rows, tuple(whole))


def numbers(found: Any, instructions: list[Instruction]) -> list[list[list[int]]]:
    """Phases of units of the places of instructions."""
    place = {id(one): i for i, one in enumerate(instructions)}
    return [[[place[id(one)] for one in unit.instructions] for unit in phase] for phase in found]


def test_layers_that_share_rows_are_one_unit() -> None:
    x, y, z = (np.zeros((64, 8)) for _ in range(3))
    w = np.zeros((8, 8))
    given = [instruction((x, w), (y,), 1.0, 64, (w,)), instruction((y, w), (z,), 1.0, 64, (w,))]
    assert numbers(phases(given), given) == [[[0, 1]]]


def test_what_reads_all_rows_waits_for_all_shares() -> None:
    x, y = np.zeros((64, 8)), np.zeros((64, 8))
    square = np.zeros((64, 64))
    given = [instruction((x,), (y,), 1.0, 64), instruction((square, y), (x,), 1.0, 64, (y,))]
    assert numbers(phases(given), given) == [[[0]], [[1]]]


@pytest.mark.parametrize("view", [lambda y: y.T, lambda y: y.reshape(32, 16), lambda y: y[1:]])
def test_other_rows_of_the_same_memory_wait(view: Any) -> None:
    x, y = np.zeros((64, 8)), np.zeros((64, 8))
    given = [instruction((x,), (y,), 1.0, 64), instruction((view(y),), (x,), 1.0, 64)]
    assert numbers(phases(given), given) == [[[0]], [[1]]]


def test_a_reversed_view_lies_where_its_elements_lie() -> None:
    whole = np.zeros((6, 4), np.float32)
    first = whole.__array_interface__["data"][0]
    for view in (whole[::-1], whole[:, ::-1], whole[::-1, ::-2], whole):
        start, stop = span(view)
        assert first <= start < stop <= first + whole.nbytes
    assert overlap(whole[4:], whole[::-1])
    assert overlap(whole[:1], whole[::-1])
    assert not overlap(whole[:3], whole[:2:-1])


def test_independent_ones_run_side_by_side_the_dearest_first() -> None:
    arrays = [np.zeros(9) for _ in range(6)]
    given = [instruction((arrays[i],), (arrays[3 + i],), cost) for i, cost in enumerate((1.0, 3.0, 2.0))]
    assert numbers(phases(given), given) == [[[1], [2], [0]]]


def test_small_ones_share_a_unit() -> None:
    arrays = [np.zeros(9) for _ in range(6)]
    given = [instruction((arrays[i],), (arrays[3 + i],), 0.01) for i in range(3)]
    given.append(instruction((arrays[4],), (arrays[5],), 0.01))
    assert numbers(phases(given), given) == [[[0, 1, 2, 3]]]


STEPS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 7), max_size=3),
        st.lists(st.integers(0, 7), min_size=1, max_size=2),
        st.sampled_from([0.0, 0.02, 1.0]),
        st.sampled_from([0, 4]),
        st.booleans(),
    ),
    max_size=12,
)


@given(STEPS)
def test_the_order_of_whatever_touches_the_same_memory_stays(steps: Any) -> None:
    memory = np.zeros((8, 4, 2))
    given = [
        instruction([memory[i] for i in reads], [memory[i] for i in writes], cost, rows, [memory[i] for i in reads[:1]])
        if whole
        else instruction([memory[i] for i in reads], [memory[i] for i in writes], cost, rows)
        for reads, writes, cost, rows, whole in steps
    ]
    places = {
        i: (p, u, k)
        for p, phase in enumerate(numbers(phases(given), given))
        for u, unit in enumerate(phase)
        for k, i in enumerate(unit)
    }
    assert sorted(places) == list(range(len(given)))
    for (i, a), (j, b) in combinations(enumerate(steps), 2):
        shared = (set(a[0]) | set(a[1])) & set(b[1]) | set(a[1]) & set(b[0])
        if shared:
            (p, u, k), (q, v, m) = places[i], places[j]
            assert p < q or ((p, u) == (q, v) and k < m)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 31, 32, 100])
def test_bits_are_those_of_one_after_another(batch: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("instructions", "table"):
        monkeypatch.setattr(f"fcdense.backends.{module}.available_threads", lambda: threads)
    monkeypatch.setattr("fcdense.backends.instructions.MANY_FLOPS", 1000)
    relu = activations.get("relu")
    results = []
    for arrange in (in_order, phases):
        rng = np.random.default_rng(0)
        x, w1, w2 = (rng.standard_normal(shape).astype("f") for shape in ((batch, 24), (24, 40), (40, 10)))
        target = rng.integers(0, 10, batch)
        y1, y2, d2, d1, dz = (np.full((batch, n), np.nan, "f") for n in (40, 10, 10, 40, 10))
        b1, b2, loss, g1, g2 = (np.full(shape, np.nan, "f") for shape in ((40,), (10,), (), (24, 40), (40, 10)))
        made = [
            primitives.dense(x, w1, None, relu, out=y1),
            primitives.dense(y1, w2, None, activations.get("linear"), out=y2),
            primitives.softmax_xent(y2, target, None, 1 / batch, loss=loss, dz=dz),
            primitives.act_grad(dz, None, activations.get("linear"), out=d2, db=b2),
            primitives.dense_grad_input(d2, w2, relu, y1, out=d1, db=b1),
            primitives.dense_grad_weight(y1, d2, out=g2),
            primitives.dense_grad_weight(x, d1, out=g1),
        ]
        Table(arrange([one for part in made for one in part or ()])).run()
        results.append([y2, loss, d1, b1, b2, g1, g2])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, theirs)
