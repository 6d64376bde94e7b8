"""Regularizers: penalties on the size of weights, added to the loss by `Module.penalty`.

A regularizer maps a parameter to a tensor of shape (). The built-in ones are frozen dataclasses under their names in
`TABLE`: ``"l2"``, ``l2`` and ``l2(0.01)`` mean the same to `get`. One of your own is any function of a tensor that
returns a tensor of shape (); being code, it cannot be saved. (PEP 8 gives classes that serve as callables the names of
functions.)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from fcdense.arguments import real
from fcdense.errors import ArgumentError, FormatError, unknown_name
from fcdense.tensor import Tensor


@dataclass(frozen=True)
class Regularizer(ABC):
    """Base of the built-in regularizers; strengths are finite numbers >= 0."""

    def __post_init__(self) -> None:
        for field in fields(self):
            what, value = f"{type(self).__name__}: {field.name}", getattr(self, field.name)
            strength = real(value, what, lambda number: 0.0 <= number < math.inf, "a finite number >= 0")
            object.__setattr__(self, field.name, strength)

    @abstractmethod
    def __call__(self, w: Tensor) -> Tensor:
        """The penalty, a tensor of shape () in the dtype of `w`. NaN where `w` has one."""


@dataclass(frozen=True)
class l1(Regularizer):
    """``strength * sum |w|``; the gradient at 0 is 0."""

    strength: float = 0.01

    def __call__(self, w: Tensor) -> Tensor:
        return abs(w).sum() * self.strength


@dataclass(frozen=True)
class l2(Regularizer):
    """``strength * sum w**2``: no factor 1/2, the gradient is ``2 * strength * w``."""

    strength: float = 0.01

    def __call__(self, w: Tensor) -> Tensor:
        return (w * w).sum() * self.strength


@dataclass(frozen=True)
class l1_l2(Regularizer):
    """``l1 * sum |w| + l2 * sum w**2`` (the elastic net of Zou & Hastie 2005, eq. 3)."""

    l1: float = 0.01
    l2: float = 0.01

    def __call__(self, w: Tensor) -> Tensor:
        return abs(w).sum() * self.l1 + (w * w).sum() * self.l2


TABLE: Mapping[str, type[Regularizer]] = {kind.__name__: kind for kind in (l1, l2, l1_l2)}


def get(
    spec: str | type[Regularizer] | Callable[[Tensor], Tensor] | None,
) -> Callable[[Tensor], Tensor] | None:
    """Return the regularizer that `spec` means: a name in `TABLE`, a regularizer or its class, a function, or None.

    Raises `UnknownNameError` or `ArgumentError`.
    """
    if isinstance(spec, str):
        spec = TABLE[spec] if spec in TABLE else unknown_name("regularizer", spec, TABLE)
    if isinstance(spec, type) and issubclass(spec, Regularizer):
        return spec()
    if spec is None or (callable(spec) and not isinstance(spec, type)):
        return spec
    raise ArgumentError(f"Regularizer {spec!r}: expected a name, fc.regularizers.l2(...), or a function of a tensor.")


def to_data(regularizer: Callable[[Tensor], Tensor] | None) -> dict[str, Any] | None:
    """Return the name and the strengths as JSON-able data, which `from_data` reads; None for None.

    Raises `ArgumentError` for a function of your own.
    """
    if regularizer is None:
        return None
    if not isinstance(regularizer, Regularizer) or TABLE.get(type(regularizer).__name__) is not type(regularizer):
        raise ArgumentError(
            f"regularizer {regularizer!r} is code, not data, and cannot be saved. Known: {', '.join(TABLE)}."
        )
    return {"name": type(regularizer).__name__} | asdict(regularizer)


def from_data(data: Any) -> Regularizer | None:
    """Return the regularizer that `to_data` described; only names in `TABLE` are made."""
    if data is None:
        return None
    if not (isinstance(data, Mapping) and isinstance(data.get("name"), str)):
        raise FormatError(f"Regularizer data {data!r}: expected a mapping with a 'name'.")
    name = data["name"]
    kind = TABLE[name] if name in TABLE else unknown_name("regularizer", name, TABLE)
    expected = {"name", *(field.name for field in fields(kind))}
    if data.keys() != expected:
        raise FormatError(f"Regularizer data {data!r}: expected the keys {sorted(expected)}.")
    return kind(**{key: value for key, value in data.items() if key != "name"})
