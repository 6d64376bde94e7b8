"""The same mathematics as one writes it in NumPy, a new array for each operation: what fusing is measured against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cases import Activated, Arrays, Case, Run
from ..networks import Network
from ..questions.backward import Backward
from ..questions.forward import Forward
from ..questions.train import Train

VERSIONS = {"numpy": np.__version__}

Array = NDArray[Any]
Function = Callable[[Array], Array]
Update = Callable[[str, Array, Array], Array]

# name: (f, f' in terms of y = f(x)). GELU is missing: NumPy has no erf.
FUNCTIONS: dict[str, tuple[Function, Function]] = {
    "linear": (lambda x: x, np.ones_like),
    "relu": (lambda x: np.maximum(x, 0), lambda y: (y > 0).astype(y.dtype)),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), lambda y: y * (1 - y)),
    "tanh": (np.tanh, lambda y: 1 - y * y),
}


def prepare(case: Case, data: Arrays) -> Run | None:
    """Layers, prediction, and training with Adam and SGD, for the activations above."""
    if not isinstance(case, Activated) or case.activation not in FUNCTIONS:
        return None
    f, slope = FUNCTIONS[case.activation]
    if isinstance(case, Forward):
        return forward(f, slope, data)
    if isinstance(case, Backward):
        return backward(f, slope, data)
    if not isinstance(case, Network) or case.is_mixed:
        return None
    if isinstance(case, Train):
        update = {"adam": adam, "sgd": sgd}.get(case.optimizer)
        return update and train(len(case.widths) - 1, f, slope, update(case.learning_rate), data)
    return predict(len(case.widths) - 1, f, data)


def forward(f: Function, slope: Function, data: Arrays) -> Run:
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


def layer_outputs(layers: int, f: Function, parameters: Arrays, x: Array) -> list[Array]:
    """x, the output of each hidden layer, and the logits."""
    values = [x]
    for index in range(layers):
        z = values[-1] @ parameters[f"w{index}"] + parameters[f"b{index}"]
        values.append(z if index == layers - 1 else f(z))
    return values


def predict(layers: int, f: Function, data: Arrays) -> Run:
    """The logits."""
    results: Arrays = {}

    def call() -> None:
        results["logits"] = layer_outputs(layers, f, data, data["x"])[-1]

    return Run(call, lambda: dict(results))


def train(layers: int, f: Function, slope: Function, update: Update, data: Arrays) -> Run:
    """Forward, softmax cross entropy, backward, update."""
    x, target, parameters = data["x"], data["target"], data
    rows = np.arange(len(x))
    losses: list[Array] = []

    def call() -> None:
        values = layer_outputs(layers, f, parameters, x)
        logits = values.pop()
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        losses[:] = [-log_p[rows, target].mean()]
        dz = np.exp(log_p)
        dz[rows, target] -= 1
        dz /= len(x)
        gradients: Arrays = {}
        for index in reversed(range(layers)):
            gradients[f"b{index}"] = dz.sum(axis=0)
            gradients[f"w{index}"] = values[-1].T @ dz
            y = values.pop()
            if index:
                dz = (dz @ parameters[f"w{index}"].T) * slope(y)
        for name, g in gradients.items():
            parameters[name] = update(name, parameters[name], g)

    def outputs() -> Arrays:
        return {"loss": np.asarray(losses[0]), "logits": layer_outputs(layers, f, parameters, x)[-1]}

    return Run(call, outputs)


def sgd(learning_rate: float) -> Update:
    """w - η g."""
    return lambda name, w, g: w - learning_rate * g


def adam(learning_rate: float) -> Update:
    """Adam as Kingma and Ba (2015) write it in algorithm 1."""
    moments: dict[str, tuple[Array, Array, int]] = {}

    def update(name: str, w: Array, g: Array) -> Array:
        first, second, steps = moments.get(name, (np.zeros_like(w), np.zeros_like(w), 0))
        steps += 1
        first = 0.9 * first + 0.1 * g
        second = 0.999 * second + 0.001 * g * g
        moments[name] = first, second, steps
        average, square = first / (1 - 0.9**steps), second / (1 - 0.999**steps)
        return w - learning_rate * average / (np.sqrt(square) + 1e-8)

    return update
