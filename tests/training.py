"""Small models and data for the tests of training, and comparisons of their states."""

from __future__ import annotations

import numpy as np

import fcdense as fc

F64 = "float64"


def linear(features: int = 3, outputs: int = 2, **options) -> fc.nn.Sequential:
    fc.manual_seed(1)
    return fc.nn.Sequential(fc.nn.Dense(outputs, dtype=F64, in_features=features, **options))


def small_net(outputs: int = 3) -> fc.nn.Sequential:
    fc.manual_seed(2)
    hidden = fc.nn.Dense(5, activation="tanh", dtype=F64)
    return fc.nn.Sequential(hidden, fc.nn.BatchNorm(dtype=F64), fc.nn.Dropout(0.2), fc.nn.Dense(outputs, dtype=F64))


def table(n: int = 24, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, 3)), generator.integers(0, classes, n)


def trained(model, *data, loss="cross_entropy", optimizer="sgd", epochs=2, trainer=None, **options) -> dict:
    fc.manual_seed(3)
    fc.Trainer(model, loss, optimizer, **(trainer or {})).fit(*data, epochs=epochs, verbose=False, **options)
    return model.state_dict()


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def close(a: dict, b: dict, bound: float = 1e-12) -> bool:
    return a.keys() == b.keys() and all(np.abs(a[name] - b[name]).max() <= bound for name in a)


X, Y = table()
