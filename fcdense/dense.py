"""The dense layer as one operation: its forward pass, its fused backward pass, and the same in recorded operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from fcdense import activations, changes, operations, tape
from fcdense.activation import Activation
from fcdense.arena import Array
from fcdense.backends import Device
from fcdense.backends.base import Backend, Mode
from fcdense.errors import DeviceError, DTypeError, ShapeError
from fcdense.parameter import Parameter
from fcdense.precision import FLOAT32, FLOAT_KINDS, current_precision, is_mixed, operand_dtype
from fcdense.tensor import Tensor

LINEAR = activations.linear


def dense(x: Tensor, w: Tensor, b: Tensor | None = None, activation: Activation = LINEAR) -> Tensor:
    """y = f(x @ w + b), one fused primitive; its gradient is fused as well.

    Parameters
    ----------
    x : Tensor, shape (..., I)
    w : Tensor, shape (I, O)
    b : Tensor, shape (O,), or None
    activation : Activation
        f, elementwise.

    Returns
    -------
    Tensor, shape (..., O)

    Raises
    ------
    ShapeError
        The last axis of x is not the first of w, or b is not as long as the last of w.
    DTypeError, DeviceError
        The operands do not share one dtype and one device; the device has no mixed precision.

    Notes
    -----
    In mixed precision (`fcdense.use_precision`), with a float32 w, x and a copy of w are rounded to 16 bits, as is y.
    """
    x_bi, w_io, b_o = x.array, w.array, None if b is None else b.array
    features, shape = x_bi.shape, w_io.shape
    if not features or len(shape) != 2 or features[-1] != shape[0]:
        raise ShapeError(
            f"dense: x of shape {features} does not fit a kernel of shape {shape}; expected (..., I), (I, O)."
        )
    if b_o is not None and b_o.shape != shape[1:]:
        raise ShapeError(f"dense: a bias of shape {b_o.shape} does not fit a kernel of shape {shape}; expected (O,).")
    inputs = (x, w) if b is None else (x, w, b)
    dtype = operand_dtype(w_io.dtype)
    is_rounded = dtype != w_io.dtype
    for other in inputs[1:]:
        _check_alike(x, other, "kernel" if other is w else "bias", is_rounded)
    if is_mixed(w_io.dtype):
        check_precision(lambda: "dense", x.device)
    if is_rounded:
        x, w_io = x.astype(dtype), _rounded(w, dtype)
        x_bi, inputs = x.array, (x, *inputs[1:])
    changes.note_use(inputs)
    backend = x.device.backend
    recorded = tape.needs_grad(inputs)
    x_bi = _rows(backend, x_bi)
    out = backend.workspace.empty((x_bi.shape[0], shape[1]), dtype)
    aux = backend.workspace.empty(out.shape, dtype) if recorded and activation.aux == "derivative" else None
    backend.dense(x_bi, w_io, b_o, activation, out=out, aux=aux)
    y = x.derived(out if len(features) == 2 else out.reshape(*features[:-1], shape[1]))
    if recorded:
        y.attach(DenseNode(inputs, activation, y, aux, w_io if is_rounded else None))
    return y


def check_precision(who: Callable[[], str], on: Device) -> None:
    """Raise `DeviceError` where `on` has no mixed precision, which was chosen."""
    if not on.backend.mixed_precision:
        raise DeviceError(
            f"{who()}: precision '{current_precision()}' needs a GPU, and the parameters are on {on}. Move the model, "
            "model.to('cuda'), or compute in 'float32': with fc.use_precision(...), or Trainer(precision=...)."
        )


def _check_alike(x: Tensor, other: Tensor, name: str, is_rounded: bool) -> None:
    is_narrow = is_rounded and x.dtype.itemsize == 2 and x.dtype.kind in FLOAT_KINDS
    if not (is_narrow and other.dtype == FLOAT32) and (other.dtype != x.dtype or x.dtype.kind != "f"):
        raise DTypeError(f"dense: x is {x.dtype}, the {name} {other.dtype}; expected one float dtype (.astype()).")
    if other.device is not x.device and other.device != x.device:
        raise DeviceError(f"dense: x lies on {x.device}, the {name} on {other.device}. Move one with .to().")


def _rounded(w: Tensor, dtype: np.dtype[Any]) -> Array:
    """The kernel in 16 bits."""
    if isinstance(w, Parameter):
        return w.rounded(dtype)
    backend = w.device.backend
    out = backend.workspace.empty(w.shape, dtype)
    backend.copy(w.array, out=out)
    return out


def _rows(backend: Backend, array: Array) -> Array:
    """The array with its leading axes joined."""
    if array.ndim == 2:
        return array
    return operations.reshaped(backend, array, (prod(array.shape[:-1]), array.shape[-1]))


class Joined(NamedTuple):
    """What a dense node hands to the dense node below: dz instead of dy, and the bias gradient that came with it."""

    dz: Array
    bias_gradient: Tensor | None


class DenseNode(tape.Node):
    """A dense layer on the tape.

    Where its input is another dense layer's result that nothing else uses, one call computes that layer's dz (the
    input gradient times its f') and its bias gradient.

    Attributes
    ----------
    rounded : Array or None
        In mixed precision, the kernel as it was multiplied.
    """

    __slots__ = ("activation", "aux", "inputs", "rounded")

    def __init__(
        self,
        inputs: tuple[Tensor, ...],
        activation: Activation,
        y: Tensor,
        slope: Array | None,
        rounded: Array | None = None,
    ) -> None:
        by_output = activation.aux == "output"
        super().__init__("dense", inputs, (*inputs, y) if by_output else inputs)
        self.inputs = inputs
        self.activation = activation
        self.rounded = rounded
        self.aux = _rows(y.device.backend, y.array) if by_output else slope

    def backward(self, dy: Any, sink: tape.GradientSink) -> Sequence[Tensor | None]:
        """Gradients of x, w and b; those of parameters go straight into their buffers."""
        if tape.is_recording():
            return self._differentiable(dy, sink)
        if isinstance(dy, Joined):
            dz, bias_gradient = dy
        else:
            dz = _rows(dy.device.backend, dy.array)
            db, mode, bias_gradient = self._bias_target(sink)
            if db is not None or not self.activation.is_linear:
                backend, dy_bo = dy.device.backend, dz
                is_done = self.activation.is_linear and dy_bo.flags.c_contiguous
                out = None if is_done else backend.workspace.empty(dy_bo.shape, dy_bo.dtype)
                backend.act_grad(dy_bo, self.aux, self.activation, out=out, db=db, mode=mode)
                dz = dy_bo if out is None else out
        gradients = (
            self._input_gradient(dz, sink) if sink.needs(self, 0) else None,
            self._weight_gradient(dz, sink) if sink.needs(self, 1) else None,
            bias_gradient,
        )
        return gradients[: len(self.inputs)]

    def _bias_target(self, sink: tape.GradientSink) -> tuple[Array | None, Mode, Tensor | None]:
        if len(self.inputs) < 3 or not sink.needs(self, 2):
            return None, "overwrite", None
        return _target(self.inputs[2], sink)

    def _weight_gradient(self, dz: Array, sink: tape.GradientSink) -> Tensor | None:
        x, w = self.inputs[:2]
        out, mode, gradient = _target(w, sink)
        backend = w.device.backend
        backend.dense_grad_weight(_rows(backend, x.array), dz, out=out, mode=mode)
        return gradient

    def _input_gradient(self, dz: Array, sink: tape.GradientSink) -> Any:
        x, w = self.inputs[:2]
        w_io = w.array if self.rounded is None else self.rounded
        backend = w.device.backend
        out = backend.workspace.empty((dz.shape[0], w.shape[0]), dz.dtype)
        below = x.node
        if isinstance(below, DenseNode) and below.uses == 1 and not sink.wants(below):
            db, mode, bias_gradient = below._bias_target(sink)
            backend.dense_grad_input(dz, w_io, below.activation, below.aux, out=out, db=db, mode=mode)
            return Joined(out, bias_gradient)
        backend.dense_grad_input(dz, w_io, LINEAR, None, out=out)
        return x.derived(out if x.ndim == 2 else out.reshape(x.shape))

    def _differentiable(self, dy: Tensor, sink: tape.GradientSink) -> Sequence[Tensor | None]:
        """The same gradients in operations that are themselves recorded, in the dtype of the parameters."""
        narrow, w, *bias = self.inputs
        x, dz = narrow.astype(w.dtype), dy.astype(w.dtype)
        if not self.activation.is_linear:
            z = x @ w + bias[0] if bias else x @ w
            dz = dz * Tensor.apply(operations.Elementwise(self.activation.derivative), z)
        b_o, b_i = (tensor.reshape(prod(tensor.shape[:-1]), tensor.shape[-1]) for tensor in (dz, x))
        gradients = (
            (dz @ w.T).astype(narrow.dtype) if sink.needs(self, 0) else None,
            b_i.T @ b_o if sink.needs(self, 1) else None,
            b_o.sum(axis=0) if bias and sink.needs(self, 2) else None,
        )
        return gradients[: len(self.inputs)]

    def release(self) -> None:
        """Let go of everything saved."""
        super().release()
        self.inputs = ()
        self.aux = self.rounded = None


def _target(tensor: Tensor, sink: tape.GradientSink) -> tuple[Array, Mode, Tensor | None]:
    """Where a primitive writes a gradient: the leaf's own buffer, or a new tensor that is handed on."""
    direct = sink.buffer(tensor) if tensor.node is None else None
    if direct is not None:
        return (*direct, None)
    array = tensor.device.backend.workspace.empty(tensor.shape, tensor.dtype)
    return array, "overwrite", tensor.derived(array)
