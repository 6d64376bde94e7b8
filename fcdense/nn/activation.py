"""`Activation`: a layer for any activation, and the operation on tensors behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from fcdense import activations, ops
from fcdense.activations import Activation as Function
from fcdense.activations import RowActivation
from fcdense.arena import Array
from fcdense.backends.base import Backend
from fcdense.nn import layer
from fcdense.nn.layer import Layer
from fcdense.operations import AnyTensor, Call, Gradients, Operation
from fcdense.operations import Elementwise as Map
from fcdense.program import Program, trace
from fcdense.tensor import Tensor


@cache
def _gradient(function: Function) -> Program:
    """(x, dy) -> dy * f'(x)."""
    return trace(lambda x, dy: dy * function.derivative(x)[0], 2, name=f"{function.name}_grad")


@dataclass(frozen=True)
class Activate(Operation):
    """y = f(x), differentiated by the activation's own f', which may be more accurate than that of the trace."""

    function: Function
    needs_floats: ClassVar[bool] = True

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.function.name

    def saves(self, needs: Sequence[bool]) -> tuple[int, ...]:
        return (0,)

    def forward(self, backend: Backend, arrays: Sequence[Array]) -> Array:
        return Map(self.function.program).forward(backend, arrays)

    def vjp(self, dy: AnyTensor, call: Call) -> Gradients:
        return (dy.apply(Map(_gradient(self.function)), call.inputs[0], dy),)


def rows(function: RowActivation, x: Tensor, axis: int = -1) -> Tensor:
    """Softmax or log-softmax along `axis`."""
    return {"softmax": ops.softmax, "log_softmax": ops.log_softmax}[function.name](x, axis)


class ActivationLayer(Layer):
    """Base of layers that apply one function to each element, or to each row."""

    activation: Function | RowActivation

    def __init__(self, activation: Any) -> None:
        super().__init__()
        self.activation = activations.get(activation)

    def forward(self, x: Tensor) -> Tensor:
        """The activation of x."""
        self.expect_tensor(x)
        if isinstance(self.activation, RowActivation):
            return rows(self.activation, x)
        y: Tensor = Tensor.apply(Activate(self.activation), x)
        return y


@layer.builtin
class Activation(ActivationLayer):
    """Any activation as a layer: a name, an activation, or a function of one array, which is traced."""

    arguments: ClassVar = {"activation": layer.ACTIVATION}

    def extra_repr(self) -> str:
        return self.activation.name
