"""Activations applied to tensors, as operations: elementwise, and over rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import ClassVar

from fcdense.activation import Activation, RowActivation
from fcdense.arena import Array
from fcdense.backends.base import Backend
from fcdense.errors import ShapeError
from fcdense.operations import AnyTensor, Call, Elementwise, Gradients, Operation, reshaped
from fcdense.program import Program, trace


@cache
def _gradient(function: Activation) -> Program:
    """(x, dy) -> dy * f'(x)."""
    return trace(lambda x, dy: dy * function.derivative(x)[0], 2, name=f"{function.name}_grad")


@dataclass(frozen=True)
class Activate(Operation):
    """y = f(x), differentiated by the activation's own f', which may be more accurate than that of the trace."""

    function: Activation
    needs_floats: ClassVar[bool] = True

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.function.name

    def saves(self, needs: tuple[bool, ...]) -> tuple[int, ...]:
        return (0,)

    def forward(self, backend: Backend, arrays: Sequence[Array]) -> Array:
        return Elementwise(self.function.program).forward(backend, arrays)

    def vjp(self, dy: AnyTensor, call: Call) -> Gradients:
        return (dy.apply(Elementwise(_gradient(self.function)), call.inputs[0], dy),)


@dataclass(frozen=True)
class SoftmaxRows(Operation):
    """y = softmax(x) or log_softmax(x) over the last axis."""

    log: bool
    needs_floats: ClassVar[bool] = True

    @property
    def name(self) -> str:  # type: ignore[override]
        return "log_softmax" if self.log else "softmax"

    def saves(self, needs: tuple[bool, ...]) -> tuple[int, ...]:
        return (0,)

    def forward(self, backend: Backend, arrays: Sequence[Array]) -> Array:
        (x,) = arrays
        if x.ndim == 0 or x.shape[-1] == 0:
            raise ShapeError(
                f"{self.name} over the last axis of shape {x.shape}: the axis must exist and not be empty."
            )
        out = backend.workspace.empty(x.shape, x.dtype)
        shape = prod(x.shape[:-1]), x.shape[-1]
        backend.softmax(reshaped(backend, x, shape), out=out.reshape(shape), log=self.log)
        return out

    def vjp(self, dy: AnyTensor, call: Call) -> Gradients:
        x: AnyTensor = call.inputs[0]
        y = x.apply(SoftmaxRows(False), x)
        if self.log:
            return (dy - y * dy.sum(axis=-1, keepdims=True),)
        return (y * (dy - (dy * y).sum(axis=-1, keepdims=True)),)


def operation_of(function: Activation | RowActivation) -> Operation:
    """The operation that applies `function` to a tensor."""
    if isinstance(function, RowActivation):
        return SoftmaxRows(log=function.name == "log_softmax")
    return Activate(function)
