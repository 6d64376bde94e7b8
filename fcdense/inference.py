"""Running a trained model over many rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fcdense import nn, tape
from fcdense.conversion import host_array
from fcdense.data import Batches, DataLoader
from fcdense.data.checks import as_count
from fcdense.errors import ArgumentError, ShapeError
from fcdense.tensor import Tensor

Array = np.ndarray[Any, Any]


@np.errstate(all="ignore")
def predict(model: nn.Module, x: Any, *, batch_size: int = 1024) -> Array:
    """The outputs of `model`, row by row, computed in evaluation mode.

    Parameters
    ----------
    model : nn.Module
        Returns one tensor. Its mode is the same afterwards.
    x : array (N, ..., I), or batches as `DataLoader` takes them (of which only x is used)
        N may be 0. What NaN and infinities do, the outputs show.
    batch_size : int
        Rows of an array in one call. It matters for memory and speed, and for the last bits of the result.

    Returns
    -------
    NumPy array (N, ..., O)
    """
    size = as_count("batch_size", batch_size)
    with evaluating(model), tape.no_grad():
        parts = [model(rows) for rows in _rows(x, size)]
        if not all(isinstance(part, Tensor) for part in parts):
            raise ArgumentError(f"The model returned {type(parts[0]).__name__}; predict needs one tensor.")
        return np.concatenate([part.numpy() for part in parts])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the `with` block; afterwards each layer is in the mode in which it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _rows(x: Any, size: int) -> Iterator[Any]:
    """What `predict` calls the model with."""
    if isinstance(x, list | tuple) or hasattr(x, "__array__"):
        rows = host_array(x, "x")
        if rows.ndim < 2:
            raise ShapeError(
                f"x has shape {rows.shape}; expected rows of features (N, ..., I). A single row is x[None]."
            )
        for start in range(0, max(len(rows), 1), size):
            yield rows[start : start + size]
        return
    source = x.source if isinstance(x, DataLoader) else x
    if isinstance(source, Batches) and source.shuffle:
        raise ArgumentError(
            "The batches are shuffled, so predictions could not be told apart; make them shuffle=False."
        )
    for batch in x if isinstance(x, DataLoader) else DataLoader(x):
        yield batch.x
