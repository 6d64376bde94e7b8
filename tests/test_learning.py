"""Networks learn: accuracies that published results of the same networks reach."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

import fcdense as fc


def network(sizes: list[int], dropout: float = 0.0) -> fc.nn.Sequential:
    layers: list[fc.nn.Module] = [fc.nn.Flatten()]
    for units in sizes[:-1]:
        layers.append(fc.nn.Dense(units, activation="relu"))
        if dropout:
            layers.append(fc.nn.Dropout(dropout))
    return fc.nn.Sequential(*layers, fc.nn.Dense(sizes[-1]))


def test_digits_are_learned_in_seconds():
    accuracies, seconds = [], []
    for seed in range(5):
        data = fc.data.digits().split(0.2, seed=seed)
        fc.manual_seed(seed)
        trainer = fc.Trainer(network([128, 64, 10]), "cross_entropy", "adam", metrics=["accuracy"], seed=seed)
        started = time.perf_counter()
        trainer.fit(data.x_train, data.y_train, epochs=30, batch_size=32, verbose=False)
        seconds.append(time.perf_counter() - started)
        accuracies.append(trainer.evaluate(data.x_test, data.y_test)["accuracy"])
    assert np.mean(accuracies) >= 0.97
    assert np.median(seconds) < 3.0


def real_data(name: str) -> fc.data.SplitDataset:
    folder = Path(os.environ.get("FCDENSE_CACHE", "")) / name
    if not folder.is_dir():
        pytest.skip(f"FCDENSE_CACHE names no folder with {name}")
    return {"mnist": fc.data.mnist, "fashion-mnist": fc.data.fashion_mnist}[name]()


@pytest.mark.real_data
@pytest.mark.slow
def test_fashion_mnist():
    data = real_data("fashion-mnist")
    accuracies = []
    for seed in range(3):
        fc.manual_seed(seed)
        schedule = fc.optim.schedules.CosineDecay(1e-3, steps=15 * 469)
        trainer = fc.Trainer(
            network([256, 128, 10]), "cross_entropy", "adam", metrics=["accuracy"], learning_rate=schedule, seed=seed
        )
        trainer.fit(data.x_train, data.y_train, epochs=15, batch_size=128, verbose=False)
        accuracies.append(trainer.evaluate(data.x_test, data.y_test)["accuracy"])
    print("Fashion-MNIST, 3 seeds:", accuracies)
    assert np.mean(accuracies) >= 0.88


@pytest.mark.real_data
@pytest.mark.slow
def test_mnist():
    data = real_data("mnist")
    fc.manual_seed(0)
    trainer = fc.Trainer(network([512, 512, 10], dropout=0.2), "cross_entropy", "adam", metrics=["accuracy"])
    trainer.fit(data.x_train, data.y_train, epochs=10, batch_size=128, verbose=False)
    accuracy = trainer.evaluate(data.x_test, data.y_test)["accuracy"]
    print("MNIST:", accuracy)
    assert accuracy >= 0.98
