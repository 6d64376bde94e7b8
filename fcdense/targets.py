"""What the losses ask of predictions, targets and weights, which are looked at before anything is computed."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fcdense import changes
from fcdense.conversion import FLOATS, host_array, in_c_order, is_on_gpu, read_on_host
from fcdense.dense import DenseNode
from fcdense.errors import ArgumentError, CaptureError, DataError, DeviceError, DTypeError, ShapeError
from fcdense.precision import widened
from fcdense.tape import needs_grad
from fcdense.tensor import Tensor, placed

Array = NDArray[Any]
Shape = tuple[int, ...]

ROW_SUM = 1e-3
"""How far the probabilities of a row may be from summing to 1: float16 rows of some thousand classes pass."""


def wide(prediction: Any) -> Any:
    """The prediction in the dtype of the loss: float32 for the 16-bit output of mixed precision."""
    return widened(prediction) if isinstance(prediction, Tensor) else prediction


def check(name: str, prediction: Any, target: Any, of_logits: bool) -> None:
    """Refuse a prediction that is no tensor of floats or is empty, a target elsewhere, and probabilities for logits.

    A softmax or sigmoid is seen where the prediction was recorded for its gradient.
    """
    if not isinstance(prediction, Tensor):
        raise ArgumentError(
            f"{name}: the prediction is {type(prediction).__name__}, expected a Tensor. Use fc.tensor()."
        )
    if prediction.dtype not in FLOATS and prediction.dtype.kind != "V":
        raise DTypeError(f"{name}: the prediction is {prediction.dtype}, expected floats. Use .astype('float32').")
    if not prediction.size:
        raise ShapeError(f"{name}: a prediction of shape {prediction.shape} is empty, and its mean has no value.")
    if isinstance(target, Tensor) and target.device != prediction.device:
        raise DeviceError(
            f"{name}: the prediction is on {prediction.device}, the target on {target.device}. "
            f"Move it: target.to('{prediction.device}')."
        )
    made_by = _activation_of(prediction) if of_logits else ""
    if made_by in ("softmax", "log_softmax", "sigmoid"):
        raise ArgumentError(
            f"{name}: the prediction is the result of a {made_by} already. "
            f"Give the layer no activation: {name} takes logits."
        )


def _activation_of(prediction: Tensor) -> str:
    """The name of the operation that computed the values, only moved or cast since; "" where nothing was recorded."""
    node = prediction.node
    while node is not None and node.name in ("reshape", "slice", "transpose", "astype") and node.below:
        node = node.below[0]
    if isinstance(node, DenseNode):
        return node.activation.name
    return "" if node is None else node.name


def beside(prediction: Tensor, target: Any) -> Any:
    """A target that is a CuPy array as a tensor on the prediction's device; any other one as it is.

    A copy for a loss with a gradient: the graph keeps what it is given, and as long as it kept the caller's memory, the
    caller's writes would not wait for what reads it.
    """
    if not is_on_gpu(target):
        return target
    there = placed(target, prediction.device, "target")
    return there.copy() if needs_grad((prediction,)) else there


def numbers(values: Any, what: str) -> Array:
    """A tensor, array or nested list as a NumPy array in C order; nothing is copied where none is needed."""
    if isinstance(values, Tensor):
        values = values.detach().numpy()
    return in_c_order(host_array(values, what))


def matching(target: Any, shape: Shape) -> Array:
    """`target` in the `shape` of the prediction.

    The shapes are equal, or differ by one trailing axis of size 1 on either side: (B, 1) and (B,). Nothing else is
    broadcast: (B, 1) against (B,) would become (B, B).
    """
    array = numbers(target, "target")
    check_matching(array.shape, shape)
    return array.reshape(shape)


def check_matching(given: Shape, shape: Shape) -> None:
    """Refuse targets of the shape `given` for predictions of `shape`: see `matching`."""
    if given == shape or (*given, 1) == shape or given == (*shape, 1):
        return
    raise ShapeError(
        f"prediction has shape {shape}, target {given}; expected equal shapes (one trailing axis of size 1 may "
        "be missing). Nothing is broadcast: reshape the target."
    )


def probabilities(target: Array) -> Array:
    """`target`, every value of which lies in 0..1."""
    wrong = ~((target >= 0) & (target <= 1))
    if wrong.any():
        _refuse(target, wrong, "expected a probability from 0 to 1 (0 and 1 for the two classes)")
    return target


def classes(target: Any, shape: Shape, ignore_index: int | None) -> Array:
    """The target of logits of `shape` (..., K): labels (rows,) in int64, or rows of probabilities (rows, K).

    Labels lie in 0..K-1 or equal `ignore_index`; an array of the shape of the logits holds non-negative rows that sum
    to 1. Everything else is refused with the first row that is wrong, and its value.
    """
    array = _class_numbers(target)
    rows, count = shape[:-1], shape[-1]
    if array.shape == shape:
        if ignore_index is not None:
            raise ArgumentError(
                "ignore_index speaks of class numbers, but the target has rows: give them sample_weight=0."
            )
        return _probability_rows(array)
    if array.shape not in (rows, (*rows, 1)):
        raise ShapeError(
            f"target has shape {array.shape}, the logits {shape}; expected class numbers {rows} or rows of "
            f"probabilities {shape}."
        )
    labels = array.reshape(rows)
    if labels.dtype.kind == "f":
        wrong = np.isnan(labels) if np.isnan(labels).any() else np.ones(rows, np.bool_)
        _refuse(labels, wrong, f"class numbers are integers, not {labels.dtype}: use target.astype('int64')")
    if labels.size and (labels.min() < 0 or labels.max() >= count):
        wrong = (labels < 0) | (labels >= count)
        if ignore_index is not None:
            wrong &= labels != ignore_index
        if wrong.any():
            cure = "" if labels[wrong][0] >= 0 else "; to leave such rows out, pass it as ignore_index"
            _refuse(labels, wrong, f"{count} logits have the classes 0 to {count - 1}{cure}")
    return labels.reshape(-1).astype(np.int64, copy=False)


def ignored_class(ignore_index: Any) -> int | None:
    """The class that `ignore_index` names, or None where it names none."""
    if ignore_index is None:
        return None
    if isinstance(ignore_index, Integral) and not isinstance(ignore_index, bool):
        return int(ignore_index)
    raise ArgumentError(f"ignore_index is {ignore_index!r}, expected an integer or None.")


def stays(target: Any, *options: Any) -> bool:
    """Whether a loss, given these options, computes with the values of `target` where they are.

    It is a tensor on a GPU, which the host does not read more often than it has to, or one whose values are not there
    yet, because a step is being recorded.
    """
    if not isinstance(target, Tensor):
        return False
    backend = target.device.backend
    return backend.is_recording or not (backend.is_host or any(option is not None for option in options))


def _look_at(target: Tensor, check: Callable[[], object], *about: Any) -> None:
    """`check` the values of a target that `stays`, once; in a recording there are none."""
    if not target.device.backend.is_recording:
        target.check_once(check, *about)
    elif changes.witness is not None:
        changes.witness.unchecked = True


def matching_there(target: Tensor, prediction: Tensor, of_logits: bool) -> Tensor:
    """`matching` of a target that `stays`, in the dtype of the prediction."""
    shape = prediction.shape
    check_matching(target.shape, shape)
    if of_logits:
        _look_at(target, lambda: probabilities(matching(target, shape)), "probabilities")
    return _in_c_order(target.detach().reshape(prediction.shape).astype(prediction.dtype))


def classes_there(target: Tensor, prediction: Tensor, options: Mapping[str, Any]) -> tuple[Tensor, float]:
    """(t, scale) as of `class_terms` for a target that `stays`, given none of `options`.

    Raises
    ------
    CaptureError
        An option is given: it needs the values of the target on the host.
    """
    for name, value in options.items():
        if value is not None:
            raise CaptureError(
                f"cross_entropy with {name} looks at its target on the host, which a recorded step cannot do. "
                f"Leave {name} out, or do not capture this step."
            )
    shape = prediction.shape
    _look_at(target, lambda: classes(target, shape, None), "classes", shape)
    rows, count = shape[:-1], shape[-1]
    if target.shape == shape:
        t = _in_c_order(target.detach().reshape(-1, count).astype(wide(prediction).dtype))
    elif target.shape in (rows, (*rows, 1)) and target.dtype.kind != "f":
        t = _in_c_order(target.detach().reshape(-1).astype(np.int64))
    else:
        raise ShapeError(
            f"target has shape {target.shape} and dtype {target.dtype}, the logits {shape}; expected integers {rows} "
            f"or rows of probabilities {shape}."
        )
    return t, 1.0 / t.shape[0]


def _in_c_order(tensor: Tensor) -> Tensor:
    return tensor if tensor.array.flags.c_contiguous else tensor.copy()


def class_weights(given: Sequence[float] | Mapping[int, float], count: int) -> Array:
    """One finite weight >= 0 for each of `count` classes; classes that a mapping leaves out have weight 1."""
    if isinstance(given, Mapping):
        unknown = [c for c in given if isinstance(c, bool) or c not in range(count)]
        if unknown:
            raise ArgumentError(f"class_weight names class {unknown[0]!r}; the {count} classes are 0 to {count - 1}.")
        weights = numbers([given.get(c, 1.0) for c in range(count)], "class_weight").astype(np.float64)
    else:
        weights = numbers(given, "class_weight").astype(np.float64)
    if weights.shape != (count,):
        raise ShapeError(f"class_weight has shape {weights.shape}, expected one weight for each class: ({count},).")
    return _not_negative(weights, "class_weight")


def weights_by_class(
    class_weight: Sequence[float] | Mapping[int, float],
    target: Any,
    shape: Shape,
    sample_weight: Array | None,
    ignore_index: int | None,
) -> Array:
    """The weight of each row of predictions: that of its class (of probabilities the mean), times its sample weight.

    Rows of the class `ignore_index` have weight 0.
    """
    outputs = shape[-1] if len(shape) > 1 else 1
    rows = shape[:-1] if len(shape) > 1 else shape
    if outputs > 1:
        by_class = class_weights(class_weight, outputs)
        t = classes(target, shape, ignore_index)
        if t.ndim == 1 and ignore_index is not None:
            weights: Array = np.where(t == ignore_index, 0.0, by_class[np.where(t == ignore_index, 0, t)])
        else:
            weights = by_class[t] if t.ndim == 1 else t @ by_class
    else:
        by_class = class_weights(class_weight, 2)
        ones = probabilities(matching(target, shape))
        weights = by_class[0] * (1 - ones) + by_class[1] * ones
    weights = weights.reshape(rows)
    if sample_weight is not None:
        weights = weights * trailing(sample_weight, len(rows))
    return weights


def row_weights(given: Any, shape: Shape) -> Array | None:
    """`sample_weight` divided by its maximum: the first axes of `shape`, finite, >= 0, not all zero."""
    if given is None:
        return None
    weights = numbers(given, "sample_weight").astype(np.float64)
    if weights.ndim == 0 or weights.shape != shape[: weights.ndim]:
        raise ShapeError(f"sample_weight has shape {weights.shape}, expected one for each row: {shape[:1]}.")
    top = _not_negative(weights, "sample_weight").max(initial=0.0)
    if not top:
        raise DataError("sample_weight is 0 in every row, so the weighted mean has no value. Leave such a batch out.")
    return np.asarray(weights / top)  # so that it fits float16 and float32


def trailing(weights: Array, ndim: int) -> Array:
    """Weights of leading axes with trailing axes of size 1, `ndim` in all, so that they weigh what lies below."""
    return weights.reshape(*weights.shape, *[1] * (ndim - weights.ndim))


def class_terms(
    target: Any,
    shape: Shape,
    sample_weight: Any,
    ignore_index: int | None,
    label_smoothing: float,
    class_weight: Sequence[float] | Mapping[int, float] | None,
) -> tuple[Array, Array | None, float]:
    """The (t, weight, scale) with which `Backend.softmax_xent` is the `cross_entropy` of logits of `shape` (..., K)."""
    rows, count = shape[:-1], shape[-1]
    t = classes(target, shape, ignore_index)
    weight = row_weights(sample_weight, rows)
    by_class = None if class_weight is None else class_weights(class_weight, count)
    if weight is not None:
        weight = np.broadcast_to(trailing(weight, len(rows)), rows).reshape(-1)
    if ignore_index is not None and (ignored := t == ignore_index).any():
        weight = np.where(ignored, 0.0, 1.0 if weight is None else weight)
        t = np.where(ignored, 0, t)
    worth = np.ones(len(t)) if weight is None else weight
    if by_class is not None:
        worth = worth * (by_class[t] if t.ndim == 1 else t @ by_class)
    if label_smoothing:
        t = (1.0 - label_smoothing) * (np.eye(count)[t] if t.ndim == 1 else t) + label_smoothing / count
    if by_class is not None and t.ndim == 1:
        weight = worth
    elif by_class is not None:
        t = t * by_class
    total = float(worth.sum())
    return t, weight, 1.0 / total if total else 0.0


def _not_negative(weights: Array, what: str) -> Array:
    wrong = ~((weights >= 0) & (weights < math.inf))
    if wrong.any():
        _refuse(weights, wrong, "expected a finite number >= 0", what)
    return weights


def _probability_rows(array: Array) -> Array:
    with np.errstate(invalid="ignore"):
        off = np.abs(array.sum(axis=-1, dtype=np.float64) - 1.0)
        wrong = (~(array >= 0)).any(axis=-1) | ~(off <= ROW_SUM)
    if wrong.any():
        index, place = _first(wrong)
        raise DataError(
            f"target is {reprlib.repr(array[index].tolist())} in {place}; expected probabilities that sum to 1 "
            "(one-hot rows, for example). Class numbers are given without the axis of classes."
        )
    return array.reshape(-1, array.shape[-1])


def _class_numbers(target: Any) -> Array:
    """The target as an array of numbers; text, objects and mixtures are refused by name."""
    if isinstance(target, Tensor):
        return numbers(target, "target")
    try:
        array: Array = read_on_host(target, "target")
    except ValueError:  # a list of items of different lengths
        array = np.array([None] * len(target), object)
        array[:] = list(target)
    if array.dtype.kind in "SUTO":
        for row, item in enumerate(array.reshape(-1).tolist()):
            if np.ndim(item) > 0:
                raise ShapeError(
                    f"target is {item!r} in row {row}, other rows differ in length. Give class numbers in every row, "
                    "or a row of probabilities in every row."
                )
            if not isinstance(item, int):
                raise DTypeError(
                    f"target is {item!r} in row {row}; classes are integers from 0. "
                    "Number them: names, target = np.unique(target, return_inverse=True)."
                )
        return array.astype(np.int64)
    return numbers(target, "target")


def _refuse(array: Array, wrong: Array, expected: str, what: str = "target") -> NoReturn:
    """Name the first wrong value and its row."""
    index, place = _first(wrong)
    raise DataError(f"{what} is {array[index].item()!r} in {place}; {expected}.")


def _first(wrong: Array) -> tuple[tuple[int, ...], str]:
    """The first place that is wrong, and its name; a last axis of length 1 may not have been given."""
    index = tuple(int(i) for i in np.argwhere(wrong)[0])
    axes = index[:-1] if wrong.ndim > 1 and wrong.shape[-1] == 1 else index
    return index, f"row {axes[0]}" if len(axes) == 1 else f"row {axes}" if axes else "its only row"
