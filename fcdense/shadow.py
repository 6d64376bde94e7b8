"""The 16-bit copies of float32 parameters that products read in mixed precision."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from fcdense import changes
from fcdense.arena import Array, Version
from fcdense.backends import Backend, Device
from fcdense.backends.replay import Feed, Keep


class Shadow:
    """A copy of values in another dtype. By their version it knows when it is out of date, and is made anew then.

    In a captured step it lies where the eager step had it, and is looked at before each replay.

    Parameters
    ----------
    values : Array
        One parameter, or the flat buffer of an arena.
    version : Version
        Raised with every change of `values`.
    dtype : dtype
    on : Device

    Attributes
    ----------
    array : Array
        The copy.
    number : int
        That of the version when the copy was made; -1 before.
    is_used : bool
        Whether something was computed with it since the values have changed.
    """

    __slots__ = ("_on", "_replay", "array", "is_used", "number", "values", "version")

    def __init__(self, values: Array, version: Version, dtype: np.dtype[Any], on: Device) -> None:
        self.values = values
        self.version = version
        self.array = on.backend.unrecorded.empty(values.shape, dtype)
        self.number = -1
        self.is_used = False
        self._on = on
        self._replay: ShadowReplay | None = None

    def use(self) -> Array:
        """The copy, with the values of this moment (of the replay, where a step is being recorded)."""
        backend = self._on.backend
        if not backend.is_recording:
            self.refresh()
            self.is_used = True
            return self.array
        replay = self._replay
        if replay is None or replay.recorder() is not backend:
            replay = self._replay = ShadowReplay(self, backend)
            backend.join(replay)
        if replay.followed != replay.changes:  # the step itself has changed the values before
            backend.copy(self.values, out=self.array)
            replay.followed = replay.changes
        return self.array

    def refresh(self) -> None:
        """Copy the values, if they have changed."""
        if self.number != self.version.number:
            self._on.backend.unrecorded.copy(self.values, out=self.array)
            self.number = self.version.number

    @property
    def is_worth_updating(self) -> bool:
        """Whether the next products are going to need it: they did since the last change, and it is current."""
        return self.is_current and (self.is_used or self._on.backend.is_recording)

    @property
    def is_current(self) -> bool:
        """Whether the copy is that of the values (at this point of a step that is being recorded)."""
        backend = self._on.backend
        if not backend.is_recording:
            return self.number == self.version.number
        replay = self._replay
        return replay is not None and replay.recorder() is backend and replay.followed == replay.changes

    def follow(self) -> None:
        """Note that whoever changed the values of a current copy has changed the copy with them."""
        if self._on.backend.is_recording:
            assert self._replay is not None
            self._replay.followed = self._replay.changes
        else:
            self.number = self.version.number
            self.is_used = False


class ShadowReplay:
    """A shadow in the replays of one captured step (`Replayed`, and its own `ReplayedRounds`).

    Attributes
    ----------
    recorder : weakref
        To the backend that records the step.
    followed : int
        How many of the step's changes of the values the shadow has taken.
    """

    feeds: Sequence[Feed] = ()
    keeps: Sequence[Keep] = ()
    go_on: Array | None = None

    def __init__(self, shadow: Shadow, recorder: Backend) -> None:
        assert changes.witness is not None
        self.recorder = weakref.ref(recorder)
        self.followed = 0
        self._shadow = shadow
        self._changes = changes.witness.versions

    @property
    def changes(self) -> int:
        """How often the step changes the values: so far while it is recorded, altogether afterwards."""
        return self._changes.get(self._shadow.version, 0)

    def before_replay(self) -> None:
        """Copy the values, if they were changed since."""
        self._shadow.use()

    def after_replay(self) -> None:
        """Count what the shadow has taken of the step's changes."""
        self.after(1)

    def rounds(self, most: int) -> ShadowReplay:
        """Rounds need nothing more, `before` and `after`."""
        return self

    def before(self, count: int) -> int:
        """Copy the values; `count`, or 1 where a round leaves the shadow behind them."""
        self._shadow.use()
        return count if self.followed == self.changes else 1

    def after(self, count: int) -> None:
        """Count what the shadow has taken of the changes of `count` rounds."""
        self._shadow.number += self.followed * count
