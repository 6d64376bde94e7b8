"""How far float32 training strays from float64: no further than PyTorch's."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import fcdense as fc

torch = pytest.importorskip("torch")

SIZES = (96, 128, 64, 10)
STEPS = 3


def problem(seed: int, batch: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Rows, classes and kernels."""
    rng = np.random.default_rng(seed)
    kernels = [rng.standard_normal((i, o)) * np.sqrt(2 / i) for i, o in pairwise(SIZES)]
    x = rng.standard_normal((batch, SIZES[0])).astype(np.float32)
    return x, rng.integers(0, SIZES[-1], batch), [kernel.astype(np.float32) for kernel in kernels]


def theirs(seed: int, batch: int, optimizer: str, dtype: Any) -> np.ndarray:
    """Logits after some steps of PyTorch."""
    x, y, kernels = problem(seed, batch)
    layers: list[Any] = []
    for kernel in kernels:
        layer = torch.nn.Linear(*kernel.shape, dtype=dtype)
        layer.weight.data = torch.tensor(kernel.T.copy(), dtype=dtype)
        layer.bias.data.zero_()
        layers += [layer, torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    make = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimizer]
    update = make(model.parameters(), lr=0.01)
    rows, classes = torch.tensor(x, dtype=dtype), torch.tensor(y)
    for _ in range(STEPS):
        update.zero_grad()
        torch.nn.functional.cross_entropy(model(rows), classes).backward()
        update.step()
    return np.asarray(model(rows).detach().double())


def ours(seed: int, batch: int, optimizer: str) -> np.ndarray:
    """Logits after some captured steps."""
    x, y, kernels = problem(seed, batch)
    layers = [fc.nn.Dense(o, "relu" if o != SIZES[-1] else None) for o in SIZES[1:]]
    model = fc.nn.Sequential(*layers)
    model(x[:1])
    for parameter, kernel in zip([p for p in model.parameters() if p.ndim == 2], kernels, strict=True):
        parameter.assign(kernel)
    update = fc.optim.get(optimizer)(model.parameters(), learning_rate=0.01)

    @fc.capture
    def step(x: Any, y: Any) -> Any:
        update.zero_grad()
        loss = fc.losses.cross_entropy(model(x), y)
        loss.backward()
        update.step()
        return loss

    for _ in range(STEPS):
        step(x, y)
    return model(x).numpy()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("batch", [1, 32, 1024])
def test_errors_after_some_steps_are_those_of_pytorch(batch: int, optimizer: str) -> None:
    """The median over seeds: where a gradient is almost 0, Adam turns its rounding error into a step of full length."""
    errors = []
    for seed in range(9):
        true = theirs(seed, batch, optimizer, torch.float64)
        found = ours(seed, batch, optimizer), theirs(seed, batch, optimizer, torch.float32)
        errors.append([np.abs(logits - true).max() / np.abs(true).max() for logits in found])
    ours_, theirs_ = np.median(errors, axis=0)
    assert ours_ <= 2 * theirs_
