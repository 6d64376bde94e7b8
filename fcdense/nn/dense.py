"""The dense (fully connected) layer."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from fcdense import activations, constraints, init, ops, precision, regularizers
from fcdense.activations import Activation
from fcdense.arguments import flag, integer
from fcdense.backends import current_device
from fcdense.dense import check_precision
from fcdense.nn import layer
from fcdense.nn.features import FeatureLayer
from fcdense.parameter import Parameter
from fcdense.random import random_state
from fcdense.tensor import Tensor


@layer.builtin
class Dense(FeatureLayer):
    """y = f(x @ W + b), computed as one fused primitive.

    Parameters
    ----------
    units : int
        O, the number of outputs.
    activation : str, Activation, callable or None
        f: a name, an activation, or a function of one array, which is traced; None is linear. ``"softmax"`` and
        ``"log_softmax"`` act on the rows of x @ W + b, in a step of their own.
    use_bias : bool
        Whether there is a b.
    kernel_initializer, bias_initializer : str, number, Initializer or callable
        What W and b start from (`fcdense.init`). Numbers are drawn from the state that `fc.manual_seed` seeds.
    kernel_regularizer, bias_regularizer : str, Regularizer or callable, optional
        What `Module.penalty` adds (`fcdense.regularizers`).
    kernel_constraint : str, Constraint or callable, optional
        What an optimizer applies to W after each step (`fcdense.constraints`).
    dtype : {"float32", "float64", "float16"}
        Of the parameters and the output.
    in_features : int, optional
        I; None takes it from the first input.

    Attributes
    ----------
    kernel : Parameter, shape (I, O)
        W. Weight decay applies to it.
    bias : Parameter, shape (O,), or None
        b. Weight decay does not apply to it.

    Notes
    -----
    Shapes: x (..., I) -> y (..., O); also (I,) -> (O,), and no rows at all, (0, I) -> (0, O).

    Dtypes: x is cast to `dtype`. Integers, booleans and float16 are so silently, other float dtypes with one
    `DTypeWarning` for each layer; complex numbers, objects and strings are refused. Inside of `fc.use_precision` a
    float32 layer multiplies in 16 bits and gives a 16-bit y.

    NaN and infinities go through as the arithmetic has them.

    Raises
    ------
    ArgumentError
        `units` or `in_features` is not a positive integer, or another argument means nothing.
    ShapeError
        On a call: the last axis of x is not I; no axis; no features.

    Examples
    --------
    >>> layer = fc.nn.Dense(4, activation="sigmoid", in_features=3)
    >>> layer(np.zeros((2, 3), np.float32)).shape
    (2, 4)
    """

    arguments: ClassVar = {
        "units": layer.PLAIN,
        "activation": layer.ACTIVATION,
        "use_bias": layer.PLAIN,
        "kernel_initializer": layer.INITIALIZER,
        "bias_initializer": layer.INITIALIZER,
        "kernel_regularizer": layer.REGULARIZER,
        "bias_regularizer": layer.REGULARIZER,
        "kernel_constraint": layer.CONSTRAINT,
        "dtype": layer.DTYPE,
        "in_features": layer.PLAIN,
    }

    kernel: Parameter
    bias: Parameter | None

    def __init__(
        self,
        units: int,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        dtype: Any = "float32",
        in_features: int | None = None,
    ) -> None:
        super().__init__(dtype, in_features)
        self.units = integer(units, "Dense: units")
        self.activation = activations.get(activation)
        self.use_bias = flag(use_bias, "Dense: use_bias")
        self.kernel_initializer = init.get(kernel_initializer)
        self.bias_initializer = init.get(bias_initializer)
        on = current_device()
        self.kernel = Parameter(
            None,
            on,
            name="kernel",
            decay=True,
            regularizer=regularizers.get(kernel_regularizer),
            constraint=constraints.get(kernel_constraint),
        )
        regularizer = regularizers.get(bias_regularizer)
        self.bias = Parameter(None, on, name="bias", regularizer=regularizer) if use_bias else None
        self.build_if_declared()

    def shapes(self, in_features: int | None) -> dict[str, tuple[int | None, ...]]:
        shapes: dict[str, tuple[int | None, ...]] = {"kernel": (in_features, self.units)}
        return shapes if self.bias is None else shapes | {"bias": (self.units,)}

    def initial(self, name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        initializer = self.kernel_initializer if name == "kernel" else self.bias_initializer
        return initializer(shape, self.dtype, random_state().generator)

    @property
    def kernel_regularizer(self) -> Any:
        """The regularizer of the kernel."""
        return self.kernel.regularizer

    @property
    def bias_regularizer(self) -> Any:
        """The regularizer of the bias."""
        return None if self.bias is None else self.bias.regularizer

    @property
    def kernel_constraint(self) -> Any:
        """The constraint of the kernel."""
        return self.kernel.constraint

    @property
    def operand_dtype(self) -> np.dtype[Any]:
        if precision.is_mixed(self.dtype):
            check_precision(self.label, self.kernel.device)
        return precision.operand_dtype(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """f(x @ W + b)."""
        return self.transform(self.accept(x), self.kernel)

    def transform(self, x: Tensor, kernel: Tensor) -> Tensor:
        """f(x @ kernel + b), for an accepted x and W or a function of it."""
        if isinstance(self.activation, Activation):
            return ops.dense(x, kernel, self.bias, self.activation)
        y: Tensor = self.activation(ops.dense(x, kernel, self.bias))
        return y

    def extra_repr(self) -> str:
        parts = [f"{self.in_features or '?'} -> {self.units}"]
        if self.activation is not activations.get(None):
            parts.append(f"activation={self.activation.name}")
        if not self.use_bias:
            parts.append("use_bias=False")
        if self.dtype != np.float32:
            parts.append(f"dtype={self.dtype}")
        return ", ".join(parts)
