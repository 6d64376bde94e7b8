"""Replays: launches that a GPU repeats as one graph and times itself, so that nothing of Python is in the time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from fcdense.backends.replay import Replay

from .cases import Lap, Run
from .disturbance import Watch


@dataclass(frozen=True)
class Replays(Run):
    """A run whose `call` launches a graph of `each` calls, over operands of their own each.

    Attributes
    ----------
    timed : callable
        `Driver.timed`.
    each : int
    """

    timed: Callable[[Callable[[], object]], float] = field(kw_only=True)
    each: int = field(default=1, kw_only=True)

    def time(self, calls: int) -> Lap:
        """As long as this many calls take on average, in whole graphs."""
        watch = Watch()
        count = math.ceil(calls / self.each)
        seconds = self.timed(lambda: self._launch(count))
        return Lap(round(1e9 * seconds * calls / (count * self.each)), watch.cores())

    def _launch(self, count: int) -> None:
        for _ in range(count):
            self.call()


def served_by(replay: Replay) -> str:
    """What serves the calls of a replay, all of which are alike."""
    return replay.describe()[0].partition(": ")[2]
