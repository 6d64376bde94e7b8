"""The same mathematics as one writes it in NumPy, a new array for each operation: what fusing is measured against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cases import Arrays, Case, Layer, Network, Run

VERSION = np.__version__

Array = NDArray[Any]
Function = Callable[[Array], Array]

# name: (f, f' in terms of y = f(x))
FUNCTIONS: dict[str, tuple[Function, Function]] = {
    "linear": (lambda x: x, np.ones_like),
    "relu": (lambda x: np.maximum(x, 0), lambda y: (y > 0).astype(y.dtype)),
    "tanh": (np.tanh, lambda y: 1 - y * y),
}


def prepare(case: Case, data: Arrays) -> Run | None:
    """Forward, backward, and training with Adam, for the activations above."""
    if case.activation not in FUNCTIONS:
        return None
    f, slope = FUNCTIONS[case.activation]
    if isinstance(case, Layer) and case.question == "forward":
        return forward(f, data)
    if isinstance(case, Layer) and case.question == "backward":
        return backward(f, slope, data)
    if isinstance(case, Network) and case.question == "train" and case.optimizer == "adam":
        return train(len(case.widths) - 1, f, slope, data)
    return None


def forward(f: Function, data: Arrays) -> Run:
    """f(x @ w + b)."""
    results: Arrays = {}

    def call() -> None:
        results["y"] = f(data["x"] @ data["w"] + data["b"])

    return Run(call, lambda: dict(results))


def backward(f: Function, slope: Function, data: Arrays) -> Run:
    """The three gradients of one layer."""
    x, w, dy = data["x"], data["w"], data["dy"]
    y = f(x @ w + data["b"])
    results: Arrays = {}

    def call() -> None:
        dz = dy * slope(y)
        results.update(dx=dz @ w.T, dw=x.T @ dz, db=dz.sum(axis=0))

    return Run(call, lambda: dict(results))


def train(layers: int, f: Function, slope: Function, data: Arrays) -> Run:
    """Forward, softmax cross entropy, backward, Adam."""
    x, target = data["x"], data["target"]
    rows = np.arange(len(x))
    parameters = {name: data[name].copy() for name in data if name[0] in "wb"}
    first = {name: np.zeros_like(value) for name, value in parameters.items()}
    second = {name: np.zeros_like(value) for name, value in parameters.items()}
    gradients: Arrays = {}
    losses: list[Array] = []
    steps = 0

    def layer_outputs() -> list[Array]:
        values = [x]
        for index in range(layers):
            z = values[-1] @ parameters[f"w{index}"] + parameters[f"b{index}"]
            values.append(z if index == layers - 1 else f(z))
        return values

    def call() -> None:
        nonlocal steps
        steps += 1
        values = layer_outputs()
        logits = values.pop()
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        losses[:] = [-log_p[rows, target].mean()]
        dz = np.exp(log_p)
        dz[rows, target] -= 1
        dz /= len(x)
        for index in reversed(range(layers)):
            gradients[f"b{index}"] = dz.sum(axis=0)
            gradients[f"w{index}"] = values[-1].T @ dz
            y = values.pop()
            if index:
                dz = (dz @ parameters[f"w{index}"].T) * slope(y)
        for name, g in gradients.items():
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g * g
            average, square = first[name] / (1 - 0.9**steps), second[name] / (1 - 0.999**steps)
            parameters[name] -= 1e-3 * average / (np.sqrt(square) + 1e-8)

    def outputs() -> Arrays:
        return {**gradients, "loss": np.asarray(losses[0]), "logits_after": layer_outputs()[-1]}

    return Run(call, outputs)
