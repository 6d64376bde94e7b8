"""The arguments of each primitive, read off its declaration."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from fcdense.backends.base import ADDED_TO, Backend


class Signature(NamedTuple):
    """The arguments of a primitive: all of them, and the names of those that may be arrays to read and to write."""

    whole: inspect.Signature
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, primitive: str) -> Signature:
        """That of a primitive, read off its declaration."""
        whole = inspect.signature(getattr(Backend, primitive))
        arrays = {name: p.kind for name, p in whole.parameters.items() if "Array" in str(p.annotation)}
        written = {name for name, kind in arrays.items() if kind is inspect.Parameter.KEYWORD_ONLY and name != "when"}
        written |= {name for of, name in ADDED_TO if of == primitive}
        inputs = tuple(name for name in arrays if name not in written)
        return cls(whole, inputs, tuple(name for name in arrays if name in written))

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Every argument by name, defaults included, without `self`."""
        bound = self.whole.bind(None, *args, **kwargs)
        bound.apply_defaults()
        return dict(list(bound.arguments.items())[1:])


SIGNATURES = {name: Signature.of(name) for name in Backend.primitives()}
