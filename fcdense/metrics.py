"""Metrics: streaming measures of a prediction against its target.

``metric.update(prediction, target, sample_weight)`` per batch, ``metric.result()`` at any time, ``metric.reset()``. The
result over batches of any sizes is that over the whole arrays; sums are kept in float64. Arrays may be NumPy arrays,
lists, or tensors with a ``.numpy()`` method. The last axis holds the O outputs, all axes before it are rows; a weight
per row has the shape of the rows. With no rows, or a total weight of 0, the result is NaN. A NaN in a row's prediction
(for regression: or target) makes the result NaN. An `update` that raises has changed nothing.
"""

from __future__ import annotations

import math
import re
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcdense.conversion import read_on_host
from fcdense.errors import ArgumentError, DataError, DTypeError, ShapeError, unknown_name
from fcdense.precision import widened
from fcdense.targets import ignored_class, trailing

Array = NDArray[Any]


class Metric(ABC):
    """Base of the metrics; `name` is the key under which a result is logged."""

    name: str

    def __init__(self) -> None:
        self.reset()

    @abstractmethod
    def reset(self) -> None:
        """Forget every row."""

    @abstractmethod
    def update(self, prediction: Any, target: Any, sample_weight: Any = None) -> None:
        """Add the rows of one batch; raises `ShapeError`, `DTypeError` or `DataError`.

        For regression a last axis of size 1 may be left out on either side; each class says what targets it takes.
        """

    @abstractmethod
    def result(self) -> float:
        """Return the value over all rows since the last reset."""


class RowMean(Metric):
    """Base of the metrics that are a weighted mean over rows: ``sum_b w_b v_b / sum_b w_b``.

    To write one, set `name` and define `per_row`.
    """

    def reset(self) -> None:
        self._total = self._weight = 0.0

    @abstractmethod
    def per_row(self, prediction: Array, target: Array) -> Array:
        """Return one value for each row, of the shape of the rows."""

    def update(self, prediction: Any, target: Any, sample_weight: Any = None) -> None:
        with np.errstate(invalid="ignore", over="ignore"):
            values = self.per_row(_numbers(prediction, "prediction"), _numbers(target, "target"))
            weights = _weights(sample_weight, values.shape)
            self._total += float(np.sum(weights * values))
        self._weight += float(np.sum(weights))

    def result(self) -> float:
        return self._total / self._weight if self._weight else math.nan


class ClassShare(RowMean):
    """Base of the metrics that are a share of rows, each of which belongs to a class.

    Rows of the class `ignore_index`, an integer or None, count for nothing.
    """

    def __init__(self, ignore_index: int | None = None) -> None:
        self.ignore_index = ignored_class(ignore_index)
        super().__init__()

    def update(self, prediction: Any, target: Any, sample_weight: Any = None) -> None:
        if self.ignore_index is not None:
            prediction, labels = _numbers(prediction, "prediction"), _numbers(target, "target")
            shape = prediction.shape
            rows = shape[:-1] if len(shape) > 1 else shape
            if labels.shape == shape and labels.ndim > 1 and shape[-1] > 1:
                raise ArgumentError(
                    f"{self.name}: ignore_index speaks of class numbers, but the target has rows: give them "
                    "sample_weight=0."
                )
            if labels.shape in (rows, (*rows, 1)):
                labels = labels.reshape(rows)
                is_ignored = labels == self.ignore_index
                target = np.where(is_ignored, 0, labels)
                sample_weight = np.where(is_ignored, 0.0, _weights(sample_weight, rows))
        super().update(prediction, target, sample_weight)


class Accuracy(ClassShare):
    """Share of rows whose class is the predicted one.

    With O >= 2 outputs the prediction is the largest one (the first of equals), and the target holds integer class
    labels, shape (...) or (..., 1), or one row of class probabilities per row (one-hot, or smoothed: the largest
    counts), shape (..., O). With one output, shape (..., 1) or (B,), class 1 is predicted where ``output > threshold``
    and the target is 0 or 1. Predictions are logits; for probabilities of one output set ``threshold=0.5``. Rows of
    the class `ignore_index` count for nothing.
    """

    name = "accuracy"

    def __init__(self, threshold: float = 0.0, *, ignore_index: int | None = None) -> None:
        if not math.isfinite(threshold):
            raise ArgumentError(f"Accuracy: threshold is {threshold!r}, expected a finite number.")
        self.threshold = float(threshold)
        super().__init__(ignore_index)

    def per_row(self, prediction: Array, target: Array) -> Array:
        scores = _scores(prediction)
        if scores.shape[-1] == 1:
            hits = (scores[..., 0] > self.threshold) == _labels(target, scores.shape, 2)
        else:
            hits = np.argmax(scores, axis=-1) == _labels(target, scores.shape, scores.shape[-1])
        return np.where(np.isnan(scores).any(axis=-1), np.nan, hits)


class TopK(ClassShare):
    """Share of rows whose class is among the `k` largest of O >= k outputs; ``TopK(1)`` is `Accuracy`.

    Among equal outputs the lower class comes first, so that constant outputs score no better than a guess.
    Targets and `ignore_index` as for `Accuracy` with O >= 2.
    """

    def __init__(self, k: int, *, ignore_index: int | None = None) -> None:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ArgumentError(f"TopK: k is {k!r}, expected an integer >= 1.")
        self.k = k
        self.name = f"top_{k}"
        super().__init__(ignore_index)

    def per_row(self, prediction: Array, target: Array) -> Array:
        scores = _scores(prediction)
        classes = scores.shape[-1]
        if classes < max(self.k, 2):
            raise ShapeError(f"{self.name}: prediction {prediction.shape} has {classes} classes, too few.")
        labels = _labels(target, scores.shape, classes)[..., np.newaxis]
        own = np.take_along_axis(scores, labels, axis=-1)
        before = (scores > own) | ((scores == own) & (np.arange(classes) < labels))
        return np.where(np.isnan(scores).any(axis=-1), np.nan, before.sum(axis=-1) < self.k)


class MeanSquaredError(RowMean):
    """``mean((prediction - target)**2)`` over all elements, each row weighted."""

    name = "mse"

    def per_row(self, prediction: Array, target: Array) -> Array:
        p, y = _paired(prediction, target)
        return np.asarray(np.mean(np.square(p - y), axis=-1))


class RootMeanSquaredError(MeanSquaredError):
    """``sqrt(mean((prediction - target)**2))`` over all elements, each row weighted."""

    name = "rmse"

    def result(self) -> float:
        return math.sqrt(super().result())


class MeanAbsoluteError(RowMean):
    """``mean(|prediction - target|)`` over all elements, each row weighted."""

    name = "mae"

    def per_row(self, prediction: Array, target: Array) -> Array:
        p, y = _paired(prediction, target)
        return np.asarray(np.mean(np.abs(p - y), axis=-1))


class R2Score(Metric):
    """Coefficient of determination, the mean over outputs of ``1 - sum_b w (y - p)**2 / sum_b w (y - mean(y))**2``.

    A constant target gives 1 where every prediction is exact, else 0; fewer than two rows (of weight > 0) give NaN.

    Source of the streaming sums: Chan, Golub & LeVeque 1979; taken about the first target, an offset costs no digits.
    """

    name = "r2"

    def reset(self) -> None:
        self._rows = 0
        self._weight = 0.0
        self._origin: Array | None = None  # the first target row; mean and spread are those of target - origin
        self._mean = self._spread = self._residual = np.zeros(1)  # take on the number of outputs by broadcasting

    def update(self, prediction: Any, target: Any, sample_weight: Any = None) -> None:
        p, y = _paired(_numbers(prediction, "prediction"), _numbers(target, "target"))
        w = _weights(sample_weight, y.shape[:-1]).reshape(-1, 1)
        weight = float(np.sum(w))
        if not weight:
            return
        p, y = p.reshape(len(w), -1), y.reshape(len(w), -1)
        origin = y[0].copy() if self._origin is None else self._origin
        if origin.shape != y.shape[1:]:
            raise ShapeError(f"r2: target has {y.shape[1]} outputs, the batches before had {origin.size}.")
        with np.errstate(invalid="ignore", over="ignore"):
            shifted = y - origin
            mean = np.sum(w * shifted, axis=0) / weight
            step = mean - self._mean
            total = self._weight + weight
            self._spread = self._spread + np.sum(w * np.square(shifted - mean), axis=0)
            self._spread += np.square(step) * (self._weight * weight / total)
            self._mean = self._mean + step * (weight / total)
            self._residual = self._residual + np.sum(w * np.square(y - p), axis=0)
        self._rows += int(np.count_nonzero(w))
        self._weight, self._origin = total, origin

    def result(self) -> float:
        if self._rows < 2:
            return math.nan
        with np.errstate(invalid="ignore", over="ignore"):
            ratio = np.divide(self._residual, self._spread, out=np.sign(self._residual), where=self._spread != 0)
        return float(np.mean(1.0 - ratio))


class Custom(RowMean):
    """A user's function ``fn(prediction, target) -> scalar`` of one batch, averaged by the batches' numbers of rows.

    `fn` is given NumPy arrays. The result is that over the whole arrays only where `fn` is itself a mean over rows.
    Row weights are refused, since `fn` cannot see them: write a `RowMean` instead.
    """

    def __init__(self, fn: Callable[[Array, Array], Any]) -> None:
        self.fn = fn
        self.name = getattr(fn, "__name__", type(fn).__name__)
        super().__init__()

    def update(self, prediction: Any, target: Any, sample_weight: Any = None) -> None:
        if sample_weight is not None:
            raise ArgumentError(f"Metric {self.name!r} is a function and cannot weigh rows. Subclass metrics.RowMean.")
        super().update(prediction, target)

    def per_row(self, prediction: Array, target: Array) -> Array:
        rows = prediction.shape[:-1] or prediction.shape
        if 0 in rows:
            return np.zeros(rows)
        found = self.fn(prediction, target)
        value = read_on_host(found, f"The result of metric {self.name!r}")
        if not _is_real(value):
            raise DTypeError(f"Metric {self.name!r} returned {reprlib.repr(found)}, expected one real number.")
        if value.size != 1:
            raise ShapeError(f"Metric {self.name!r} returned the shape {value.shape}, expected one number.")
        return np.full(rows, value.astype(np.float64).item())


TABLE: Mapping[str, type[Metric]] = {
    kind.name: kind for kind in (Accuracy, MeanSquaredError, RootMeanSquaredError, MeanAbsoluteError, R2Score)
}


def get(spec: str | Metric | type[Metric] | Callable[[Array, Array], Any]) -> Metric:
    """Return the metric that `spec` means.

    `spec` is a name in `TABLE` or ``"top_<k>"``, a metric, its class, or a function of (prediction, target) (`Custom`).
    """
    if isinstance(spec, str):
        if top := re.fullmatch(r"top_([1-9][0-9]*)", spec):
            return TopK(int(top[1]))
        return TABLE[spec]() if spec in TABLE else unknown_name("metric", spec, [*TABLE, "top_5"])
    if isinstance(spec, Metric):
        return spec
    if callable(spec):
        return spec() if isinstance(spec, type) and issubclass(spec, Metric) else Custom(spec)
    raise ArgumentError(f"Metric {spec!r}: expected a name, a Metric or a function of (prediction, target).")


def several(specs: Sequence[Any]) -> list[Metric]:
    """The metrics that a list of names, metrics and functions means, each with a name of its own beside the loss.

    Raises
    ------
    ArgumentError
        It is no list, or two metrics have one name.
    """
    if isinstance(specs, str) or not isinstance(specs, Sequence):
        raise ArgumentError(f"metrics is {specs!r}; expected a list, such as ['accuracy'].")
    made = [get(spec) for spec in specs]
    names = ["loss", *(metric.name for metric in made)]
    for name in names:
        if names.count(name) > 1:
            raise ArgumentError(f"Two numbers would be called {name!r}; give each metric a name of its own.")
    return made


def _is_real(array: Array) -> bool:
    # NumPy has no bfloat16 of its own: ml_dtypes registers it with the kind of a record.
    return array.dtype.kind in "fiub" or bool(array.dtype.name == "bfloat16")


def _numbers(values: Any, what: str) -> Array:
    array = values.numpy() if hasattr(values, "numpy") else read_on_host(values, what)
    if not _is_real(array):
        raise DTypeError(f"{what} has dtype {array.dtype}, expected real numbers (classes as integers 0, 1, ...).")
    if array.ndim == 0 or (array.ndim > 1 and array.shape[-1] == 0):
        raise ShapeError(f"{what} has the shape {array.shape}, expected (B,) or (..., O) with O >= 1.")
    return np.asarray(widened(array))


def _scores(prediction: Array) -> Array:
    if prediction.dtype.kind in "iub":
        raise DTypeError(f"prediction has dtype {prediction.dtype}, expected the model's outputs, not classes.")
    return np.asarray(prediction[:, np.newaxis] if prediction.ndim == 1 else prediction, dtype=np.float64)


def _labels(target: Array, scores: tuple[int, ...], classes: int) -> Array:
    """Return int64 labels, of the shape of the rows, of a target given for outputs of the shape `scores`."""
    rows = scores[:-1]
    if target.shape == scores and scores[-1] > 1:
        probabilities = target.astype(np.float64)
        if not (np.all(probabilities >= 0) and np.all(np.abs(probabilities.sum(axis=-1) - 1.0) <= 1e-3)):
            raise DataError("target is not one-hot. For independent labels give prediction and target as (B, 1).")
        return np.asarray(np.argmax(probabilities, axis=-1))
    if target.shape not in (rows, (*rows, 1)):
        one_hot = f" or one-hot {scores}" if scores[-1] > 1 else ""
        raise ShapeError(f"target has the shape {target.shape}, expected labels {rows}{one_hot} for outputs {scores}.")
    values = target.astype(np.float64).reshape(rows)
    bad = ~((values >= 0) & (values < classes) & (values == np.floor(values)))
    if bad.any():
        cure = " To leave such rows out, pass it as ignore_index." if values[bad][0] < 0 else ""
        raise DataError(f"target holds the class {values[bad][0]:g}, expected the integers 0 to {classes - 1}.{cure}")
    return values.astype(np.int64)


def _paired(prediction: Array, target: Array) -> tuple[Array, Array]:
    """Return both in float64 with one shape (..., O)."""
    p, y = prediction.astype(np.float64), target.astype(np.float64)
    if y.ndim == 1 or y.ndim < p.ndim:
        y = y[..., np.newaxis]
    if p.ndim < y.ndim:
        p = p[..., np.newaxis]
    if p.shape != y.shape:
        raise ShapeError(f"prediction {prediction.shape} and target {target.shape} have different shapes.")
    return p, y


def _weights(sample_weight: Any, rows: tuple[int, ...]) -> Array:
    if sample_weight is None:
        return np.ones(rows)
    weights = _numbers(sample_weight, "sample_weight").astype(np.float64)
    if weights.ndim == 0 or weights.shape != rows[: weights.ndim]:
        raise ShapeError(f"sample_weight has the shape {weights.shape}, expected one weight per row: {rows}.")
    weights = np.broadcast_to(trailing(weights, len(rows)), rows)
    bad = ~((weights >= 0) & np.isfinite(weights))
    if bad.any():
        raise DataError(f"sample_weight holds {weights[bad][0]:g}, expected finite numbers >= 0.")
    return weights
