"""What the host does around the primitives of an optimizer's step: eagerly once, in a captured step at each replay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fcdense import changes
from fcdense.errors import CaptureError
from fcdense.optim.slots import Plan

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
    """

    __slots__ = ("__weakref__", "_is_gated", "_optimizer", "_scale", "_settings", "plan")

    def __init__(self, optimizer: Optimizer, plan: Plan, is_gated: bool, scale: float) -> None:
        self.plan = plan
        self._optimizer = optimizer
        self._is_gated = is_gated
        self._scale = scale
        self._settings = -1

    def prepare(self) -> None:
        """Write learning rate and scale to where the primitives read them."""
        rate = self._optimizer.learning_rate
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
        if self._settings != changes.settings.number:
            if not self._optimizer._memory.holds(self.plan):
                raise CaptureError(
                    f"{type(self._optimizer).__name__}: parameters were added, moved, frozen or restored since the "
                    "step was captured. Capture it again."
                )
            self._settings = changes.settings.number
        self.prepare()

    def after_replay(self) -> None:
        """Count the step."""
        self.finish()

    def finish(self) -> bool:
        """Count the step, and apply constraints; False if it was skipped."""
        optimizer, plan = self._optimizer, self.plan
        optimizer.gradient_norm = None
        if self._is_gated:
            optimizer.gradient_norm, is_done = plan.gate.read()
            if not is_done:
                optimizer.skipped_steps += 1
                return False
        for arena in plan.arenas:
            arena.version.bump()
        for clock in plan.clocks:
            clock.count += 1
        optimizer.steps += 1
        for parameter in plan.parameters:
            if parameter.constraint is not None:
                parameter.assign(parameter.constraint(parameter.numpy()))
        return True
