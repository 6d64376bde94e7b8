"""PyTorch, eager, with its fused optimizers: the fastest of what a user gets by writing the usual step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional

from ..cases import Arrays, Case, Run, nothing
from ..machine import cores
from ..networks import Network
from ..questions.train import Train

VERSIONS = {"torch": torch.__version__}

ACTIVATIONS = {"linear": "Identity", "relu": "ReLU", "gelu": "GELU", "sigmoid": "Sigmoid", "tanh": "Tanh"}
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}

Function = Callable[..., Any]

torch.set_num_threads(cores())


def unchanged(function: Function) -> Function:
    """The function itself: nothing is compiled."""
    return function


def prepare(
    case: Case,
    data: Arrays,
    compiled: Function = unchanged,
    optimizer_options: dict[str, Any] | None = None,
    on: str = "cpu",
    run: Function = unchanged,
) -> Run | None:
    """Prediction and training of networks on the device `on`; `run` may repeat a call in its own way."""
    if not isinstance(case, Network) or case.activation not in ACTIVATIONS:
        return None
    model = network(case, data).to(on)
    x, target = (torch.from_numpy(data[name]).to(on) for name in ("x", "target"))
    wait = torch.cuda.synchronize if on == "cuda" else nothing
    precision = partial(mixed, case, on)
    if not isinstance(case, Train):
        return predict(compiled(model), x, case.rows, precision, wait, run)
    if case.optimizer not in OPTIMIZERS:
        return None
    options = {"fused": True} if optimizer_options is None else optimizer_options
    optimizer = OPTIMIZERS[case.optimizer](model.parameters(), lr=case.learning_rate, **options)

    def loss() -> Any:
        with precision():
            return functional.cross_entropy(model(x), target)

    scaler = torch.amp.GradScaler(on) if case.dtype == "float16" else None
    update = partial(step, compiled(loss), optimizer, scaler)
    return train(model, update, x[: case.rows], precision, wait, run)


def mixed(case: Network, on: str) -> AbstractContextManager[Any]:
    """In which numbers the layers multiply."""
    return torch.autocast(on, getattr(torch, case.dtype)) if case.is_mixed else nullcontext()


def network(case: Network, data: Arrays) -> Any:
    """The network with the weights of `data`."""
    layers: list[Any] = []
    for index, (inner, outer) in enumerate(pairwise(case.widths)):
        layer = torch.nn.Linear(inner, outer, dtype=getattr(torch, data["x"].dtype.name))
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(data[f"w{index}"]).T)
            layer.bias.copy_(torch.from_numpy(data[f"b{index}"]))
        layers += [layer, getattr(torch.nn, ACTIVATIONS[case.activation])()]
    return torch.nn.Sequential(*layers[:-1])


def host(tensor: Any) -> Any:
    """A NumPy array; numbers of 16 bits as float32."""
    return (tensor.float() if tensor.itemsize == 2 else tensor).cpu().numpy()


def predict(model: Any, x: Any, rows: int, precision: Function, wait: Callable[[], None], run: Function) -> Run:
    """The logits."""
    results: dict[str, Any] = {}

    def call() -> None:
        with torch.inference_mode(), precision():
            results["logits"] = model(x)

    return Run(run(call), lambda: {"logits": host(results["logits"][:rows])}, wait)


def step(forward: Function, optimizer: Any, scaler: Any) -> Any:
    """Forward with the loss, backward, update; the loss."""
    optimizer.zero_grad()
    loss = forward()
    if scaler is None:
        loss.backward()
        optimizer.step()
    else:
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return loss.detach()


def train(model: Any, update: Function, x: Any, precision: Function, wait: Callable[[], None], run: Function) -> Run:
    """The step, over and over; its results are the loss, and what the new weights make of `x`."""
    results: dict[str, Any] = {}

    def call() -> None:
        results["loss"] = update()

    def outputs() -> Arrays:
        with torch.inference_mode(), precision():
            return {"loss": host(results["loss"]), "logits": host(model(x))}

    return Run(run(call), outputs, wait)
