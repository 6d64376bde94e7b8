"""Features brought to mean 0 and standard deviation 1."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fcdense.data.checks import as_host_rows
from fcdense.errors import DataError, FormatError, ShapeError

BLOCK_BYTES = 1 << 22  # float64 temporaries stay in the cache, and a memory-mapped array is never read as a whole


class Standardizer:
    """z = (x − mean) / scale, feature by feature; scale is the population standard deviation.

    A constant feature gets scale 1 (and so becomes 0). The features are the last axis, every other axis is counted as
    rows: flatten images first where each pixel is a feature of its own.

    Fit on the training rows only, then transform training and test rows alike::

        scaler = Standardizer().fit(x_train)
        model.fit(scaler.transform(x_train), y_train)

    Attributes
    ----------
    mean, scale : float64 (I,)
        There after `fit`.

    Notes
    -----
    Moments and differences are computed in float64 whatever the dtype of `x`; results have the dtype float64 where
    `x` has, else float32. NaN and inf are refused by `fit` and pass through `transform`.
    """

    def __init__(self) -> None:
        self._moments: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    @property
    def mean(self) -> NDArray[np.float64]:
        return self._fitted()[0]

    @property
    def scale(self) -> NDArray[np.float64]:
        return self._fitted()[1]

    def fit(self, x: ArrayLike) -> Standardizer:
        """Measure mean and standard deviation of `x` (..., I).

        Raises
        ------
        DataError
            A feature holds NaN or inf, or its sum or range overflows float64.
        """
        x_bi = _as_table(x)
        with np.errstate(over="ignore", invalid="ignore"):
            self._moments = _moments(x_bi)
        return self

    def transform(self, x: ArrayLike) -> NDArray[Any]:
        """(x − mean) / scale as a new array of the shape of `x` (..., I)."""
        mean, scale = self._fitted()
        return self._map(x, lambda block: (block - mean) / scale)

    def inverse_transform(self, z: ArrayLike) -> NDArray[Any]:
        """z · scale + mean as a new array of the shape of `z` (..., I)."""
        mean, scale = self._fitted()
        return self._map(z, lambda block: block * scale + mean)

    def fit_transform(self, x: ArrayLike) -> NDArray[Any]:
        """`fit(x)`, then `transform(x)`."""
        return self.fit(x).transform(x)

    def to_data(self) -> dict[str, list[float]]:
        """Mean and scale as lists that JSON keeps exactly."""
        mean, scale = self._fitted()
        return {"mean": mean.tolist(), "scale": scale.tolist()}

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Standardizer:
        """The standardizer that `to_data` wrote; `FormatError` where `data` is none."""
        try:
            mean, scale = (np.array(data[key], dtype=np.float64) for key in ("mean", "scale"))
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError("Expected a dict with lists of numbers under 'mean' and 'scale'.") from error
        if mean.ndim != 1 or mean.shape != scale.shape or mean.size == 0:
            raise FormatError(f"'mean' {mean.shape} and 'scale' {scale.shape}: expected two lists of one length >= 1.")
        if not (np.isfinite(mean).all() and np.isfinite(scale).all() and (scale > 0).all()):
            raise FormatError("'mean' and 'scale' must be finite, and 'scale' above 0.")
        result = cls()
        result._moments = (mean, scale)
        return result

    def __repr__(self) -> str:
        state = "not fitted" if self._moments is None else f"{len(self.mean)} features"
        return f"Standardizer({state})"

    def _fitted(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if self._moments is None:
            raise DataError("This Standardizer has seen no data: call fit(x_train) first.")
        return self._moments

    def _map(self, x: ArrayLike, function: Any) -> NDArray[Any]:
        array = as_host_rows("x", x, min_axes=2)
        if array.shape[-1] != len(self.mean):
            raise ShapeError(f"x {array.shape} has {array.shape[-1]} features, the Standardizer {len(self.mean)}.")
        result = np.empty(array.shape, np.float64 if array.dtype.newbyteorder("=") == np.float64 else np.float32)
        target = result.reshape(-1, array.shape[-1])
        start = 0
        for block in _blocks(_as_table(array)):
            target[start : start + len(block)] = function(block)
            start += len(block)
        return result


def _moments(x_bi: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows, features = x_bi.shape
    total, least, most = np.zeros(features), np.full(features, np.inf), np.full(features, -np.inf)
    for block in _blocks(x_bi):
        total += block.sum(axis=0)
        np.minimum(least, block.min(axis=0), out=least)
        np.maximum(most, block.max(axis=0), out=most)
    wrong = ~(np.isfinite(least) & np.isfinite(most))
    if wrong.any():
        raise DataError(
            f"x has NaN or inf in {wrong.sum()} of {features} features, first in feature {np.argmax(wrong)}; "
            "fill or remove these values before fit."
        )
    width = most - least
    wrong = ~(np.isfinite(total) & np.isfinite(width))
    if wrong.any():
        raise DataError(f"The sum or range of feature {np.argmax(wrong)} overflows float64; divide it before fit.")
    # Extremes rather than the variance tell a constant: the rounded mean of equal values may differ from them.
    constant = width == 0
    width[constant] = 1.0
    mean = np.where(constant, least, total / rows)
    squares = np.zeros(features)
    for block in _blocks(x_bi):
        squares += np.square((block - mean) / width).sum(axis=0)
    return mean, np.where(constant, 1.0, width * np.sqrt(squares / rows))


def _as_table(x: ArrayLike) -> NDArray[Any]:
    array = as_host_rows("x", x, min_axes=2)
    return array.reshape(-1, array.shape[-1])


def _blocks(x_bi: NDArray[Any]) -> Iterator[NDArray[np.float64]]:
    rows = max(1, BLOCK_BYTES // (8 * x_bi.shape[1]))
    for start in range(0, len(x_bi), rows):
        yield x_bi[start : start + rows].astype(np.float64)
