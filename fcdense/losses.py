"""Losses: `loss(prediction, target, sample_weight=None, **options)`, a tensor of shape ().

Each is a mean over elements (cross entropy: over rows). With `sample_weight` w it is the weighted mean
``sum(w * l) / sum(w)``; w is finite, >= 0 and not all zero, and has the first axes of the prediction's shape: (B,), or
one more axis for each further axis of rows. Targets are arrays, lists or tensors of the prediction's shape (one
trailing axis of size 1 may be missing on either side; nothing is broadcast) and are cast to its dtype. All
are checked before anything is computed: `ShapeError`, `DTypeError`, or `DataError` with the row and the value.
NaN and infinities of the prediction reach the loss, also from rows of weight 0.

A loss on each element is one entry of the table: a function of (p, t, *scalars) under `elementwise`. Its value and
slope become one pass over memory on every backend. Any other function of tensors works as a loss too (`get`).
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, update_wrapper
from typing import Any

import numpy as np

from fcdense import ops, tape, targets
from fcdense.errors import ArgumentError, ShapeError, unknown_name
from fcdense.expression import array_var, derive
from fcdense.math import log_sigmoid
from fcdense.operations import Elementwise
from fcdense.program import Program, trace
from fcdense.targets import Array, Shape
from fcdense.tensor import Tensor, as_tensor

TABLE: dict[str, Callable[..., Tensor]] = {}
"""Every loss that has a name."""


class ElementwiseLoss:
    """The mean of l(p, t) over all elements, p and t in one shape; `elementwise` makes it.

    Attributes
    ----------
    options : dict
        Names and defaults of the scalars, which are finite numbers > 0.
    value : Program
        (p, t; scalars) -> l.
    program : Program
        (p, t; scalars) -> (l, dl/dp).
    of_logits : bool
        Whether p is the logit of a probability t, so that t lies in 0..1.
    """

    __name__: str

    def __init__(self, fn: Callable[..., Any], of_logits: bool) -> None:
        update_wrapper(self, fn)
        parameters = list(inspect.signature(fn).parameters.values())
        scalars = parameters[2:]
        if len(parameters) < 2 or any(not isinstance(scalar.default, numbers.Real) for scalar in scalars):
            raise ArgumentError(f"Loss {self.__name__!r}: expected a function (p, t, *scalars), each with a default.")
        self.options = {scalar.name: scalar.default for scalar in scalars}
        common = list(inspect.signature(self.__call__).parameters.values())[:3]
        options = [scalar.replace(kind=inspect.Parameter.KEYWORD_ONLY) for scalar in scalars]
        self.__signature__ = inspect.Signature([*common, *options])
        self.value = trace(fn, 2, len(self.options))
        slope = derive(self.value.outputs[0], array_var(0))
        self.program = Program(self.__name__, 2, len(self.options), (*self.value.outputs, slope))
        self.of_logits = of_logits

    def __repr__(self) -> str:
        return f"<loss {self.__name__}>"

    def __reduce__(self) -> str:
        return self.__name__

    def __call__(self, prediction: Tensor, target: Any, sample_weight: Any = None, **options: float) -> Tensor:
        scalars = self._scalars(options)
        prediction = targets.wide(prediction)
        targets.check(self.__name__, prediction, target, self.of_logits)
        target = targets.beside(prediction, target)
        if sample_weight is None and targets.stays(target) and not tape.needs_grad((target,)):
            array = targets.matching_there(target, prediction, self.of_logits).array
            return ops.elementwise_loss(self.program, prediction, array, None, 1.0 / prediction.size, scalars)
        array = targets.matching(target, prediction.shape)
        if self.of_logits:
            targets.probabilities(array)
        weight, scale = targets.row_weights(sample_weight, prediction.shape), 1.0 / prediction.size
        if weight is not None:
            scale = weight.size / (prediction.size * float(weight.sum()))
            weight = _beside(prediction, targets.trailing(weight, prediction.ndim))
        if isinstance(target, Tensor) and tape.needs_grad((target,)):
            terms: Tensor = Tensor.apply(Elementwise(self.value, scalars), prediction, target.reshape(prediction.shape))
            return (terms if weight is None else terms * as_tensor(weight, like=terms)).sum() * scale
        return ops.elementwise_loss(self.program, prediction, _beside(prediction, array), weight, scale, scalars)

    def _scalars(self, given: Mapping[str, float]) -> tuple[float, ...]:
        for key, value in given.items():
            if key not in self.options:
                unknown_name(f"option of {self.__name__}", key, self.options)
            if not (isinstance(value, numbers.Real) and 0.0 < value < math.inf):
                raise ArgumentError(f"{self.__name__}: {key} is {value!r}, expected a finite number > 0.")
        return tuple(float(given.get(key, default)) for key, default in self.options.items())


def elementwise(*aliases: str, of_logits: bool = False) -> Callable[[Callable[..., Any]], ElementwiseLoss]:
    """Decorate a function of (p, t, *scalars with defaults) to make it a loss, known by its name and `aliases`.

    It is written with operators, NumPy's elementwise functions and `fcdense.math`; its slope is derived.

    Raises
    ------
    ArgumentError, TraceError
        A loss of this name exists, or the function is not elementwise.

    Examples
    --------
    >>> @fc.losses.elementwise()
    ... def log_cosh(p, t):
    ...     return np.log(np.cosh(p - t))
    """

    def define(fn: Callable[..., Any]) -> ElementwiseLoss:
        loss = ElementwiseLoss(fn, of_logits)
        _register(loss, loss.__name__, *aliases)
        return loss

    return define


def _register(loss: Any, *names: str) -> None:
    for name in names:
        if name in TABLE:
            raise ArgumentError(f"A loss named {name!r} exists already. Choose another name.")
    TABLE.update(dict.fromkeys(names, loss))


# ---- the table -------------------------------------------------------------------------------------------------------


@elementwise("mse")
def mean_squared_error(p: Any, t: Any) -> Any:
    """l = (p - t)^2."""
    return (p - t) ** 2


@elementwise("mae")
def mean_absolute_error(p: Any, t: Any) -> Any:
    """l = |p - t|; its slope at p = t is 0."""
    return abs(p - t)


@elementwise()
def huber(p: Any, t: Any, delta: float = 1.0) -> Any:
    """l = (p - t)^2 / 2 where |p - t| <= delta, else delta (|p - t| - delta / 2).

    Source: P. Huber (1964), Robust estimation of a location parameter, Annals of Mathematical Statistics 35.
    """
    error = p - t
    return np.where(abs(error) <= delta, 0.5 * error**2, delta * (abs(error) - 0.5 * delta))


@elementwise(of_logits=True)
def binary_cross_entropy_with_logits(p: Any, t: Any, pos_weight: float = 1.0) -> Any:
    """l = -(pos_weight t log σ(p) + (1 - t) log σ(-p)), the target t a probability (0 or 1 for two classes).

    With ``pos_weight=1`` this is max(p, 0) - p t + log(1 + exp(-|p|)): finite, with all its digits, for every finite p.
    """
    return -(pos_weight * t * log_sigmoid(p) + (1.0 - t) * log_sigmoid(-p))


mse = mean_squared_error
mae = mean_absolute_error


def cross_entropy(
    prediction: Tensor,
    target: Any,
    sample_weight: Any = None,
    *,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    class_weight: Sequence[float] | Mapping[int, float] | None = None,
) -> Tensor:
    """Cross entropy between classes and the softmax of logits, the mean over rows b of -sum_k t_bk log softmax(z_b)_k.

    With smoothing ε, class weights v and sample weights w, and t_bk = 1 where k is the class of row b::

        sum_b w_b sum_k v_k ((1 - ε) t_bk + ε / K) (logsumexp(z_b) - z_bk)  /  sum_b w_b sum_k v_k t_bk

    as in PyTorch, which however divides by the number of rows where the target has rows of probabilities; here one-hot
    rows are worth the same as their class numbers.

    Parameters
    ----------
    prediction : Tensor, shape (..., K), K >= 2
        Logits z, before any softmax.
    target : integers of shape (...) or (..., 1), or rows of probabilities of shape (..., K)
        Classes 0 to K - 1; one-hot rows, or any rows >= 0 that sum to 1.
    sample_weight : array, shape (...), optional
    ignore_index : int, optional
        Rows of this class count for nothing. Where every row does, the loss and its gradient are 0.
    label_smoothing : float
        0 <= ε <= 1.
    class_weight : sequence of K numbers, or {class: number}, optional
        v, finite and >= 0. Classes that a mapping leaves out have weight 1.

    Raises
    ------
    ArgumentError
        The prediction is the result of a softmax or sigmoid, or an option is out of range.
    DataError, DTypeError, ShapeError
        The target or a weight is wrong; the message has the first wrong row and its value.

    Notes
    -----
    A logit -inf adds nothing where t_bk = 0, and makes the loss infinite elsewhere. A target that is a tensor on a GPU
    is looked at once, and again when it was written; class numbers out of range that CuPy writes into its memory later
    make the loss NaN.
    Source of the smoothing: C. Szegedy et al. (2016), Rethinking the Inception architecture, CVPR, section 7.
    """
    targets.check("cross_entropy", prediction, target, of_logits=True)
    target = targets.beside(prediction, target)
    if prediction.shape[-1:] < (2,):
        raise ShapeError(
            f"cross_entropy: logits of shape {prediction.shape}; expected (..., K) with K >= 2 classes. "
            "For one output per row use binary_cross_entropy_with_logits."
        )
    if not (isinstance(label_smoothing, numbers.Real) and 0.0 <= label_smoothing <= 1.0):
        raise ArgumentError(f"label_smoothing is {label_smoothing!r}, expected a number from 0 to 1.")
    if isinstance(target, Tensor) and tape.needs_grad((target,)):
        raise ArgumentError("cross_entropy has no gradient for its target; pass target.detach().")
    # Logits of bfloat16 beside classes are taken as they are. float16 needs its scale before a gradient is rounded.
    z = prediction if prediction.dtype.kind == "V" else targets.wide(prediction)
    logits = z.reshape(-1, prediction.shape[-1])
    options = {
        "sample_weight": sample_weight,
        "ignore_index": targets.ignored_class(ignore_index),
        "label_smoothing": label_smoothing or None,
        "class_weight": class_weight,
    }
    if targets.stays(target, *options.values()):
        there, scale = targets.classes_there(target, prediction, options)
        logits = logits if there.ndim == 1 else targets.wide(logits)
        return ops.softmax_cross_entropy(logits, there.array, None, scale)
    t, weight, scale = targets.class_terms(
        target, prediction.shape, sample_weight, ignore_index, label_smoothing, class_weight
    )
    if t.ndim == 1 and weight is None:
        return ops.softmax_cross_entropy(logits, prediction.device.backend.from_host(t), None, scale)
    logits = targets.wide(logits)
    t = prediction.device.backend.from_host(t) if t.ndim == 1 else _beside(logits, t)
    return ops.softmax_cross_entropy(logits, t, None if weight is None else _beside(logits, weight), scale)


_register(cross_entropy, "cross_entropy")


@dataclass(frozen=True)
class Loss:
    """A loss with its name; `get` makes it. Called like the function, whose result it checks."""

    function: Callable[..., Tensor]
    name: str
    takes_weights: bool

    def __repr__(self) -> str:
        return f"<loss {self.name}>"

    @property
    def target_check(self) -> Callable[[Shape, Callable[[], Array], Shape], object] | None:
        """What refuses wrong targets as the loss does, given their shape, what reads them, and the predictions' shape.

        None for a function that is not in `TABLE`: what it takes is not known.
        """
        function = _inner(self.function)
        if function is cross_entropy:
            return self._check_classes
        if not isinstance(function, ElementwiseLoss):
            return None
        if not function.of_logits:
            return lambda given, read, shape: targets.check_matching(given, shape)
        return lambda given, read, shape: targets.probabilities(targets.matching(read(), shape))

    def _check_classes(self, given: Shape, read: Callable[[], Array], shape: Shape) -> None:
        if len(shape) > 1 and shape[-1] > 1:  # else the loss refuses the prediction
            targets.classes(read(), shape, self.ignore_index)

    @property
    def ignore_index(self) -> int | None:
        """The class whose rows count for nothing: an option of `cross_entropy`."""
        options = self.function.keywords if isinstance(self.function, partial) else {}
        return targets.ignored_class(options.get("ignore_index") if _inner(self.function) is cross_entropy else None)

    def __call__(self, prediction: Tensor, target: Any, sample_weight: Any = None) -> Tensor:
        if _inner(self.function) not in TABLE.values():  # those there widen it themselves
            prediction = targets.wide(prediction)
        if sample_weight is None:
            loss = self.function(prediction, target)
        elif self.takes_weights:
            loss = self.function(prediction, target, sample_weight=sample_weight)
        else:
            raise ArgumentError(
                f"Loss {self.name!r} cannot weigh rows, but sample or class weights are given. "
                "Give it a third parameter named sample_weight."
            )
        if not isinstance(loss, Tensor):
            raise ArgumentError(
                f"Loss {self.name!r} returned {type(loss).__name__}, expected a Tensor. Compute with the prediction "
                "itself, not with its .numpy(): the loss is to be differentiated."
            )
        if loss.shape:
            raise ShapeError(f"Loss {self.name!r} returned shape {loss.shape}, expected (). End it with .mean().")
        return loss


def get(spec: str | Callable[..., Tensor]) -> Loss:
    """The loss that `spec` means.

    Parameters
    ----------
    spec : str or callable
        A name in `TABLE`, or a function (prediction, target) -> tensor of shape () made of operations on tensors. It is
        given weights if it has a parameter named ``sample_weight``. For other options of a named loss pass
        ``functools.partial(fc.losses.huber, delta=2.0)``.

    Raises
    ------
    ArgumentError
        No loss has this name (`UnknownNameError`), or it cannot be called with (prediction, target).
    """
    if isinstance(spec, Loss):
        return spec
    if isinstance(spec, str):
        return Loss(TABLE[spec], spec, True) if spec in TABLE else unknown_name("loss", spec, TABLE)
    try:
        signature = inspect.signature(spec)
        signature.bind(None, None)
    except (TypeError, ValueError) as error:  # ValueError: compiled code that does not tell its signature
        expected = "expected a name or a function of (prediction, target[, sample_weight])"
        raise ArgumentError(f"Loss {spec!r}: {expected}; {error}.") from None
    inner = _inner(spec)
    return Loss(spec, getattr(inner, "__name__", type(inner).__name__), "sample_weight" in signature.parameters)


def _inner(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function without the options that were fixed beforehand."""
    return function.func if isinstance(function, partial) else function


def _beside(prediction: Tensor, array: Any) -> Any:
    """A host array on the prediction's device, in its dtype."""
    return prediction.device.backend.from_host(np.asarray(array, prediction.dtype))
