"""Normalization: of each row (`LayerNorm`), or of each feature over the batch (`BatchNorm`)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from fcdense.arguments import flag, real
from fcdense.backends import current_device
from fcdense.errors import ShapeError
from fcdense.nn import layer
from fcdense.nn.features import FeatureLayer
from fcdense.parameter import Parameter
from fcdense.tape import no_grad
from fcdense.tensor import Tensor, elementwise


def _standardize(centered: Any, variance: Any, eps: Any) -> Any:
    return centered / np.sqrt(variance + eps)


class _Normalization(FeatureLayer):
    """Base: scale and bias for each feature, and eps."""

    scale: Parameter | None
    bias: Parameter | None

    def __init__(self, eps: float, use_scale: bool, use_bias: bool, dtype: Any, in_features: int | None) -> None:
        super().__init__(dtype, in_features)
        name = type(self).__name__
        self.eps = real(eps, f"{name}: eps", lambda e: 0.0 < e < math.inf, "a positive number")
        self.use_scale = flag(use_scale, f"{name}: use_scale")
        self.use_bias = flag(use_bias, f"{name}: use_bias")
        on = current_device()
        self.scale = Parameter(None, on, name="scale") if use_scale else None
        self.bias = Parameter(None, on, name="bias") if use_bias else None

    def shapes(self, in_features: int | None) -> dict[str, tuple[int | None, ...]]:
        return {name: (in_features,) for name in ("scale", "bias") if self.__dict__[name] is not None}

    def initial(self, name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        return np.full(shape, 1.0 if name in ("scale", "running_var") else 0.0, dtype=self.dtype)

    def _normalized(self, centered: Tensor, variance: Tensor) -> Tensor:
        y = elementwise(_standardize, centered, variance, self.eps)
        y = y if self.scale is None else y * self.scale
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        parts = [str(self.in_features or "?"), f"eps={self.eps:g}"]
        parts += [f"{name}=False" for name in ("use_scale", "use_bias") if not getattr(self, name)]
        return ", ".join(parts + ([f"dtype={self.dtype}"] if self.dtype != np.float32 else []))


@layer.builtin
class LayerNorm(_Normalization):
    """y = (x - mean) / sqrt(var + eps) * scale + bias, where mean and var are those of each row (the last axis).

    Parameters
    ----------
    eps : float
    use_scale, use_bias : bool
        Whether there is a scale (from 1 on) and a bias (from 0 on), each of shape (I,).
    dtype, in_features
        As for `Dense`.

    Notes
    -----
    x (..., I) -> y (..., I). var is the mean square deviation (divided by I). A NaN makes its row NaN.

    Source: J. Ba, J. Kiros, G. Hinton (2016), Layer normalization, equations 3 and 4.
    """

    arguments: ClassVar = {
        "eps": layer.PLAIN,
        "use_scale": layer.PLAIN,
        "use_bias": layer.PLAIN,
        "dtype": layer.DTYPE,
        "in_features": layer.PLAIN,
    }

    def __init__(
        self,
        eps: float = 1e-5,
        use_scale: bool = True,
        use_bias: bool = True,
        dtype: Any = "float32",
        in_features: int | None = None,
    ) -> None:
        super().__init__(eps, use_scale, use_bias, dtype, in_features)
        self.build_if_declared()

    def forward(self, x: Tensor) -> Tensor:
        """Each row normalized."""
        x = self.accept(x)
        centered = x - x.mean(axis=-1, keepdims=True)
        return self._normalized(centered, (centered * centered).mean(axis=-1, keepdims=True))


@layer.builtin
class BatchNorm(_Normalization):
    """y = (x - mean) / sqrt(var + eps) * scale + bias, where mean and var are those of each feature.

    In training they are taken over all rows of the batch, and running averages follow them:
    ``running = momentum * running + (1 - momentum) * batch`` (PyTorch's momentum is 1 - momentum). In evaluation they
    are the running averages.

    Parameters
    ----------
    momentum : float
        From 0 up to, but not including, 1.
    eps : float
    use_scale, use_bias : bool
        Whether there is a scale (from 1 on) and a bias (from 0 on), each of shape (I,).
    dtype, in_features
        As for `Dense`.

    Attributes
    ----------
    running_mean, running_var : Tensor, shape (I,)
        Buffers, from 0 and 1 on. `freeze` leaves them running; `eval` stops them, until `Module.train`.

    Notes
    -----
    x (..., I) -> y (..., I); all axes but the last are rows. The batch is normalized by the biased variance (divided by
    the number of rows n), the running average takes the unbiased one (n - 1), as in PyTorch.

    Raises
    ------
    ShapeError
        In training: a batch of fewer than two rows, which has no variance.

    Source: S. Ioffe, C. Szegedy (2015), Batch normalization, algorithms 1 and 2.
    """

    arguments: ClassVar = {"momentum": layer.PLAIN, **LayerNorm.arguments}

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        momentum: float = 0.9,
        eps: float = 1e-5,
        use_scale: bool = True,
        use_bias: bool = True,
        dtype: Any = "float32",
        in_features: int | None = None,
    ) -> None:
        super().__init__(eps, use_scale, use_bias, dtype, in_features)
        self.momentum = real(
            momentum, "BatchNorm: momentum", lambda m: 0.0 <= m < 1.0, "a number from 0 up to, but not including, 1"
        )
        self.register_buffer("running_mean", None)
        self.register_buffer("running_var", None)
        self.build_if_declared()

    def shapes(self, in_features: int | None) -> dict[str, tuple[int | None, ...]]:
        return super().shapes(in_features) | {"running_mean": (in_features,), "running_var": (in_features,)}

    def forward(self, x: Tensor) -> Tensor:
        """Each feature normalized."""
        x = self.accept(x)
        if not self.training:
            return self._normalized(x - self.running_mean, self.running_var)
        count = x.size // x.shape[-1]
        if count < 2:
            raise ShapeError(
                f"{self.label()}: x of shape {x.shape} has {count} row(s); training needs at least 2 for a variance. "
                "Use larger batches (drop_last=True), or model.eval()."
            )
        axes = tuple(range(x.ndim - 1))
        mean = x.mean(axis=axes)
        centered = x - mean
        variance = (centered * centered).mean(axis=axes)
        y = self._normalized(centered, variance)
        with no_grad():
            self._follow(self.running_mean, mean)
            self._follow(self.running_var, variance * (count / (count - 1)))
        return y

    def _follow(self, running: Tensor, batch: Tensor) -> None:
        running[:] = running * self.momentum + batch * (1.0 - self.momentum)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, momentum={self.momentum:g}"
