"""The values that hyperparameters may have."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fcdense.errors import ArgumentError, unknown_name


class Range(NamedTuple):
    """The values that a hyperparameter may have, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


SHARE = Range("a number >= 0 and < 1", lambda value: 0.0 <= value < 1.0)
POSITIVE = Range("a finite number > 0", lambda value: 0.0 < value < math.inf)
NOT_NEGATIVE = Range("a finite number >= 0", lambda value: 0.0 <= value < math.inf)
LIMIT = Range("a number > 0, or None", lambda value: value > 0.0)
FLAG = Range("True or False", lambda value: isinstance(value, bool))


def checked(owner: str, ranges: Mapping[str, Range], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` in the order of `ranges`, numbers as floats; `ArgumentError` for an unknown, missing or wrong value."""
    for key in given:
        if key not in ranges:
            unknown_name(f"option of {owner}", key, ranges)
    values = {key: given.get(key) for key in ranges}
    for key, allowed in ranges.items():
        value = values[key]
        if allowed is LIMIT and value is None:
            continue
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not (is_number or allowed is FLAG) or not allowed.holds(value):
            raise ArgumentError(f"{owner}: {key} is {value!r}, expected {allowed.words}.")
        if is_number:
            values[key] = float(value)  # type: ignore[arg-type]
    return values
