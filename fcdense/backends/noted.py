"""What a recording notes: calls, their operands, the arrays that the step makes; and whether two are the same."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fcdense.arena import Array
from fcdense.backends.spans import interface


class Operand(NamedTuple):
    """Where an array of a call lies, and in which form.

    `place` is (number, bytes from its start) for an array that the step makes, and otherwise the address. Arrays that
    were there before are kept in `array`, as are single numbers from the host, which `constant` holds as bytes.
    """

    place: tuple[int, int] | int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    constant: bytes | None
    array: Array | None

    @property
    def form(self) -> tuple[Any, ...]:
        """What two recordings of one step have in common."""
        return (0 if self.constant is not None else self.place, *self[1:5])

    def __str__(self) -> str:
        if self.constant is not None:
            return f"the number {np.frombuffer(self.constant, self.dtype)[0]}"
        made = f"temporary array {self.place[0]}" if isinstance(self.place, tuple) else f"an array at {self.place:#x}"
        return f"{made} of shape {self.shape}, {self.dtype}"


class Temporary:
    """An array that the step makes. It is needed for longer than the step if `owner` still lives at the end."""

    def __init__(self, number: int, array: Array, gone: Callable[[Any], None]) -> None:
        self.number = number
        self.nbytes: int = array.nbytes
        self.start: int = address(array)
        self.owner = weakref.ref(array if array.base is None else array.base, gone)


class Noted(NamedTuple):
    """A call whose arrays are operands."""

    primitive: str
    arguments: dict[str, Any]
    precision: str


def address(array: Array) -> int:
    """Where the first element lies."""
    return int(interface(array)["data"][0])


def alike(ours: Any, theirs: Any) -> bool:
    """Whether two noted arguments are the same; NaN is NaN."""
    if isinstance(ours, Operand) and isinstance(theirs, Operand):
        return ours.form == theirs.form
    if isinstance(ours, tuple) and isinstance(theirs, tuple):
        return len(ours) == len(theirs) and all(alike(a, b) for a, b in zip(ours, theirs, strict=True))
    if type(ours) is not type(theirs):
        return False
    return bool(ours is theirs or ours == theirs or (isinstance(ours, float) and ours != ours and theirs != theirs))


def first_difference(ours: Any, theirs: Any) -> tuple[str, str]:
    """The first parts of two arguments that are not alike, in words."""
    if type(ours) is tuple and type(theirs) is tuple and len(ours) == len(theirs):
        return next(first_difference(a, b) for a, b in zip(ours, theirs, strict=True) if not alike(a, b))
    return _words(ours), _words(theirs)


def _words(value: Any) -> str:
    if isinstance(value, Operand):
        return str(value)
    return getattr(value, "name", None) or repr(value)
