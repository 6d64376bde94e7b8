"""Constraints: where an optimizer puts the weights back after its step.

A constraint maps an array to a new one of its shape and dtype. The built-in ones are frozen dataclasses under their
names in `TABLE`: ``"non_neg"``, ``non_neg`` and ``non_neg()`` mean the same to `get`. They are written with functions
that CuPy's arrays take as well. One of your own is any function of an array; being code, it cannot be saved. (PEP 8
gives classes that serve as callables the names of functions.)

With ``axis=0`` a norm is that of a column of the kernel (in, out): of all weights into one unit.
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

import numpy as np

from fcdense.arena import Array
from fcdense.arguments import real
from fcdense.errors import ArgumentError, FormatError, unknown_name


@dataclass(frozen=True)
class Constraint(ABC):
    """Base of the built-in constraints."""

    @abstractmethod
    def __call__(self, w: Array) -> Array:
        """The constrained array. NaN stays NaN."""


@dataclass(frozen=True)
class max_norm(Constraint):
    """Vectors along `axis` longer than `limit` are scaled down to it: w * min(1, limit / |w|).

    Source: N. Srebro, A. Shraibman (2005), Rank, trace-norm and max-norm, COLT; as used with dropout by N. Srivastava
    et al. (2014), JMLR 15, section 5.1.
    """

    limit: float
    axis: int = 0

    def __post_init__(self) -> None:
        limit = real(self.limit, "max_norm: limit", lambda value: 0.0 < value < math.inf, "a finite number > 0")
        object.__setattr__(self, "limit", limit)
        _check_axis(self)

    def __call__(self, w: Array) -> Array:
        norm = _norm(w, self.axis)
        scale = np.where(norm > self.limit, self.limit / np.maximum(norm, self.limit), 1.0)
        return (w * scale).astype(w.dtype)


@dataclass(frozen=True)
class unit_norm(Constraint):
    """Vectors along `axis` get length 1: w / |w|; one of zeros stays."""

    axis: int = 0

    def __post_init__(self) -> None:
        _check_axis(self)

    def __call__(self, w: Array) -> Array:
        norm = _norm(w, self.axis)
        return (w / np.where(norm == 0.0, 1.0, norm)).astype(w.dtype)


@dataclass(frozen=True)
class non_neg(Constraint):
    """max(w, 0)."""

    def __call__(self, w: Array) -> Array:
        return np.maximum(w, 0)


def _norm(w: Array, axis: int) -> Array:
    """Euclidean norms in float64, where the squares of every float32 are finite."""
    return np.sqrt(np.sum(np.square(w.astype(np.float64)), axis=axis, keepdims=True))


def _check_axis(constraint: max_norm | unit_norm) -> None:
    try:
        axis = None if isinstance(constraint.axis, bool) else operator.index(constraint.axis)
    except TypeError:
        axis = None
    if axis is None:
        raise ArgumentError(f"{type(constraint).__name__}: axis is {constraint.axis!r}; expected an integer.")
    object.__setattr__(constraint, "axis", axis)


TABLE: Mapping[str, type[Constraint]] = {kind.__name__: kind for kind in (max_norm, unit_norm, non_neg)}


def get(
    spec: str | type[Constraint] | Callable[[Array], Array] | None,
) -> Callable[[Array], Array] | None:
    """Return the constraint that `spec` means: a name in `TABLE`, a constraint or its class, a function, or None.

    Raises `UnknownNameError` or `ArgumentError`.
    """
    if isinstance(spec, str):
        spec = TABLE[spec] if spec in TABLE else unknown_name("constraint", spec, TABLE)
    if isinstance(spec, type) and issubclass(spec, Constraint):
        if any(field.default is MISSING for field in fields(spec)):
            raise ArgumentError(f"Constraint {spec.__name__!r} needs its limit: fc.constraints.{spec.__name__}(...).")
        return spec()
    if spec is None or (callable(spec) and not isinstance(spec, type)):
        return spec
    raise ArgumentError(
        f"Constraint {spec!r}: expected a name, fc.constraints.max_norm(...), or a function of an array."
    )


def to_data(constraint: Callable[[Array], Array] | None) -> dict[str, Any] | None:
    """Return the name and the parameters as JSON-able data, which `from_data` reads; None for None.

    Raises `ArgumentError` for a function of your own.
    """
    if constraint is None:
        return None
    if not isinstance(constraint, Constraint) or TABLE.get(type(constraint).__name__) is not type(constraint):
        raise ArgumentError(
            f"constraint {constraint!r} is code, not data, and cannot be saved. Known: {', '.join(TABLE)}."
        )
    return {"name": type(constraint).__name__} | asdict(constraint)


def from_data(data: Any) -> Constraint | None:
    """Return the constraint that `to_data` described; only names in `TABLE` are made."""
    if data is None:
        return None
    if not (isinstance(data, Mapping) and isinstance(data.get("name"), str)):
        raise FormatError(f"Constraint data {data!r}: expected a mapping with a 'name'.")
    name = data["name"]
    kind = TABLE[name] if name in TABLE else unknown_name("constraint", name, TABLE)
    expected = {"name", *(field.name for field in fields(kind))}
    if data.keys() != expected:
        raise FormatError(f"Constraint data {data!r}: expected the keys {sorted(expected)}.")
    return kind(**{key: value for key, value in data.items() if key != "name"})
