"""Batches that somebody else makes: generators, lists, PyTorch loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from inspect import GEN_CLOSED, getgeneratorstate, isgenerator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcdense.data.batches import Batch, Batches, Walk
from fcdense.data.checks import as_count, as_rows, as_weights, same_rows
from fcdense.errors import ArgumentError, DataError

END: Any = object()
"""What no source yields."""


class DataLoader:
    """One door for batches from anywhere; each pass yields `Batch` tuples, as `Batches` does.

    Parameters
    ----------
    source : function or iterable
        A function without arguments that returns an iterable of batches (called in every epoch), an iterable of
        batches (a list, a `torch.utils.data.DataLoader`, `Batches`), or a generator, which can be walked only once.
        A batch is `x`, `(x, y)` or `(x, y, sample_weight)`, as a tuple or a list; x (B, ..., I), y (B, ...).
        Anything that `np.asarray` takes serves as an array and is not copied; so do CuPy's arrays, on their GPU.
    steps_per_epoch : int, optional
        End every epoch after that many batches. A generator goes on where the epoch before it stopped; a function or
        an iterable starts anew. Needed where the source never ends.

    Attributes
    ----------
    steps_per_epoch : int or None
        As given, else the length of the source, else None (`len()` raises TypeError then).
    epoch : int
        Number of the epoch that the next pass walks; handed to `source.set_epoch` where there is one.

    Raises
    ------
    DataError
        A generator that was used up already, an epoch without batches, fewer batches than `steps_per_epoch`, or a
        batch that is none. Errors of the source itself pass with a note that names the source and the batch.
    ArgumentError
        A source that is no iterable, or holds rows instead of batches.
    """

    def __init__(
        self, source: Callable[[], Iterable[Any]] | Iterable[Any], *, steps_per_epoch: int | None = None
    ) -> None:
        if isinstance(source, str | bytes | dict) or hasattr(source, "__array__"):
            raise ArgumentError(
                f"source is of type {type(source).__name__}, expected something that yields batches. "
                "For arrays use Batches(x, y)."
            )
        iterable = not isinstance(source, type) and any(hasattr(source, name) for name in ("__iter__", "__getitem__"))
        if not iterable and not callable(source):
            raise ArgumentError(
                f"source is {source!r}, expected a function that makes batches, an iterable of batches or a generator."
            )
        self.source: Any = source
        self._made_anew = not iterable
        self.name = getattr(source, "__name__", type(source).__name__)
        self._given_steps = None if steps_per_epoch is None else as_count("steps_per_epoch", steps_per_epoch)
        self._once = isinstance(source, Iterator)
        self._begun = False
        self._epoch = 0

    @property
    def steps_per_epoch(self) -> int | None:
        if self._given_steps is not None:
            return self._given_steps
        try:
            return len(self.source)
        except TypeError:
            return None

    @property
    def arrays(self) -> Batch | None:
        """All rows, where batches are rows of arrays: of `Batches`, unless a subclass makes others of them."""
        kind: Any = type(self.source)
        takes_rows = isinstance(self.source, Batches) and kind.__iter__ is Batches.__iter__
        return self.source.arrays if takes_rows and kind.batch is Batches.batch else None

    @property
    def epoch(self) -> int:
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the number of the next pass."""
        self._epoch = as_count("epoch", epoch, 0)

    def __len__(self) -> int:
        """Batches per epoch."""
        steps = self.steps_per_epoch
        if steps is None:
            raise TypeError(
                f"The number of batches of {self.name!r} is not known before the end; pass steps_per_epoch."
            )
        return steps

    def __iter__(self) -> Pass:
        epoch = self._epoch
        self.check_passes(1)
        if hasattr(self.source, "set_epoch"):
            self.source.set_epoch(epoch)
        try:
            iterator = iter(self.source() if self._made_anew else self.source)
        except Exception as error:
            error.add_note(f"Raised by {self.name!r} at the start of epoch {epoch}.")
            raise
        self._begun = True
        self._epoch += 1
        return Pass(self, iterator, epoch, self._given_steps)

    def check_passes(self, count: int) -> None:
        """Raise `DataError` where it is known that `count` more passes cannot be made: of a generator."""
        is_closed = isgenerator(self.source) and getgeneratorstate(self.source) == GEN_CLOSED
        if is_closed or (self._once and self._begun and self._given_steps is None):
            raise DataError(f"Generator {self.name!r} was used up before epoch {self._epoch}. {self._cure()}")
        if self._once and count > 1 and self._given_steps is None:
            raise DataError(
                f"Generator {self.name!r} yields its batches once, and {count} epochs need them. {self._cure()}"
            )

    def check_length(self, done: int, epoch: int) -> None:
        """Raise `DataError` where an epoch of `done` batches is too short."""
        if done < (self._given_steps or 1):
            wanted = "at least one" if self._given_steps is None else f"steps_per_epoch={self._given_steps}"
            raise DataError(
                f"{self.name!r} ended after {done} batches of epoch {epoch}, expected {wanted}. {self._cure()}"
            )

    def _cure(self) -> str:
        if self._once:
            return (
                "A generator yields its batches once: pass the function that makes it (DataLoader(f), not "
                "DataLoader(f())), or let it loop with `while True:` and pass steps_per_epoch."
            )
        return "Lower steps_per_epoch or yield more batches." if self._given_steps else "Check the source."

    def __repr__(self) -> str:
        return f"DataLoader({self.name}, steps_per_epoch={self.steps_per_epoch}, next epoch {self.epoch})"


class Pass(Iterator[Batch]):
    """One epoch of a `DataLoader`."""

    def __init__(self, loader: DataLoader, iterator: Iterator[Any], epoch: int, steps: int | None) -> None:
        self._loader = loader
        self._iterator: Any = iterator
        self._epoch = epoch
        self._steps = steps
        self._done = 0

    def __next__(self) -> Batch:
        if self._done == self._steps:
            raise StopIteration
        name = self._loader.name
        try:
            item = next(self._iterator, END)
        except Exception as error:
            error.add_note(f"Raised by {name!r} while making batch {self._done} of epoch {self._epoch}.")
            raise
        if item is END:
            self._loader.check_length(self._done, self._epoch)
            raise StopIteration
        is_checked = isinstance(self._iterator, Walk)
        batch: Batch = item if is_checked else _as_batch(item, f"batch {self._done} of {name!r}: ")
        self._done += 1
        return batch

    def ahead(self, most: int) -> NDArray[np.intp]:
        """Row numbers (n, B) of the next n <= `most` full batches where the source is `Batches`; else n = 0."""
        if not isinstance(self._iterator, Walk):
            return np.empty((0, 0), np.intp)
        return self._iterator.ahead(most if self._steps is None else min(most, self._steps - self._done))

    def skip(self, n: int) -> None:
        """Leave out the next n full batches of `Batches`, as if they had been yielded."""
        self._iterator.skip(n)
        self._done += n


def _as_batch(item: Any, where: str) -> Batch:
    parts = tuple(item) if isinstance(item, tuple | list) else (item,)
    if isinstance(item, dict | None) or not 1 <= len(parts) <= 3:
        entries = f" of {len(item)} entries" if item is not None else ""
        raise DataError(f"{where}expected x, (x, y) or (x, y, sample_weight), got a {type(item).__name__}{entries}.")
    x_value, y_value, weight_value = parts + (None,) * (3 - len(parts))
    x = as_rows(f"{where}x", x_value, min_axes=2)
    y = None if y_value is None else as_rows(f"{where}y", y_value)
    if y is not None:
        same_rows(f"{where}x", x, "y", y)
    weight = None if weight_value is None else as_weights(f"{where}sample_weight", weight_value, "x", x)
    return Batch(x, y, weight)
