"""A captured step many times in a row: each round reads rows of its own, and leaves its results beside those before."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fcdense.arena import Array
from fcdense.backends.base import ReplayedRounds
from fcdense.backends.replay import Feed, Keep
from fcdense.capture import Captured
from fcdense.errors import OutOfMemory
from fcdense.fixed_results import tensors_of
from fcdense.log import logger
from fcdense.recorded_step import Variant

MEMORY = 4 * 2**20
"""Bytes for row numbers and results: they stay in a cache of the second level or third."""


class Rounds:
    """Replays without Python in between, where the backend has a way to make them.

    Parameters
    ----------
    captured : Captured
        Is recorded, and each of its inputs has B rows.
    sources : sequence of Array (N, ...)
        What each input takes its rows from.
    keeps : sequence of bool
        Which tensors of the result are kept.

    Attributes
    ----------
    results : list of Array (R, ...)
        What the rounds of the last run left, in order.
    """

    def __init__(self, captured: Captured, sources: Sequence[Array], keeps: Sequence[bool]) -> None:
        self._captured = captured
        self._sources = sources
        self._keeps = keeps
        self._variant: Variant | None = None
        self._run: Callable[[int], int] | None = None
        self._parts: list[ReplayedRounds] = []
        self.results: list[Array] = []

    def run(self, rows: Array) -> int:
        """Make rounds with `rows` (n, B) of the sources: n of them, or fewer; how many.

        0 where the step has to be replayed by itself: there is no way to make rounds, or no memory for it, or the next
        one would change nothing, as a number of it is not finite. Such a round is not counted, and its random numbers
        are drawn again.

        Raises
        ------
        CaptureError
            As `Captured.replay`, or the recorded calls no longer fit; nothing was changed.
        """
        variant, is_settled = self._captured.current()
        if variant is not self._variant:
            self._prepare(variant)
        if self._run is None:
            return 0
        count = min(len(rows), len(self._order))
        for part in self._parts:
            count = min(count, part.before(count))
        self._order[:count] = rows[:count]
        self._done[:count] = 0.0
        try:
            self._run(count)
        finally:  # Ctrl-C is heard after the last round
            made = self._accepted(count)
            if made:
                variant.ran(made, is_settled)
                for part in self._parts:
                    part.after(made)
        return made

    def _prepare(self, variant: Variant) -> None:
        self._variant, self._run = variant, None
        inputs = [tensor.array for tensor in self._captured.inputs]
        kept = [tensor.array for tensor, keeps in zip(tensors_of(variant.result), self._keeps, strict=True) if keeps]
        batch = len(inputs[0])
        most = max(1, MEMORY // (8 * batch + sum(array.nbytes for array in kept)))
        self._order = np.empty((most, batch), np.int64)
        self._done = np.zeros(most)
        self.results = [np.empty((most, *array.shape), array.dtype) for array in kept]
        self._parts = [participant.rounds(most) for participant in variant.participants]
        self._streams = [call.arguments["state"] for call in variant.calls if call.primitive == "next_stream"]
        flags = [part.go_on for part in self._parts if part.go_on is not None]
        if not variant.repeats or len(flags) > 1:
            return
        self._go_on = flags[0] if flags else None
        order = self._order.reshape(-1)
        feeds = [Feed(source, order, array) for source, array in zip(self._sources, inputs, strict=True)]
        feeds += [feed for part in self._parts for feed in part.feeds]
        keeps = [Keep(array, result) for array, result in zip(kept, self.results, strict=True)]
        keeps += [keep for part in self._parts for keep in part.keeps]
        keeps.append(Keep(np.ones(()), self._done))
        try:
            self._run = variant.replay.rounds(feeds, keeps, self._go_on)
        except OutOfMemory as error:
            logger.info("steps are replayed one by one: %s", error)

    def _accepted(self, count: int) -> int:
        """How many rounds were made, without a last one that changed nothing."""
        made = int(self._done[:count].sum())
        to_host = self._captured.inputs[0].device.backend.to_host
        if not made or self._go_on is None or to_host(self._go_on):
            return made
        for state in self._streams:
            numbers = to_host(state)
            numbers[1] -= 1
            state[...] = numbers
        return made - 1
