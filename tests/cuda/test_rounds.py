"""Rounds on the emulated GPU: the same step many times in a row without the host in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fcdense.backends.replay import Feed, Keep
from tests import emulation
from tests.backends.calls import contiguous, shifted
from tests.cuda.sums import ADD, DATA, F64, FINITE, Sums

I64 = np.dtype(np.int64)

pytestmark = pytest.mark.skipif(not emulation.is_available(), reason="no g++ here")


@pytest.mark.parametrize("resident", [True, False])
def test_rounds_take_their_rows_and_leave_results(resident: bool) -> None:
    sums = Sums()
    order, done = np.array([7, 2, 0, 9, 2, 2, 5, 5], np.int64), np.zeros((4, 2, 3))
    source = sums.backend.from_host(DATA) if resident else DATA
    run = sums.replay().rounds([Feed(source, order, sums.batch)], [Keep(sums.total, done)])
    assert run is not None
    assert run(3) == 3
    expected = DATA[order.reshape(4, 2)].cumsum(0)
    np.testing.assert_array_equal(done[:3], expected[:3])
    assert (done[3] == 0).all()
    order[:2] = order[6:]
    assert run(1) == 1
    np.testing.assert_array_equal(done[0], expected[3])
    np.testing.assert_array_equal(sums.backend.to_host(sums.state), [0, 4])


@pytest.mark.parametrize("lay", [contiguous, shifted])
def test_rows_and_results_of_any_kind(lay: Callable[..., Any], rng: np.random.Generator) -> None:
    """Of more arrays than a launch takes, in units of 1, 2, 4 and 16 bytes."""
    sums, order = Sums(), np.array([3, 0, 4, 4, 1, 2])
    backend, kinds = sums.backend, (np.uint8, np.float16, np.float32, np.int64)
    sources = [rng.integers(0, 100, (5, *row)).astype(kind) for kind in kinds for row in ((), (3,), (4, 4), (300,))]
    targets = [lay(np.zeros((2, *source.shape[1:]), source.dtype), backend) for source in sources]
    results = [np.zeros((3, *target.shape), target.dtype) for target in targets]
    feeds = [Feed(lay(source, backend), order, target) for source, target in zip(sources, targets, strict=True)]
    run = sums.replay().rounds(feeds, [*map(Keep, targets, results)])
    assert run is not None
    assert run(3) == 3
    for source, result in zip(sources, results, strict=True):
        np.testing.assert_array_equal(result, source[order].reshape(result.shape))
    assert backend.driver.damaged_guards() == 0  # type: ignore[attr-defined]


def test_nothing_changes_after_the_round_that_changed_nothing() -> None:
    sums = Sums()
    data = DATA.copy()
    data[4, 1] = np.nan
    order, done = np.arange(10), np.zeros(5)
    keeps = [Keep(np.ones(()), done)]
    run = sums.replay().rounds([Feed(data, order, sums.batch)], keeps, sums.go_on)
    assert run is not None
    assert run(5) == 3
    np.testing.assert_array_equal(sums.backend.to_host(sums.total), DATA[:2] + DATA[2:4])
    np.testing.assert_array_equal(done, [1, 1, 1, 0, 0])
    assert sums.backend.to_host(sums.go_on) == 0
    np.testing.assert_array_equal(sums.backend.to_host(sums.state), [0, 3])
    np.testing.assert_array_equal(sums.backend.to_host(sums.kept), 2)  # a map that reads what it writes, after the flag
    data[4, 1] = 0.0
    done[:] = 0.0
    assert run(2) == 2
    np.testing.assert_array_equal(done, [1, 1, 0, 0, 0])


def test_what_a_step_copies_is_not_copied_after_the_last_round() -> None:
    """A copy of what a map left aside would take up what others have left in its place since."""
    sums = Sums()
    copied = sums.backend.zeros((2, 3), F64)
    replay = sums.replay()
    replay._calls = [*replay._calls, sums.call("copy", (copied,), (sums.batch,), x=sums.batch, out=copied)]
    data = DATA.copy()
    data[4, 1] = np.nan
    run = replay.rounds([Feed(data, np.arange(10), sums.batch)], [], sums.go_on)
    assert run is not None
    assert run(5) == 3
    np.testing.assert_array_equal(sums.backend.to_host(copied), data[4:6])


@pytest.mark.parametrize("made", [2, 3])  # of two in a row, each lane goes ahead in one
def test_the_last_round_is_made_whole(made: int) -> None:
    """It ends behind all of its calls, also those that nothing waits for."""
    sums = Sums()
    one, number, copied = (sums.backend.zeros((), dtype) for dtype in (F64, I64, I64))
    one[...], number[...] = 1.0, 2**53 + 1
    counts = [sums.backend.zeros((), F64) for _ in range(4)]  # on all lanes
    adding = [
        sums.call("map", (count,), (count, one), program=ADD, inputs=(count, one), scalars=(), out=(count,), when=None)
        for count in counts
    ]
    replay = sums.replay()
    copy = sums.call("copy", (copied,), (number,), x=number, out=copied)
    replay._calls = [*replay._calls, *adding, copy]
    data = DATA.copy()
    data[2 * (made - 1), 1] = np.nan
    run = replay.rounds([Feed(data, np.arange(10), sums.batch)], [], sums.go_on)
    assert run is not None
    assert run(5) == made
    assert [int(sums.backend.to_host(count)) for count in counts] == [made] * 4
    assert sums.backend.to_host(copied) == 2**53 + 1


def test_what_is_interrupted_counts_the_rounds_that_were_launched() -> None:
    sums = Sums()
    done = np.zeros((5, 2, 3))
    rounds = sums.replay().rounds([Feed(DATA, np.arange(10), sums.batch)], [Keep(sums.total, done)], sums.go_on)
    owner: Any = rounds.__self__  # type: ignore[union-attr]
    launch, launched = owner._launch, []

    def interrupted() -> None:
        if len(launched) == 2:
            raise KeyboardInterrupt
        launched.append(launch())

    owner._launch = interrupted
    with pytest.raises(KeyboardInterrupt):
        owner.run(5)
    np.testing.assert_array_equal(done[:2], DATA[:4].reshape(2, 2, 3).cumsum(0))
    assert (done[2:] == 0).all()
    np.testing.assert_array_equal(sums.backend.to_host(sums.state), [0, 2])


def test_what_rounds_cannot_copy() -> None:
    sums = Sums()
    order = np.arange(10)
    nothing = sums.backend.zeros((2, 0), F64)
    for feed in (
        Feed(DATA.astype(np.float32), order, sums.batch),
        Feed(DATA[:, :2], order, sums.batch),
        Feed(DATA[:, :0], order, nothing),
        Feed(sums.backend.from_host(np.ascontiguousarray(DATA.T)).T, order, sums.batch),
        Feed(DATA, sums.backend.from_host(np.arange(20))[::2], sums.batch),
    ):
        assert sums.replay().rounds([feed], []) is None
    assert sums.replay().rounds([], [Keep(sums.total.T, np.zeros((5, 3, 2)))]) is None
    assert sums.replay().rounds([], [Keep(nothing, np.zeros((5, 2, 0)))]) is None


def test_what_would_not_stop_after_the_last_round() -> None:
    """One call among others, with one array among others."""
    sums = Sums()
    other, go_on, one = sums.kept, sums.go_on, sums.backend.zeros((), F64)
    adds = sums.call("dense_grad_weight", (other, sums.total), (sums.batch, sums.total))
    found = sums.call("reduce", (other, go_on), (sums.batch,), operation="max", x=sums.batch, axes=(0, 1), out=go_on)
    gated = {"program": FINITE, "inputs": (one,), "scalars": (), "out": (go_on,), "when": one}
    replay = sums.replay()
    calls = replay._calls
    assert replay.rounds([], [], go_on) is not None
    for call in (adds, found, sums.call("map", (go_on,), (one,), **gated)):
        replay._calls = [*calls, call]
        assert replay.rounds([], [], go_on) is None, f"{call.primitive} would find another number, or add it"
    replay._calls = [*calls, found]
    assert replay.rounds([], []) is not None
