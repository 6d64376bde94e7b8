"""A network, data and a step for the tests of captured steps."""

from __future__ import annotations

import numpy as np

import fcdense as fc

STEPS = 7
X = np.random.default_rng(0).normal(size=(STEPS, 6, 5)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 3, (STEPS, 6))


def network(*middle, **options) -> fc.nn.Sequential:
    fc.manual_seed(4)
    return fc.nn.Sequential(fc.nn.Dense(8, "gelu", **options), *middle, fc.nn.Dense(3))


def training(model, optimizer, **step_options):
    """A step that builds nothing: the model has been called, the optimizer is there."""

    def step(x, y):
        optimizer.zero_grad()
        loss = fc.losses.cross_entropy(model(x), y)
        penalty = model.penalty()
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step(**step_options)
        return loss

    return step


def adam(parameters, **options):
    return fc.optim.Adam(parameters, **{"learning_rate": 0.05, **options})
