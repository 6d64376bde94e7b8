"""Captured methods: for each object a step of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fcdense.errors import CaptureError

Step = TypeVar("Step")
PLACE = "_captured"
"""The attribute that holds them."""


class Steps:
    """The steps of one object, by the method that each was made of. A copy of the object begins without any."""

    __slots__ = ("made", "of")

    def __init__(self, of: Any = None) -> None:
        self.of = of
        self.made: dict[Any, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Steps, ()


def step_of(instance: Any, method: object, make: Callable[[], Step]) -> Step:
    """The step that `make` made of a method for this object.

    Raises
    ------
    CaptureError
        The object is a class, or has no `__dict__`.
    """
    attributes = getattr(instance, "__dict__", None)
    if not isinstance(attributes, dict):
        raise CaptureError(
            f"A captured method of {instance!r} has no place for its step: it needs an object with a __dict__. Capture "
            "a function outside of the class, or name '__dict__' among the __slots__."
        )
    steps = attributes.get(PLACE)
    if steps is None or steps.of is not instance:  # that of the object which this one was copied from
        steps = attributes[PLACE] = Steps(instance)
    if method not in steps.made:
        steps.made[method] = make()
    found: Step = steps.made[method]
    return found
