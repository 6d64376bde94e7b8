"""Evaluation mode inside of a `with` block, whatever modes the modules have."""

from __future__ import annotations

from contextvars import ContextVar

from fcdense.scope import Scope

_evaluating: ContextVar[bool] = ContextVar("fcdense_evaluating", default=False)


def is_evaluating() -> bool:
    """Whether all modules are in evaluation mode, in this thread or task."""
    return _evaluating.get()


def evaluating() -> Scope[bool]:
    """Evaluation mode for all modules inside of the `with` block (also a decorator), in this thread or task alone.

    Their own modes stay as they are, so that another thread may go on with training.
    """
    return Scope(_evaluating, True)
