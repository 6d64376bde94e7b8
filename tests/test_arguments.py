"""The numbers that layers, initializers, regularizers and constraints are made with."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import fcdense as fc
from fcdense.errors import ArgumentError

MADE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "constraint": (fc.constraints.max_norm, "limit"),
    "regularizer": (fc.regularizers.l2, "strength"),
    "initializer": (fc.init.constant, "value"),
    "initializer with a gain": (fc.init.orthogonal, "gain"),
    "layer": (lambda value: fc.nn.LayerNorm(eps=value), "eps"),
}


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize(
    "value", [np.float16(2), np.float32(2), np.float64(2), np.int8(2), np.uint64(2), 2, Fraction(2)]
)
def test_real_numbers_of_any_type(kind: str, value: Any) -> None:
    make, name = MADE[kind]
    found = getattr(make(value), name)
    assert type(found) is float
    assert found == 2.0


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize(
    "value", [True, np.True_, "2", None, 2j, np.nan, np.inf, np.float32("-inf"), 10**400, -(10**400), np.ones(1)]
)
def test_what_is_none(kind: str, value: Any) -> None:
    make, name = MADE[kind]
    with pytest.raises(ArgumentError, match=f"{name} is .*; expected "):
        make(value)
