"""Functions of tensors beside their methods: softmax and losses, dropout, choices and joins, each with its gradient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fcdense import operations, tape
from fcdense.activate import SoftmaxRows
from fcdense.arena import Array
from fcdense.backends import current_device
from fcdense.backends.base import Backend
from fcdense.conversion import host_array
from fcdense.dense import dense as dense
from fcdense.errors import ArgumentError, ShapeError
from fcdense.operations import AnyTensor, Call, Gradients, Operation
from fcdense.precision import FLOAT32
from fcdense.program import Program, trace
from fcdense.random import random_state
from fcdense.tensor import Tensor, as_tensor, elementwise
from fcdense.variable import ONE

SCALED = trace(lambda slope, dy: slope * dy, 2, name="scaled")


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """exp(x) / sum exp(x) along `axis`, shifted by the maximum. A slice that is all -inf gives NaN."""
    return _along_last(SoftmaxRows(False), x, axis)


def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """x - logsumexp(x) along `axis`."""
    return _along_last(SoftmaxRows(True), x, axis)


def _along_last(operation: Operation, x: Tensor, axis: int) -> Tensor:
    _need_tensor(operation.name, x)
    if not -x.ndim <= axis < x.ndim or x.shape[axis] == 0:
        raise ShapeError(f"{operation.name} over axis {axis} of shape {x.shape}: the axis must exist and not be empty.")
    if axis in (-1, x.ndim - 1):
        return Tensor.apply(operation, x)
    return Tensor.apply(operation, x.swapaxes(axis, -1)).swapaxes(axis, -1)


def logsumexp(x: Tensor, axis: Any = -1, keepdims: bool = False) -> Tensor:
    """log sum exp(x) along `axis`, shifted by the maximum, so that it neither overflows nor loses digits."""
    _need_tensor("logsumexp", x)
    top = x.detach().max(axis, keepdims=True)
    sums = elementwise(_shifted_exp, x, top).sum(axis, keepdims)
    return elementwise(_log_sum, sums, top.reshape(sums.shape))


def _need_tensor(name: str, x: Any) -> None:
    if not isinstance(x, Tensor):
        raise ArgumentError(f"{name} needs a Tensor, given {type(x).__name__}. Make it one: fc.tensor(x).")


def _shifted_exp(x: Any, top: Any) -> Any:
    return np.exp(x - np.where(abs(top) < np.inf, top, 0.0))


def _log_sum(sums: Any, top: Any) -> Any:
    # The maximum alone gives 1; less is left only where every element is -inf, and there `top` decides.
    return np.log(np.maximum(sums, 0.5)) + top


def softmax_cross_entropy(logits: Tensor, target: Array, weight: Array | None, scale: float) -> Tensor:
    """scale * sum_b weight_b * sum_k t_bk (logsumexp(z_b) - z_bk), with its gradient from the same pass.

    `logits` has shape (B, K); `target` holds class numbers or rows t_bk on the logits' device (`Backend.softmax_xent`).
    The result is float32 where they are bfloat16.
    """
    backend = logits.device.backend
    recorded = tape.needs_grad((logits,))
    loss = backend.workspace.empty((), FLOAT32 if logits.dtype.kind == "V" else logits.dtype)
    dz = backend.workspace.empty(logits.shape, logits.dtype) if recorded else None
    backend.softmax_xent(logits.array, target, weight, scale, loss=loss, dz=dz)

    def differentiable() -> Tensor:
        z = logits.astype(loss.dtype)
        rows = target if target.ndim == 2 else np.eye(z.shape[1], dtype=z.dtype)[backend.to_host(target)]
        t = as_tensor(rows, like=z)
        slope = softmax(z) * t.sum(axis=1, keepdims=True) - t
        slope = slope * scale if weight is None else slope * (as_tensor(weight, like=z).reshape(-1, 1) * scale)
        return slope.astype(logits.dtype)

    return _with_gradient("softmax_cross_entropy", loss, logits, dz, differentiable)


def elementwise_loss(
    program: Program,
    prediction: Tensor,
    target: Array,
    weight: Array | None,
    scale: float,
    scalars: Sequence[float] = (),
) -> Tensor:
    """scale * sum weight * l(prediction, target), with its gradient from the same pass.

    `program` is (p, t; scalars) -> (l, dl/dp); `target` has the prediction's shape and dtype, `weight` broadcasts.
    """
    backend = prediction.device.backend
    recorded = tape.needs_grad((prediction,))
    loss = backend.workspace.empty((), prediction.dtype)
    dz = backend.workspace.empty(prediction.shape, prediction.dtype) if recorded else None
    backend.elementwise_loss(program, prediction.array, target, weight, scale, scalars, loss=loss, dz=dz)

    def differentiable() -> Tensor:
        slope_only = Program(program.name, program.n_inputs, program.n_scalars, program.outputs[1:])
        operation = operations.Elementwise(slope_only, tuple(scalars))
        slope = Tensor.apply(operation, prediction, as_tensor(target, like=prediction)) * scale
        return slope if weight is None else slope * as_tensor(weight, like=prediction)

    return _with_gradient(program.name, loss, prediction, dz, differentiable)


def _with_gradient(name: str, loss: Array, prediction: Tensor, dz: Array | None, differentiable: Any) -> Tensor:
    """The scalar tensor `loss`, whose gradient `dz` is known already."""
    out = prediction.derived(loss)
    if dz is not None:
        slope = dz

        def vjp(dy: Tensor) -> tuple[Tensor]:
            if tape.is_recording():
                return (differentiable() * dy,)
            if dy.version is ONE:
                return (dy.derived(slope),)
            product = dy.device.backend.workspace.empty(slope.shape, slope.dtype)
            dy.device.backend.map(SCALED, (slope, dy.array), out=(product,))
            return (dy.derived(product),)

        out.attach(tape.VjpNode(name, (prediction,), vjp, (prediction,)))
    return out


@dataclass(frozen=True, eq=False)
class Dropout(Operation):
    """y = x * mask / (1 - rate), the mask drawn from `stream`."""

    rate: float
    stream: Array
    name: ClassVar[str] = "dropout"
    needs_floats: ClassVar[bool] = True

    def forward(self, backend: Backend, arrays: Sequence[Array]) -> Array:
        (x,) = arrays
        out = backend.workspace.empty(x.shape, x.dtype)
        backend.dropout(x, self.rate, self.stream, out=out)
        return out

    def vjp(self, dy: AnyTensor, call: Call) -> Gradients:
        return (dy.apply(self, dy),)


def dropout(x: Tensor, rate: float) -> Tensor:
    """Each element zero with probability `rate`, else divided by 1 - rate (Srivastava et al., JMLR 2014)."""
    if not 0.0 <= rate < 1.0:
        raise ArgumentError(f"The dropout rate is {rate!r}; expected a number from 0 up to, but not including, 1.")
    if not rate:
        return x
    backend = x.device.backend
    stream = backend.workspace.empty((2,), np.dtype(np.uint64))
    backend.next_stream(random_state().words_on(x.device), out=stream)
    return Tensor.apply(Dropout(rate, stream), x)


def where(condition: Any, x: Any, y: Any) -> Tensor:
    """x where `condition` holds, else y. The condition is a tensor or array of booleans.

    Where x and y are two numbers, the result is float32.
    """
    like = next((v for v in (x, y) if isinstance(v, Tensor)), None)
    if like is None:
        on = condition.device if isinstance(condition, Tensor) else current_device()
        like = Tensor(np.empty((), np.float32), on)
    flags = condition
    if not isinstance(condition, Tensor):
        flags = like.derived(like.device.backend.from_host(host_array(condition, "the condition").astype(np.bool_)))
    return elementwise(_select, flags, as_tensor(x, like=like), as_tensor(y, like=like))


def _select(condition: Any, x: Any, y: Any) -> Any:
    return np.where(condition != 0.0, x, y)


def clip(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    """x held between `low` and `high`; at a bound the gradient is 0."""
    if not any(isinstance(given, Tensor) for given in (x, low, high)):
        _need_tensor("clip", x)
    x = x if low is None else elementwise(np.maximum, x, low)
    return x if high is None else elementwise(np.minimum, x, high)


def concatenate(tensors: Iterable[Any], axis: int = 0) -> Tensor:
    """The tensors one after another along an axis that they have."""
    parts = _parts("concatenate", tensors)
    ndim = parts[0].ndim
    if not -ndim <= axis < ndim:
        raise ShapeError(f"concatenate along axis {axis}: the tensors have {ndim} axes.")
    return Tensor.apply(operations.Concatenate(axis % ndim), *parts)


def stack(tensors: Iterable[Any], axis: int = 0) -> Tensor:
    """Tensors of one shape along a new axis."""
    parts = _parts("stack", tensors)
    ndim = parts[0].ndim + 1
    if any(p.shape != parts[0].shape for p in parts) or not -ndim <= axis < ndim:
        raise ShapeError(f"stack along axis {axis} needs equal shapes; got {', '.join(str(p.shape) for p in parts)}.")
    place = axis % ndim
    shape = (*parts[0].shape[:place], 1, *parts[0].shape[place:])
    return concatenate([p.reshape(shape) for p in parts], axis=place)


def _parts(name: str, given: Iterable[Any]) -> list[Tensor]:
    tensors = list(given)
    like = next((t for t in tensors if isinstance(t, Tensor)), None)
    if like is None:
        raise ArgumentError(f"{name} needs at least one Tensor; for arrays alone use np.{name}.")
    return [as_tensor(t, like=like) for t in tensors]


Tensor.array_functions.update(
    {
        np.where: where,
        np.clip: clip,
        np.concatenate: concatenate,
        np.stack: stack,
        np.sum: Tensor.sum,
        np.mean: Tensor.mean,
        np.max: Tensor.max,
        np.min: Tensor.min,
        np.reshape: Tensor.reshape,
        np.transpose: Tensor.transpose,
        np.swapaxes: Tensor.swapaxes,
    }
)
