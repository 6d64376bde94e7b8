"""PyTorch, eager, with its fused optimizers: the fastest of what a user gets by writing the usual step."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional

from ..cases import Arrays, Case, Run
from ..machine import cores
from ..networks import Network
from ..questions.train import Train

VERSIONS = {"torch": torch.__version__}

ACTIVATIONS = {"linear": "Identity", "relu": "ReLU", "gelu": "GELU", "sigmoid": "Sigmoid", "tanh": "Tanh"}
OPTIMIZERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}

Function = Callable[..., Any]

torch.set_num_threads(cores())


def unchanged(function: Function) -> Function:
    """The function itself: nothing is compiled."""
    return function


def prepare(
    case: Case, data: Arrays, compiled: Function = unchanged, optimizer_options: dict[str, Any] | None = None
) -> Run | None:
    """Prediction and training of networks."""
    if not isinstance(case, Network) or case.activation not in ACTIVATIONS:
        return None
    model = network(case, data)
    x, target = torch.from_numpy(data["x"]), torch.from_numpy(data["target"])
    if not isinstance(case, Train):
        return predict(compiled(model), x)
    if case.optimizer not in OPTIMIZERS:
        return None
    options = {"fused": True} if optimizer_options is None else optimizer_options
    optimizer = OPTIMIZERS[case.optimizer](model.parameters(), lr=case.learning_rate, **options)
    return train(model, compiled(lambda: functional.cross_entropy(model(x), target)), optimizer, x)


def network(case: Network, data: Arrays) -> Any:
    """The network with the weights of `data`."""
    layers: list[Any] = []
    for index, (inner, outer) in enumerate(pairwise(case.widths)):
        layer = torch.nn.Linear(inner, outer, dtype=getattr(torch, case.dtype))
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(data[f"w{index}"]).T)
            layer.bias.copy_(torch.from_numpy(data[f"b{index}"]))
        layers += [layer, getattr(torch.nn, ACTIVATIONS[case.activation])()]
    return torch.nn.Sequential(*layers[:-1])


def predict(model: Any, x: Any) -> Run:
    """The logits."""
    results: dict[str, Any] = {}

    def call() -> None:
        with torch.inference_mode():
            results["logits"] = model(x)

    return Run(call, lambda: {"logits": results["logits"].numpy()})


def train(model: Any, forward: Function, optimizer: Any, x: Any) -> Run:
    """Forward with the loss, backward, update."""
    results: dict[str, Any] = {}

    def call() -> None:
        optimizer.zero_grad()
        loss = forward()
        loss.backward()
        optimizer.step()
        results["loss"] = loss.detach()

    def outputs() -> Arrays:
        with torch.inference_mode():
            return {"loss": results["loss"].numpy(), "logits": model(x).numpy()}

    return Run(call, outputs)
