"""Spectral normalization of a dense layer's kernel."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from fcdense.arguments import integer, real
from fcdense.errors import ArgumentError
from fcdense.nn import layer
from fcdense.nn.dense import Dense
from fcdense.nn.features import is_deferred
from fcdense.random import random_state
from fcdense.tape import no_grad
from fcdense.tensor import Tensor


@layer.builtin
class SpectralNorm(layer.Layer):
    """A dense layer whose kernel is divided by its largest singular value: y = f(x @ (W / sigma(W)) + b).

    sigma(W) is estimated by power iteration, which goes on from call to call in training:
    v = W u / |W u|, u = W^T v / |W^T v|; then sigma = v . W u, with u and v constant in the gradient.

    Parameters
    ----------
    layer : Dense
        Keeps its parameters: W is ``layer.kernel``.
    n_iterations : int
        Power iterations in each training call; in evaluation there are none.
    eps : float
        Smallest norm that is divided by.

    Attributes
    ----------
    u : Tensor, shape (O,)
        Buffer: the estimate of the first right singular vector of W (I, O), random at first.

    Source: T. Miyato et al. (2018), Spectral normalization for generative adversarial networks, ICLR, algorithm 1.
    """

    arguments: ClassVar = {"layer": layer.LAYER, "n_iterations": layer.PLAIN, "eps": layer.PLAIN}

    u: Any

    def __init__(self, layer: Dense, n_iterations: int = 1, eps: float = 1e-12) -> None:
        super().__init__()
        if not isinstance(layer, Dense):
            raise ArgumentError(f"SpectralNorm: layer is {layer!r}; expected a Dense layer.")
        self.layer = layer
        self.n_iterations = integer(n_iterations, "SpectralNorm: n_iterations")
        self.eps = real(eps, "SpectralNorm: eps", lambda e: e > 0.0, "a positive number")
        self.register_buffer("u", None if is_deferred() else self._first())

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the layer."""
        return self.layer.dtype

    def lazy_shape(self, name: str) -> tuple[int | None, ...]:
        return (self.layer.units,)

    def forward(self, x: Any) -> Tensor:
        """The layer's output with the normalized kernel."""
        x = self.layer.accept(x)
        if self.u is None:
            self.u = self._first()
        if self.training:
            with no_grad():
                for _ in range(self.n_iterations):
                    self.u[:] = self._unit(self._left() @ self.layer.kernel)
        return self.layer.transform(x, self.normalized_kernel())

    def normalized_kernel(self) -> Tensor:
        """W / sigma(W), shape (I, O)."""
        with no_grad():
            v_i = self._left()
        # A copy, because the graph keeps it while the next call may go on iterating in place.
        sigma = (v_i * (self.layer.kernel @ self.u.copy())).sum()
        normalized: Tensor = self.layer.kernel / np.maximum(sigma, self.eps)
        return normalized

    def _first(self) -> np.ndarray[Any, Any]:
        u_o = random_state().generator.standard_normal(self.layer.units)
        return (u_o / np.linalg.norm(u_o)).astype(self.dtype)

    def _left(self) -> Tensor:
        """v, the estimate of the first left singular vector."""
        return self._unit(self.layer.kernel @ self.u)

    def _unit(self, vector: Tensor) -> Tensor:
        norm = (vector * vector).sum() ** 0.5
        unit: Tensor = vector / np.maximum(norm, self.eps)
        return unit
