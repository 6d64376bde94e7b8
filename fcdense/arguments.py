"""Checks of the numbers that layers, initializers, regularizers and constraints are made with."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from fcdense.errors import ArgumentError


def integer(value: Any, what: str, low: int = 1) -> int:
    """`value` as an int; raises `ArgumentError` for anything but an integer (no boolean) from `low` on."""
    try:
        number = low - 1 if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = low - 1
    if number < low:
        expected = "a positive integer" if low == 1 else f"an integer from {low} on"
        raise ArgumentError(f"{what} is {value!r}; expected {expected}.")
    return number


def real(value: Any, what: str, accepts: Callable[[float], bool], expected: str) -> float:
    """`value` as a float; raises `ArgumentError` unless it is a real number that `accepts` takes."""
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, numbers.Real) else float(value)
    except OverflowError:
        number = math.nan
    if math.isnan(number) or not accepts(number):
        raise ArgumentError(f"{what} is {value!r}; expected {expected}.")
    return number


def flag(value: Any, what: str) -> bool:
    """`value`, which must be True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise ArgumentError(f"{what} is {value!r}; expected True or False.")
    return bool(value)
