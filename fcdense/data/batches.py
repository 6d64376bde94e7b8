"""Arrays in shuffled mini-batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fcdense.conversion import is_on_gpu
from fcdense.data.checks import as_count, as_rows, as_weights, same_rows
from fcdense.errors import OutOfMemory


class Batch(NamedTuple):
    """Rows that belong together: `x` (B, ..., I), `y` (B, ...) or None, `sample_weight` (B,) or None.

    CuPy's arrays stay on their GPU, weights lie on the host.
    """

    x: NDArray[Any]
    y: NDArray[Any] | None = None
    sample_weight: NDArray[Any] | None = None


class Batches:
    """Mini-batches of arrays held in memory, memory-mapped on disk, or CuPy's on a GPU.

    Every pass is one epoch. Its order depends on `seed` and the number of the epoch only, so that epoch k can be
    repeated, or training resumed there, without walking through the epochs before it::

        batches = Batches(x, y, batch_size=64)
        batches.set_epoch(7)
        for batch in batches:  # the 8th epoch, as in an uninterrupted run
            step(batch.x, batch.y)

    Parameters
    ----------
    x : array (N, ..., I)
        N rows; the last axis holds the features. A memory-mapped array is read batch by batch.
    y : array (N, ...), optional
        Targets, one per row.
    batch_size : int
        Rows per batch; more than N gives one batch of N rows.
    shuffle : bool
        Draw a new permutation of the rows in every epoch; otherwise rows come in order.
    seed : int
        At least 0. Together with the epoch it determines the order (for one version of NumPy).
    drop_last : bool
        Leave out the last batch where it has fewer than `batch_size` rows (a shuffled epoch leaves out others each
        time). A single batch that holds all rows is never left out.
    sample_weight : array (N,), optional
        Finite weights >= 0.

    Attributes
    ----------
    n : int
        Rows.
    epoch : int
        Number of the epoch that the next pass walks. It rises when a pass *begins*, so that a pass that is left early
        does not come again.

    Notes
    -----
    Dtypes: floats, integers and bools are yielded as given, in native byte order; integer weights become float32.
    Each batch is a fresh C-contiguous array: writing to it or keeping it is safe. NaN and inf pass through.

    Raises
    ------
    ShapeError, DTypeError, DataError, ArgumentError
        Lengths that differ, ragged rows, no rows, no features, text or objects, a `batch_size` below 1.
    """

    def __init__(
        self,
        x: ArrayLike,
        y: ArrayLike | None = None,
        *,
        batch_size: int = 32,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        sample_weight: ArrayLike | None = None,
    ) -> None:
        self._x = as_rows("x", x, min_axes=2)
        self._y = None if y is None else as_rows("y", y)
        if self._y is not None:
            same_rows("x", self._x, "y", self._y)
        self._weight = None if sample_weight is None else as_weights("sample_weight", sample_weight, "x", self._x)
        self.n = len(self._x)
        self.batch_size = min(as_count("batch_size", batch_size), self.n)
        self.shuffle = shuffle
        self.seed = as_count("seed", seed, 0)
        self.drop_last = drop_last
        self._epoch = 0
        self._fixed: Batch | None = None

    @property
    def epoch(self) -> int:
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the one that the next pass walks."""
        self._epoch = as_count("epoch", epoch, 0)

    @property
    def arrays(self) -> Batch:
        """All rows, as they were given."""
        return Batch(self._x, self._y, self._weight)

    def write_into(self, fixed: Batch | None) -> None:
        """Put every full batch into the arrays of `fixed`, which is then yielded each time; None for fresh arrays.

        Its arrays have the dtypes of the rows, or wider ones. Nothing that is yielded may then be kept beyond the next
        batch.
        """
        self._fixed = fixed

    def order(self, epoch: int) -> NDArray[np.intp]:
        """Row numbers (N,) in the order in which `epoch` visits them."""
        if not self.shuffle:
            return np.arange(self.n)
        # A spawn key, because SeedSequence pads [seed, epoch] with zeros and so lets distinct pairs coincide.
        sequence = np.random.SeedSequence(self.seed, spawn_key=(as_count("epoch", epoch, 0),))
        return np.random.Generator(np.random.PCG64(sequence)).permutation(self.n)

    def __len__(self) -> int:
        """Batches per epoch."""
        return self.n // self.batch_size if self.drop_last else -(-self.n // self.batch_size)

    def __iter__(self) -> Walk:
        epoch = self._epoch
        self._epoch += 1
        return Walk(self, self.order(epoch))

    def batch(self, rows: NDArray[np.intp]) -> Batch:
        """The batch of the rows of these numbers."""
        if self._fixed is not None and len(rows) == len(self._fixed.x):
            for source, out in zip(self.arrays, self._fixed, strict=True):
                if source is not None and out is not None:
                    _gather_into(source, rows, out)
            return self._fixed
        return Batch(
            _gather(self._x, rows),
            None if self._y is None else _gather(self._y, rows),
            None if self._weight is None else _gather(self._weight, rows),
        )

    def __repr__(self) -> str:
        order = f"shuffled with seed {self.seed}" if self.shuffle else "in order"
        return f"Batches({self.n} rows, {len(self)} batches of {self.batch_size}, {order}, next epoch {self.epoch})"


class Walk(Iterator[Batch]):
    """One pass over `Batches`, in an order of the rows."""

    def __init__(self, batches: Batches, order: NDArray[np.intp]) -> None:
        self._batches = batches
        self._order = order[: len(batches) * batches.batch_size]
        self._at = 0

    def __next__(self) -> Batch:
        rows = self._order[self._at : self._at + self._batches.batch_size]
        if not len(rows):
            raise StopIteration
        self._at += len(rows)
        return self._batches.batch(rows)

    def ahead(self, most: int) -> NDArray[np.intp]:
        """Row numbers (n, B) of the next n <= `most` batches, up to one that is not full; they stay to come."""
        size = self._batches.batch_size
        n = min(most, (len(self._order) - self._at) // size)
        return self._order[self._at : self._at + n * size].reshape(n, size)

    def skip(self, n: int) -> None:
        """Leave out the next n full batches."""
        self._at += n * self._batches.batch_size


def _gather_into(source: NDArray[Any], rows: NDArray[np.intp], out: NDArray[Any]) -> None:
    if source.flags.c_contiguous and source.flags.aligned and source.dtype == out.dtype:
        source.take(rows, 0, out, "clip")  # the rows exist; without "clip" NumPy makes a buffer of its own first
    else:
        out[...] = source[rows]


def rows_on_gpu(source: Any, rows: NDArray[np.intp]) -> NDArray[Any]:
    """Rows of a CuPy array, on its own GPU: CuPy computes on the one that is current, whatever it is given.

    Raises
    ------
    OutOfMemory
        They have no room beside the array.
    """
    try:
        with source.device:
            taken: NDArray[Any] = source.take(rows, axis=0)
    except MemoryError as error:
        raise OutOfMemory(
            f"cuda:{source.device.id} cannot hold {len(rows):,} rows of an array {source.shape} beside it: {error} "
            "Free some of its memory, or take smaller batches."
        ) from None
    return taken


def _gather(source: NDArray[Any], rows: NDArray[np.intp]) -> NDArray[Any]:
    # take() needs 0.6 µs for 128 x 8 floats where indexing needs 2.2 µs, but copies the whole of any other source.
    if is_on_gpu(source):
        return rows_on_gpu(source, rows)
    if source.flags.c_contiguous and source.flags.aligned and source.dtype.isnative:
        return source.take(rows, axis=0)
    return np.ascontiguousarray(source[rows], dtype=source.dtype.newbyteorder("="))
