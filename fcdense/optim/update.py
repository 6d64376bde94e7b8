"""What the host does around the primitives of an optimizer's step: eagerly once, in a captured step at each replay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fcdense import changes
from fcdense.backends.replay import Feed, Keep
from fcdense.errors import CaptureError
from fcdense.optim.slots import Plan
from fcdense.shadow import Shadow

if TYPE_CHECKING:
    from fcdense.optim.optimizer import Optimizer


class Update:
    """One step of an optimizer, as the host sees it; it joins a recording (`Replayed`).

    Parameters
    ----------
    optimizer : Optimizer
    plan : Plan
    is_gated : bool
        Whether the primitives look at the gradients first.
    scale : float
        By how much the caller wants the gradients scaled.
    shadows : sequence of Shadow
        The copies of parameters that the primitives bring up to date as well.
    """

    __slots__ = (
        "__weakref__",
        "_counts",
        "_is_apart",
        "_is_gated",
        "_optimizer",
        "_scale",
        "_settings",
        "_shadows",
        "plan",
    )

    def __init__(
        self, optimizer: Optimizer, plan: Plan, is_gated: bool, scale: float, shadows: Sequence[Shadow]
    ) -> None:
        self.plan = plan
        self._optimizer = optimizer
        self._counts = optimizer._counts
        self._is_gated = is_gated
        self._is_apart = is_gated and not plan.passes[0].on.backend.is_host  # who reads what it did stops a GPU
        self._scale = scale
        self._settings = -1
        self._shadows = shadows

    def prepare(self, rate: float) -> None:
        """Write learning rate and scale to where the primitives read them."""
        for _, scalars in self.plan.scalars:
            scalars[0] = rate
            scalars[1] = self._scale
        if self._is_gated:
            self.plan.gate.ask(self._scale, self._optimizer._hyper["clip_norm"])

    def before_replay(self) -> None:
        """Make ready for a replay.

        Raises
        ------
        CaptureError
            The optimizer or its parameters were changed since the step was recorded.
        """
        self.check()
        waiting = self._counts.plan
        if waiting is not None and not (waiting is self.plan and self._may_wait()):
            self._counts.settle()
        self.prepare(self._optimizer.learning_rate)

    def check(self) -> None:
        """Raise `CaptureError` where optimizer or parameters were changed since the step was recorded."""
        if self._settings != changes.settings.number:
            if not self._optimizer._memory.holds(self.plan):
                raise CaptureError(
                    f"{type(self._optimizer).__name__}: parameters were added, moved, frozen or restored since the "
                    "step was captured. Capture it again."
                )
            self._settings = changes.settings.number

    def after_replay(self) -> None:
        """Count the step, or let that wait."""
        if self._may_wait():
            self.note_changes()  # also where nothing was changed, which is not known yet
            self._counts.wait(self.plan)
        else:
            self.finish()

    def _may_wait(self) -> bool:
        """Whether nobody has to know yet what a replay did."""
        return self._is_apart and not self.plan.has_constraints

    def finish(self) -> bool:
        """Count the step, and apply constraints; False if it was skipped."""
        counts = self._counts
        counts.gradient_norm = None
        if self._is_gated:
            counts.checked_loss, counts.gradient_norm, is_done = self.plan.gate.read()
            if not is_done:
                counts.skipped_steps += 1
                return False
        self.count(1)
        return True

    def count(self, steps: int) -> None:
        """Count so many steps that were made, and apply constraints."""
        self.note_changes()
        self._counts.count(self.plan, steps)
        for parameter in self.plan.parameters:
            if parameter.constraint is not None:
                try:
                    parameter.assign(parameter.constraint(parameter.numpy()))
                except Exception as error:
                    error.add_note(
                        f"Raised for the constraint of parameter '{parameter.name}', without which the step was made."
                    )
                    raise

    def note_changes(self) -> None:
        """Parameters are changed, and with them those of their copies that were up to date before."""
        current = [shadow for shadow in self._shadows if shadow.is_current]
        for arena in self.plan.arenas:
            arena.version.bump()
        for shadow in current:
            shadow.follow()

    def rounds(self, most: int) -> UpdateRounds:
        """The same for up to `most` replays in a row."""
        return UpdateRounds(self, self._optimizer, most, self._is_gated)


class UpdateRounds:
    """Several steps in a row, as the host sees them: learning rates go in, norms come out (`ReplayedRounds`)."""

    def __init__(self, update: Update, optimizer: Optimizer, most: int, is_gated: bool) -> None:
        plan = update.plan
        self._update = update
        self._optimizer = optimizer
        self._rates, self._norms = np.empty(most), np.full(most, np.nan)
        order = np.arange(most)
        self.feeds: Sequence[Feed] = [Feed(self._rates, order, scalars[:1]) for _, scalars in plan.scalars]
        self.keeps: Sequence[Keep] = [Keep(plan.gate.norm, self._norms)] if is_gated else []
        self.go_on = plan.gate.flag(plan.passes[0].on) if is_gated else None

    def before(self, count: int) -> int:
        """Make ready for `count` rounds, or for one where the host has to act after it or knows no further rate."""
        self._update.check()
        rates = self._optimizer.rates(1 if self._update.plan.has_constraints else count)
        self._update.prepare(rates[0])
        self._rates[: len(rates)] = rates
        return len(rates)

    def after(self, count: int) -> None:
        """Count the steps."""
        self._optimizer.gradient_norm = float(self._norms[count - 1]) if self.keeps else None
        self._update.count(count)
