"""Which launches of a recorded step may run side by side.

A chip that one small kernel leaves half empty has room for another: the gradient of a kernel beside that of the layer
below it, say. What follows what is read off the memory that each piece of work reads and writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from fcdense.arena import Array
from fcdense.backends.spans import span
from fcdense.cuda.driver import LANES, Driver


class Work(NamedTuple):
    """Something to launch, on one of the lanes; the arrays that it reads and that it writes."""

    launch: Callable[[int], None]
    reads: Sequence[Array]
    writes: Sequence[Array]


class Place(NamedTuple):
    """Where a piece of work lies: its lane, and the numbers of those on other lanes that it comes after."""

    lane: int
    after: tuple[int, ...]


def record(driver: Driver, work: Sequence[Work]) -> Callable[[], None]:
    """What repeats all the work (`Driver.record`)."""

    def calls() -> None:
        for one, place in zip(work, arranged(work), strict=True):
            driver.begin_part(*place)
            one.launch(place.lane)

    return driver.record(calls)


def arranged(work: Sequence[Work]) -> list[Place]:
    """A place for each piece of work.

    It lies behind the last one of a lane, if it needs that, and of several behind the latest; else on the lane whose
    last one is the oldest. Of two pieces, where one writes what the other reads or writes, the later one comes after
    the earlier one.
    """
    uses = [_Use(one) for one in work]
    lanes: list[list[int]] = [[] for _ in range(LANES)]
    awaited = [[-1] * LANES for _ in range(LANES)]  # by a lane: the last number of another one
    places = []
    for number, use in enumerate(uses):
        last = [numbers[-1] if numbers else -1 for numbers in lanes]
        behind = [lane for lane, tail in enumerate(last) if tail >= 0 and use.follows(uses[tail])]
        lane = max(behind, key=last.__getitem__) if behind else last.index(min(last))
        after = []
        for other, numbers in enumerate(lanes):
            if other == lane:
                continue
            for earlier in reversed(numbers):
                if earlier <= awaited[lane][other]:
                    break
                if use.follows(uses[earlier]):
                    awaited[lane][other] = earlier
                    after.append(earlier)
                    break
        lanes[lane].append(number)
        places.append(Place(lane, tuple(after)))
    return places


class _Use:
    """The bytes that a piece of work reads and writes."""

    def __init__(self, work: Work) -> None:
        self._writes = [span(array) for array in work.writes if array.size]
        self._all = [*self._writes, *(span(array) for array in work.reads if array.size)]

    def follows(self, earlier: _Use) -> bool:
        """Whether one of the two writes what the other one reads or writes."""
        return _meet(self._all, earlier._writes) or _meet(self._writes, earlier._all)


def _meet(some: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]) -> bool:
    return any(a < d and c < b for a, b in some for c, d in others)
