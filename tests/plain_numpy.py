"""Dense networks in plain NumPy and float64, written from the textbook: an oracle that shares nothing with fcdense."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Parameters = dict[str, Array]

erf = np.vectorize(math.erf, otypes=[float])


def phi(z: Array) -> Array:
    return 0.5 * (1.0 + erf(z / math.sqrt(2.0)))


ACTIVATIONS = {
    "linear": (lambda z: z, lambda z: np.ones_like(z)),
    "relu": (lambda z: np.where(z > 0, z, 0.0), lambda z: np.where(z > 0, 1.0, 0.0)),
    "tanh": (np.tanh, lambda z: 1.0 - np.tanh(z) ** 2),
    "gelu": (lambda z: z * phi(z), lambda z: phi(z) + z * np.exp(-z * z / 2.0) / math.sqrt(2.0 * math.pi)),
}


def forward(layers: list[tuple[Array, Array, str]], x: Array) -> tuple[Array, list[tuple[Array, Array]]]:
    """The output of layers (kernel, bias, activation), and each layer's input and pre-activation."""
    seen = []
    for w, b, name in layers:
        z = x @ w + b
        seen.append((x, z))
        x = ACTIVATIONS[name][0](z)
    return x, seen


def backward(
    layers: list[tuple[Array, Array, str]], seen: list[tuple[Array, Array]], dy: Array
) -> list[tuple[Array, Array]]:
    """The gradients of each kernel and bias."""
    gradients = []
    for (w, _, name), (x, z) in zip(reversed(layers), reversed(seen), strict=True):
        dz = dy * ACTIVATIONS[name][1](z)
        gradients.append((x.T @ dz, dz.sum(axis=0)))
        dy = dz @ w.T
    return gradients[::-1]


def cross_entropy(z: Array, labels: Array) -> tuple[float, Array]:
    """The mean over rows, and its slope."""
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    rows = np.arange(len(z))
    slope = p.copy()
    slope[rows, labels] -= 1.0
    return float(-np.log(p[rows, labels]).mean()), slope / len(z)


def mean_squared_error(y: Array, target: Array) -> tuple[float, Array]:
    return float(np.mean((y - target) ** 2)), 2.0 * (y - target) / y.size


class Adam:
    """Kingma & Ba (2015), algorithm 1; each parameter counts its own steps."""

    def __init__(self, learning_rate: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        self.rate, self.betas, self.eps = learning_rate, betas, eps
        self.memory: dict[str, list[Any]] = {}

    def step(self, parameters: Parameters, gradients: Mapping[str, Array]) -> None:
        for name, g in gradients.items():
            m, v, t = self.memory.setdefault(name, [np.zeros_like(g), np.zeros_like(g), 0])
            t += 1
            m = self.betas[0] * m + (1 - self.betas[0]) * g
            v = self.betas[1] * v + (1 - self.betas[1]) * g**2
            self.memory[name] = [m, v, t]
            m_hat, v_hat = m / (1 - self.betas[0] ** t), v / (1 - self.betas[1] ** t)
            parameters[name] = parameters[name] - self.rate * m_hat / (np.sqrt(v_hat) + self.eps)


class Momentum:
    """v = μ v + g, w = w - rate v."""

    def __init__(self, learning_rate: float, momentum: float) -> None:
        self.rate, self.momentum = learning_rate, momentum
        self.velocity: dict[str, Array] = {}

    def step(self, parameters: Parameters, gradients: Mapping[str, Array]) -> None:
        for name, g in gradients.items():
            self.velocity[name] = self.momentum * self.velocity.get(name, 0.0) + g
            parameters[name] = parameters[name] - self.rate * self.velocity[name]


class Network:
    """Named layers in a chain, trained by name."""

    def __init__(self, parameters: Mapping[str, Array], activations: Mapping[str, str]) -> None:
        self.parameters: Parameters = {name: np.array(p, np.float64) for name, p in parameters.items()}
        self.activations = dict(activations)

    def gradients(self, names: list[str], x: Array, target: Array, loss: Any) -> tuple[float, dict[str, Array]]:
        """Loss and gradients of the chain of the layers `names`."""
        layers = [(self.parameters[f"{n}.kernel"], self.parameters[f"{n}.bias"], self.activations[n]) for n in names]
        y, seen = forward(layers, x)
        value, dy = loss(y, target)
        found: dict[str, Array] = {}
        for name, (dw, db) in zip(names, backward(layers, seen, dy), strict=True):
            for key, part in ((f"{name}.kernel", dw), (f"{name}.bias", db)):
                found[key] = found[key] + part if key in found else part
        return value, found
