"""Replays that run many times in one call: what each round reads and leaves, and where they end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fcdense.backends import device
from fcdense.backends.base import Backend
from fcdense.backends.replay import Call, Feed, Keep
from fcdense.program import trace

Array = np.ndarray[Any, Any]

PLUS = trace(lambda total, x: total + x, 2, name="plus")


@pytest.fixture(params=["numpy", "cpu"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return device(request.param).backend


def add(x: Array, total: Array) -> Call:
    """total += x."""
    given = {"program": PLUS, "inputs": (total, x), "scalars": (), "out": (total,), "when": None}
    return Call("map", given, (total, x), (total,))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1,), (5,), (700, 9), (400, 3, 100)], ids=str)
def test_each_round_reads_its_rows_and_keeps_its_result(
    backend: Backend, dtype: str, shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    rounds = 6
    source = rng.integers(-9, 9, (1000, *shape[1:])).astype(dtype)
    order = rng.integers(0, 1000, rounds * shape[0])
    x, total, totals = np.empty(shape, dtype), np.zeros(shape, dtype), np.full((rounds, *shape), 7.0, dtype)
    replay = backend.replay([add(x, total)])
    run = replay.rounds([Feed(source, order, x)], [Keep(total, totals)])
    assert run is not None
    expected = np.cumsum(source[order].reshape(rounds, *shape), axis=0)
    assert run(4) == 4
    np.testing.assert_array_equal(totals[:4], expected[:4])
    assert (totals[4:] == 7.0).all()
    total[...] = 0.0
    assert run(rounds) == rounds
    np.testing.assert_array_equal(totals, expected)
    assert run(0) == 0


def test_integers_of_all_sizes_arrive_bit_by_bit(backend: Backend) -> None:
    """Small ones have the bits of denormal numbers, large ones those of NaN."""
    source = np.array([0, 1, -1, 2**40, -(2**62), 2**63 - 1, 0x7FF0000000000001])
    x, kept, total = np.empty(1, np.int64), np.zeros((7, 1), np.int64), np.zeros(1)
    run = backend.replay([add(np.ones(1), total)]).rounds([Feed(source, np.arange(7), x)], [Keep(x, kept)])
    assert run is not None
    assert run(7) == 7
    np.testing.assert_array_equal(kept[:, 0], source)
    assert total[0] == 7.0


@pytest.mark.parametrize(("count", "made"), [(2, 2), (3, 3), (4, 4), (9, 4)])
def test_a_round_that_leaves_zero_is_the_last(backend: Backend, count: int, made: int) -> None:
    steps = np.array([-1.0, -1.0, -1.0, -1.0, 5.0, 5.0, 5.0, 5.0, 5.0])
    x, left, kept = np.empty(1), np.full(1, 4.0), np.zeros((9, 1))
    run = backend.replay([add(x, left)]).rounds([Feed(steps, np.arange(9), x)], [Keep(left, kept)], left[0, ...])
    assert run is not None
    assert run(count) == made
    np.testing.assert_array_equal(kept[:, 0], [*range(3, 3 - made, -1), *[0.0] * (9 - made)])
    assert left[0] == 4 - made


@pytest.mark.parametrize("kind", ["strided", "other dtype", "two bytes"])
def test_arrays_that_the_kernels_do_not_copy(kind: str) -> None:
    pytest.importorskip("numba")
    rows = np.arange(32.0).reshape(8, 4)
    source = {"strided": rows[:, ::2], "other dtype": rows[:, :2].astype(np.float32)}.get(kind)
    source = rows[:, :2].astype(np.float16) if source is None else source
    x, total = np.empty((4, 2), source.dtype if kind == "two bytes" else np.float64), np.zeros(1)
    replay = device("cpu").backend.replay([add(np.ones(1), total)])
    kept = np.zeros((2, 8, 4))[:, :, ::2]
    run = replay.rounds([Feed(source, np.arange(8), x)], [Keep(rows[:, ::2], kept)])
    assert run is not None
    assert run(2) == 2
    assert total[0] == 2
    np.testing.assert_array_equal(x, source[4:])
    np.testing.assert_array_equal(kept, [rows[:, ::2]] * 2)
