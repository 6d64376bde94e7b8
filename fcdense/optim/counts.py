"""What an optimizer has done. On a GPU that is read when somebody asks, since the GPU stops for every reader."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fcdense.optim.slots import Plan

_settling = threading.RLock()
"""Held while what waits is read: another thread may ask as well."""


class Counts:
    """Steps done and left out, and what the last one found.

    Attributes
    ----------
    steps, skipped_steps : int
    gradient_norm : float or None
    checked_loss : float
        As `Optimizer` has them, without the replays that wait.
    plan : Plan or None
        Of the replays that wait to be counted: all since somebody asked last.
    """

    __slots__ = ("_replays", "checked_loss", "gradient_norm", "plan", "skipped_steps", "steps")

    def __init__(self) -> None:
        self.steps = self.skipped_steps = 0
        self.gradient_norm: float | None = None
        self.checked_loss = 0.0
        self.plan: Plan | None = None
        self._replays = 0

    def wait(self, plan: Plan) -> None:
        """One more replay of `plan`, of which nobody asks yet whether it changed anything; no other plan waits."""
        with _settling:
            self.plan = plan
            self._replays += 1

    def settle(self) -> None:
        """Count the replays that wait."""
        if self.plan is None:
            return
        with _settling:
            if self.plan is None:
                return
            plan, replays = self.plan, self._replays
            self.checked_loss, self.gradient_norm, is_done = plan.gate.read()
            # At most so many: the thread that replays may be ahead of the one that asks.
            done = int(is_done) if replays == 1 else min(replays, plan.updates() - plan.clocks[0].count)
            self.plan, self._replays = None, 0
            self.skipped_steps += replays - done
            self.count(plan, done)

    def count(self, plan: Plan, steps: int) -> None:
        """So many steps of `plan` were made."""
        for clock in plan.clocks:
            clock.count += steps
        self.steps += steps


def told(name: str) -> Any:
    """An attribute of an optimizer that is one of its counts, with all that waited."""

    def read(optimizer: Any) -> Any:
        optimizer._counts.settle()
        return getattr(optimizer._counts, name)

    def write(optimizer: Any, value: Any) -> None:
        optimizer._counts.settle()
        setattr(optimizer._counts, name, value)

    return property(read, write)
