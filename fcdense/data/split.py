"""Rows held out for testing and validation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fcdense.conversion import is_on_gpu
from fcdense.data.batches import Batch, rows_on_gpu
from fcdense.data.checks import as_count, as_host_rows, as_rows, as_weights, same_rows
from fcdense.errors import ArgumentError, DataError, ShapeError

Rows = NDArray[np.intp]


def split_rows(n: int, test_size: float, *, labels: ArrayLike | None = None, seed: int = 0) -> tuple[Rows, Rows]:
    """Draw row numbers of two disjoint parts of `n` rows, both in shuffled order.

    Parameters
    ----------
    n : int
        Rows, at least 2.
    test_size : float
        Share of the second part, 0 < test_size < 1, rounded to whole rows; each part gets at least one.
    labels : integers (n,), optional
        Class of every row. Given them, each class is divided in the same proportion, up to one row (largest
        remainders), and keeps at least one row in the first part: a class of one row is there alone.
    seed : int
        Same seed, same parts (for one version of NumPy).

    Returns
    -------
    (rows of the first part, rows of the second part)

    Raises
    ------
    ArgumentError
        `test_size` is not inside (0, 1), or `seed` is negative.
    DataError
        Fewer than two rows, or a stratified second part that would take the last row of a class.
    """
    return draw(n, test_size, labels, seed, "Lower test_size or leave out labels.")


def draw(n: int, test_size: float, labels: ArrayLike | None, seed: int, cure: str) -> tuple[Rows, Rows]:
    """`split_rows`, whose error over classes of too few rows ends with `cure`: what the caller can do."""
    share = _share("test_size", test_size)
    if n < 2:
        raise DataError(f"{n} row cannot be split in two; expected at least 2 rows.")
    n_test = min(max(round(n * share), 1), n - 1)
    rng = np.random.default_rng(as_count("seed", seed, 0))
    order = rng.permutation(n)
    if labels is None:
        return order[n_test:], order[:n_test]
    in_test = np.zeros(n, bool)
    _, class_of_row, sizes = np.unique(_class_labels(labels, n), return_inverse=True, return_counts=True)
    for k, take in enumerate(_shares_of_classes(sizes, n_test, cure)):
        members = order[class_of_row[order] == k]
        in_test[members[:take]] = True
    return order[~in_test[order]], order[in_test[order]]


def train_test_split(
    x: ArrayLike, y: ArrayLike, test_size: float = 0.2, stratify: bool = False, seed: int = 0
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Divide the rows of `x` and `y` at random: `x_train, x_test, y_train, y_test`, in this order.

    Parameters
    ----------
    x : array (N, ..., I)
    y : array (N, ...)
    test_size : float
        Share of the test rows, inside (0, 1).
    stratify : bool
        Keep the proportions of the classes in `y` (integers); see `split_rows` for classes of very few rows.
    seed : int
        Same seed, same parts.

    Returns
    -------
    x_train, x_test, y_train, y_test
        Copies, with the dtypes of `x` and `y`.

    Raises
    ------
    ShapeError, DTypeError, DataError, ArgumentError
        As `Batches` and `split_rows` do.
    """
    x_rows, y_rows = as_rows("x", x, min_axes=2), as_rows("y", y)
    same_rows("x", x_rows, "y", y_rows)
    cure = "Lower test_size or pass stratify=False."
    train, test = draw(len(x_rows), test_size, y_rows if stratify else None, seed, cure)
    return _part(x_rows, train), _part(x_rows, test), _part(y_rows, train), _part(y_rows, test)


def validation_split(
    x: ArrayLike,
    y: ArrayLike | None = None,
    fraction: float = 0.2,
    *,
    sample_weight: ArrayLike | None = None,
    seed: int = 0,
) -> tuple[Batch, Batch]:
    """Hold out a random `fraction` of the rows, inside (0, 1): the rows to train on, the rows to validate on."""
    _share("validation_split", fraction)
    x_rows = as_rows("x", x, min_axes=2)
    y_rows = None if y is None else as_rows("y", y)
    if y_rows is not None:
        same_rows("x", x_rows, "y", y_rows)
    weights = None if sample_weight is None else as_weights("sample_weight", sample_weight, "x", x_rows)
    training, validation = (
        Batch(_part(x_rows, rows), _part(y_rows, rows), _part(weights, rows))
        for rows in split_rows(len(x_rows), fraction, seed=seed)
    )
    return training, validation


def _part(array: Any, rows: Rows) -> Any:
    if array is None:
        return None
    return rows_on_gpu(array, rows) if is_on_gpu(array) else array[rows]


def _share(name: str, value: object) -> float:
    if isinstance(value, float | np.floating) and 0 < value < 1:
        return float(value)
    raise ArgumentError(f"{name} is {value!r}, expected a fraction of the rows: 0 < {name} < 1.")


def _class_labels(labels: ArrayLike, n: int) -> NDArray[Any]:
    values = as_host_rows("y", labels)
    if values.shape != (n,):
        raise ShapeError(f"y has shape {values.shape}; a stratified split needs one class per row: ({n},).")
    if values.dtype.kind == "f" and not np.array_equal(values, np.round(values)):
        raise DataError("y has fractions or NaN; a stratified split needs class numbers. Pass stratify=False.")
    return values


def _shares_of_classes(sizes: Rows, n_test: int, cure: str) -> Rows:
    """Rows of each class in the test part: method of largest remainders, capped at size - 1."""
    room = sizes - 1
    if n_test > room.sum():
        raise DataError(
            f"A stratified test part of {n_test} of {sizes.sum()} rows would take the last row of some of the "
            f"{len(sizes)} classes; at most {room.sum()} rows fit. {cure}"
        )
    ideal = sizes * n_test / sizes.sum()
    taken: Rows = np.minimum(np.floor(ideal).astype(np.intp), room)
    while (missing := n_test - int(taken.sum())) > 0:
        remainder = np.where(taken < room, ideal - taken, -np.inf)
        neediest = np.argsort(-remainder, kind="stable")[:missing]
        taken[neediest[taken[neediest] < room[neediest]]] += 1
    return taken
