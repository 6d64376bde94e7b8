"""Exceptions of fcdense. Each derives from the built-in class that a caller would catch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NoReturn


class FcdenseError(Exception):
    """Base of every error that fcdense raises on purpose."""


class ShapeError(FcdenseError, ValueError):
    """Sizes or axes do not fit together."""


class DTypeError(FcdenseError, TypeError):
    """A dtype that is refused, because converting it would lose or reinterpret values."""


class ArgumentError(FcdenseError, ValueError):
    """An argument has a value outside its documented range."""


class UnknownNameError(ArgumentError):
    """A name that is in no table."""


class DeviceError(FcdenseError, RuntimeError):
    """A device that is not there, or operands on different devices."""


class OutOfMemory(FcdenseError, MemoryError):
    """A buffer that the device cannot hold."""


class TraceError(FcdenseError, TypeError):
    """A Python function that cannot be turned into an expression."""


class GraphError(FcdenseError, RuntimeError):
    """A gradient that can no longer be computed, or was never recorded."""


class CaptureError(FcdenseError, RuntimeError):
    """A step that cannot be recorded, or a recording that no longer fits what it is to be replayed on."""


class NonFiniteError(FcdenseError, ArithmeticError):
    """A loss or gradient that is NaN or infinite."""


class FormatError(FcdenseError, ValueError):
    """A file that is truncated, malformed or of another kind."""


class DataError(FcdenseError, ValueError):
    """Training data that cannot be used as given."""


class ContractError(FcdenseError, AssertionError):
    """A backend, or a call of one, that does not do what `fcdense.backends.base` says."""


class DTypeWarning(UserWarning):
    """A cast that loses precision or costs a pass, reported once per place."""


def unknown_name(kind: str, given: object, choices: Iterable[str]) -> NoReturn:
    """Raise `UnknownNameError` naming near matches of `given` among `choices`."""
    known = sorted(choices)
    near = difflib.get_close_matches(str(given), known, n=3)
    hint = f"Did you mean {' or '.join(repr(n) for n in near)}?" if near else f"Known: {', '.join(known)}."
    raise UnknownNameError(f"Unknown {kind} {given!r}. {hint}")
