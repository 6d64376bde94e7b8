"""`Activation`: a layer for any activation."""

from __future__ import annotations

from typing import Any, ClassVar

from fcdense import activations
from fcdense.activations import Activation as Function
from fcdense.activations import RowActivation
from fcdense.nn import layer
from fcdense.nn.layer import Layer
from fcdense.tensor import Tensor


class ActivationLayer(Layer):
    """Base of layers that apply one function to each element, or to each row."""

    activation: Function | RowActivation

    def __init__(self, activation: Any) -> None:
        super().__init__()
        self.activation = activations.get(activation)

    def forward(self, x: Tensor) -> Tensor:
        """The activation of x."""
        self.expect_tensor(x)
        y: Tensor = self.activation(x)
        return y


@layer.builtin
class Activation(ActivationLayer):
    """Any activation as a layer: a name, an activation, or a function of one array, which is traced."""

    arguments: ClassVar = {"activation": layer.ACTIVATION}

    def extra_repr(self) -> str:
        return self.activation.name
