"""Settings that hold inside of a `with` block, in one thread or task."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, Generic, TypeVar

from fcdense.errors import ArgumentError

T = TypeVar("T")


def runs_later(function: Any) -> bool:
    """Whether a function makes a generator or coroutine, whose code runs after the call."""
    kinds = inspect.isgeneratorfunction, inspect.isasyncgenfunction, inspect.iscoroutinefunction
    return any(kind(function) for kind in kinds)


class Scope(Generic[T]):
    """A setting for `with` blocks, one after another or within each other, of one thread at a time; also a decorator.

    Parameters
    ----------
    variable : ContextVar
    value
        What it is inside of the block.
    """

    __slots__ = ("_open", "_thread", "_value", "_variable")

    def __init__(self, variable: ContextVar[Any], value: T) -> None:
        self._variable = variable
        self._value = value
        self._open: list[AbstractContextManager[T]] = []
        self._thread = 0

    def __enter__(self) -> T:
        thread = threading.get_ident()
        if self._open and self._thread != thread:
            raise ArgumentError(
                "The scope is open in another thread, whose setting it holds. Make one for each thread."
            )
        self._thread = thread
        block = _block(self._variable, self._value)
        value = block.__enter__()
        self._open.append(block)  # Ctrl-C before it: the block is dropped, which ends it
        return value

    def __exit__(self, *raised: Any) -> None:
        self._open.pop().__exit__(*raised)

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with the setting during each call.

        Raises
        ------
        ArgumentError
            It makes a generator or coroutine, whose code runs after the call.
        """
        if not callable(function) or runs_later(function):
            raise ArgumentError(
                f"The decorator got {function!r}, expected a function whose code runs when it is called. In a "
                "generator or coroutine use a `with` block between two `yield`s or `await`s."
            )

        @wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with _block(self._variable, self._value):
                return function(*args, **kwargs)

        return inside


@contextmanager
def _block(variable: ContextVar[Any], value: T) -> Iterator[T]:
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
