"""Gradients of several batches in one step, and the averages of an epoch."""

from __future__ import annotations

import math

import numpy as np
import pytest

import fcdense as fc
from fcdense.accumulation import Average, Step
from fcdense.data import Batch
from fcdense.errors import DataError
from tests.training import F64


def weight_and_step(**options) -> tuple[fc.nn.Dense, Step]:
    """One weight w = 1, whose update is w - gradient."""
    layer = fc.nn.Dense(1, use_bias=False, kernel_initializer=1.0, dtype=F64, in_features=1)
    return layer, Step(fc.optim.SGD(layer.parameters(), learning_rate=1.0), **{"buffers": (), **options})


def test_gradients_count_by_the_weight_of_their_batches():
    layer, step = weight_and_step()
    for slope, weight in ((3.0, 2.0), (-1.0, 5.0), (0.5, 0.25)):
        step.add(layer.kernel.sum() * slope, weight)
    assert step.batches == 3
    assert step.finish()
    expected = 1.0 - (3.0 * 2 - 1.0 * 5 + 0.5 * 0.25) / 7.25
    assert layer.kernel.item() == pytest.approx(expected, rel=1e-15)
    assert step.batches == 0
    step.add(layer.kernel.sum(), 9.0)
    step.finish()
    assert layer.kernel.item() == pytest.approx(expected - 1.0, rel=1e-15)


def test_undo_forgets_gradients_and_brings_buffers_back():
    norm = fc.nn.BatchNorm(dtype=F64, in_features=2)
    late = fc.nn.BatchNorm(dtype=F64)
    model = fc.nn.Sequential(norm, late)
    buffers = [(layer, name) for layer in (norm, late) for name in ("running_mean", "running_var")]
    step = Step(fc.optim.SGD(model.parameters()), buffers)
    loss = model(np.array([[1.0, 5.0], [3.0, 9.0]])).sum()
    step.add(loss, 1.0)
    assert norm.running_mean.numpy()[1] != 0.0
    step.undo()
    assert norm.running_mean.numpy().tolist() == [0.0, 0.0]
    assert norm.running_var.numpy().tolist() == [1.0, 1.0]
    assert late.running_mean is None
    assert not any(parameter.has_grad for parameter in model.parameters())
    model(np.ones((2, 2)))
    assert late.running_mean.shape == (2,)


def test_a_step_that_is_not_finite_is_not_made():
    layer, step = weight_and_step()
    step.add(layer.kernel.sum() * np.inf, 1.0)
    assert not step.finish()
    assert layer.kernel.item() == 1.0


def test_averages():
    average = Average([fc.metrics.get("accuracy")])
    assert math.isnan(average.loss)
    assert math.isnan(average.result()["loss"])
    right, wrong = fc.tensor([[0.0, 1.0]]), fc.tensor([[1.0, 0.0]])
    average.add(2.0, 1.0, right, Batch(np.ones((1, 1)), np.array([1])))
    average.add(5.0, 3.0, wrong, Batch(np.ones((1, 1)), np.array([1])))
    assert average.loss == (2.0 + 15.0) / 4.0
    assert average.result() == {"loss": 4.25, "accuracy": 0.5}
    assert math.isnan(Average([fc.metrics.get("accuracy")]).result()["accuracy"])


@pytest.mark.parametrize("name", ["accuracy", "mse", "r2", "top_2"])
def test_many_batches_count_as_one_by_one(name, rng):
    losses, prediction = rng.normal(size=7).tolist(), rng.normal(size=(7, 5, 3))
    target = rng.normal(size=(7, 5, 3)) if name in ("mse", "r2") else rng.integers(0, 3, (7, 5))
    single, together = (Average([fc.metrics.get(name)]) for _ in range(2))
    for loss, p, t in zip(losses, prediction, target, strict=True):
        single.add(loss, 5.0, fc.tensor(p), Batch(np.ones((5, 1)), t))
    for part in (slice(0, 2), slice(2, 7)):
        together.measure(prediction[part], target[part])
        together.add_losses(losses[part], 5)
    assert together.result() == single.result()


def test_rows_without_any_weight_have_no_average():
    average = Average([])
    average.add(0.0, 0.0, fc.tensor([[1.0]]), Batch(np.ones((7, 1))))
    with pytest.raises(DataError, match="weights of all 7 rows are 0"):
        average.result()
