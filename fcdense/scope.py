"""Settings that hold inside of a `with` block, in one thread or task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import _GeneratorContextManager as Scope  # what @contextmanager makes; it is a decorator as well
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

__all__ = ["Scope", "scoped"]

T = TypeVar("T")


@contextmanager
def scoped(variable: ContextVar[Any], value: T) -> Iterator[T]:
    """Let `variable` be `value` inside of the `with` block, and what it was afterwards, wherever Ctrl-C comes."""
    before = variable.get()
    try:
        variable.set(value)  # Ctrl-C may come as soon as it returns, so that it has to be inside
        yield value
    except GeneratorExit:  # Ctrl-C came where the block's end is told; a block around it may have ended since
        before = before if variable.get() is value else variable.get()
        raise
    finally:
        variable.set(before)
