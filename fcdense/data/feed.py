"""Batches of whatever is given: arrays, or something that yields batches."""

from __future__ import annotations

from typing import Any

import numpy as np

from fcdense.data.batches import Batches
from fcdense.data.checks import no_weight
from fcdense.data.loader import DataLoader
from fcdense.errors import ArgumentError, DataError, ShapeError


def feed(
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    batch_size: int | None = None,
    usual: int = 256,
    steps_per_epoch: int | None = None,
    shuffle: bool = False,
    **options: Any,
) -> DataLoader:
    """Batches of the arrays x, y and weights, `usual` rows unless `batch_size` is given; without y, those of x.

    Raises
    ------
    ArgumentError
        y is missing beside an array, or an option of arrays is given beside batches.
    DataError
        All weights of arrays are 0.
    """
    if y is not None:
        rows = usual if batch_size is None else batch_size
        source = Batches(x, y, sample_weight=sample_weight, batch_size=rows, shuffle=shuffle, **options)
        loader = DataLoader(source, steps_per_epoch=steps_per_epoch)
        weights = source.arrays.sample_weight
        if weights is not None and not weights.any():
            raise no_weight(source.n)
        if steps_per_epoch is not None and steps_per_epoch > len(source):
            raise ArgumentError(
                f"steps_per_epoch is {steps_per_epoch}, but {source.n} rows make {len(source)} batches of "
                f"{source.batch_size}; lower it, or take smaller batches."
            )
        return loader
    if hasattr(x, "__array__"):
        raise ArgumentError("x is an array, but its targets y are missing; give both, or batches of (x, y).")
    for name, value in (("batch_size", batch_size), ("sample_weight", sample_weight)):
        if value is not None:
            raise ArgumentError(f"{name} is for arrays x and y; batches bring their own.")
    return (
        x if isinstance(x, DataLoader) and steps_per_epoch is None else DataLoader(x, steps_per_epoch=steps_per_epoch)
    )


def validation_feed(given: Any, x: Any, y: Any, epochs: int = 1) -> DataLoader:
    """Batches of `validation_data`: (x, y), (x, y, sample_weight) or batches, with rows like those of the array x.

    Raises
    ------
    ArgumentError
        A tuple of another length, or arrays in a list: they would be batches without targets.
    DataError
        A generator that ends before the last of `epochs`, or `Batches` without targets.
    """
    if isinstance(given, list) and given and hasattr(given[0], "__array__"):
        raise ArgumentError(
            "validation_data is a list of arrays; expected the tuple (x, y) or (x, y, sample_weight), or batches. Pass "
            "tuple(validation_data)."
        )
    if not isinstance(given, tuple):
        batches = feed(given)
        batches.check_passes(epochs)
        if batches.arrays is not None and batches.arrays.y is None:
            raise DataError("validation_data is Batches(x) without targets; pass Batches(x, y).")
        return batches
    if len(given) not in (2, 3) or given[1] is None:
        raise ArgumentError(
            f"validation_data is a tuple of {len(given)}; expected (x, y), (x, y, sample_weight) or batches."
        )
    batches = feed(*given)
    rows = batches.source.arrays.x.shape[1:]
    if y is not None and rows != (expected := np.shape(x)[1:]):
        raise ShapeError(f"validation_data holds rows of shape {rows}, x of {expected}; expected the same.")
    return batches
