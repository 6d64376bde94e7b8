"""A small network with everything that changes while it is trained, and its training step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

import fcdense as fc

Bits = dict[str, bytes]
STEPS = 20
RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 5))
LABELS = RNG.integers(0, 3, 16)
VALUES = RNG.normal(size=(16, 2))


def dense(units: int, activation: str | None = None, in_features: int | None = None, dtype: str = "float64") -> Any:
    return fc.nn.Dense(units, activation, in_features=in_features, dtype=dtype)


def network(lazy: bool = False) -> fc.nn.Sequential:
    """Normalization and dropout too, so that there are buffers and random numbers."""
    fc.manual_seed(1)
    layers = dense(7, "tanh"), fc.nn.BatchNorm(dtype="float64"), fc.nn.Dropout(0.2), dense(3)
    model = fc.nn.Sequential(*layers)
    if not lazy:
        model.eval()(X)
    return model.train()


def adam(model: fc.nn.Module) -> fc.optim.Adam:
    return fc.optim.Adam(model.parameters(), learning_rate=0.02, weight_decay=0.01)


def train(
    model: Callable[[Any], fc.Tensor],
    optimizer: fc.optim.Optimizer | Iterable[fc.optim.Optimizer],
    steps: Iterable[int],
) -> None:
    """Steps by number: each has its own rows and its own dropout."""
    several = [optimizer] if isinstance(optimizer, fc.optim.Optimizer) else list(optimizer)
    for step in steps:
        rows = np.random.default_rng(step).permutation(16)[:10]
        for one in several:
            one.zero_grad()
        fc.random.random_state().words[1] = step
        fc.losses.cross_entropy(model(X[rows]), LABELS[rows]).backward()
        for one in several:
            one.step()


def bits(model: fc.nn.Module) -> Bits:
    return {name: array.tobytes() for name, array in model.state_dict().items()}


def undisturbed(steps: int = STEPS) -> Bits:
    """What training without any change ends with."""
    model = network()
    optimizer = adam(model)
    train(model, optimizer, range(steps))
    return bits(model)


def assert_close(model: fc.nn.Module, expected: dict[str, np.ndarray], bound: float = 1e-12) -> None:
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=bound, err_msg=name)
