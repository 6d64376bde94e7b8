"""Rows of a class that is to be ignored, in losses and metrics, alone and in training."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import fcdense as fc
from fcdense import metrics
from fcdense.errors import ArgumentError, DataError
from tests.training import linear

ROWS, CLASSES = 40, 4
RNG = np.random.default_rng(5)
X = RNG.normal(size=(ROWS, 3))
SCORES = RNG.normal(size=(ROWS, CLASSES))
LABELS = RNG.integers(0, CLASSES, ROWS)
WEIGHTS = RNG.random(ROWS)
IGNORED = RNG.random(ROWS) < 0.3
KINDS = {
    "accuracy": metrics.Accuracy,
    "top_2": partial(metrics.TopK, 2),
}


def hits(kind):
    """Whether the class of each row is among the largest scores."""
    largest = np.argsort(-SCORES, axis=1)[:, : 1 if kind == "accuracy" else 2]
    return (largest == LABELS[:, np.newaxis]).any(axis=1)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("ignored", [-1, -100, 2, 9])
@pytest.mark.parametrize("kind", KINDS)
def test_they_count_for_nothing(kind, ignored, weights):
    labels = np.where(IGNORED, ignored, LABELS)
    rest = labels != ignored
    expected = np.average(hits(kind)[rest], weights=None if weights is None else weights[rest])
    whole, parts, grid = (KINDS[kind](ignore_index=ignored) for _ in range(3))
    whole.update(SCORES, labels[:, np.newaxis], weights)
    for rows in np.split(np.arange(ROWS), [1, 7, 30]):
        parts.update(SCORES[rows].tolist(), labels[rows].tolist(), None if weights is None else weights[rows])
    leading = None if weights is None else weights.reshape(8, 5)
    grid.update(fc.tensor(SCORES.reshape(8, 5, CLASSES)), labels.reshape(8, 5), leading)
    for metric in (whole, parts, grid):
        assert metric.result() == pytest.approx(expected, rel=1e-13)


def test_one_output():
    metric = metrics.Accuracy(ignore_index=-1)
    metric.update([-2.0, 1.0, 3.0, -1.0], [0, -1, 0, -1])
    assert metric.result() == 0.5
    metric.update([[5.0]], [[1]])
    assert metric.result() == pytest.approx(2 / 3)


def test_a_weight_of_each_leading_row_weighs_what_lies_below():
    metric = metrics.Accuracy(ignore_index=-1)
    metric.update([[[1.0, 0.0]] * 2, [[0.0, 1.0]] * 2], [[0, -1], [0, 0]], [3.0, 1.0])
    assert metric.result() == pytest.approx(3 / 5)


def test_no_row_is_left():
    metric = metrics.Accuracy(ignore_index=-1)
    metric.update(SCORES, np.full(ROWS, -1))
    assert np.isnan(metric.result())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [True, 1.0, "1"])
def test_what_is_no_class(kind, wrong):
    with pytest.raises(ArgumentError, match=r"ignore_index is .*, expected an integer or None"):
        KINDS[kind](ignore_index=wrong)
    with pytest.raises(ArgumentError, match=r"ignore_index is .*, expected an integer or None"):
        fc.Trainer(linear(), partial(fc.losses.cross_entropy, ignore_index=wrong)).fit(X, LABELS % 2, verbose=False)


def test_wrong_targets():
    metric = metrics.Accuracy(ignore_index=-1)
    with pytest.raises(
        DataError, match=r"holds the class -2, expected the integers 0 to 3\. To leave such rows out, pass"
    ):
        metric.update(SCORES, np.where(IGNORED, -2, LABELS))
    with pytest.raises(ArgumentError, match="the target has rows"):
        metric.update(SCORES, np.eye(CLASSES)[LABELS])
    assert np.isnan(metric.result())


@pytest.mark.parametrize("capture", [True, False])
def test_training_with_them(capture):
    """As without these rows: the loss and the accuracy of validation, and of an epoch of one batch."""
    found = []
    for x, y in ((X, np.where(IGNORED, -1, LABELS)), (X[~IGNORED], LABELS[~IGNORED])):
        loss = partial(fc.losses.cross_entropy, ignore_index=-1)
        measures = [metrics.Accuracy(ignore_index=-1), metrics.TopK(2, ignore_index=-1)]
        trainer = fc.Trainer(linear(outputs=CLASSES), loss, "sgd", metrics=measures, capture=capture)
        history = trainer.fit(x, y, epochs=3, batch_size=ROWS, validation_data=(x, y), shuffle=False, verbose=False)
        found.append({name: history[name] for name in trainer.measured})
    for name, values in found[0].items():
        np.testing.assert_allclose(values, found[1][name], rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("capture", [True, False])
def test_class_weights_beside_them(capture):
    """The loss of an epoch is the mean over the rows that count, each as heavy as its class."""
    labels = np.where(IGNORED, -1, LABELS)
    loss = partial(fc.losses.cross_entropy, ignore_index=-1)
    weights = {0: 2.0, 1: 0.0}
    trainer = fc.Trainer(linear(outputs=CLASSES), loss, class_weight=weights, capture=capture)
    logits = trainer.predict(X)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(ROWS), LABELS]
    by_row = np.where(IGNORED, 0.0, np.array([2.0, 0.0, 1.0, 1.0])[LABELS])
    found = trainer.evaluate(X, labels, batch_size=7)["loss"]
    assert found == pytest.approx(np.average(losses, weights=by_row), rel=1e-12)
    assert np.isfinite(trainer.fit(X, labels, batch_size=7, verbose=False)["loss"]).all()
