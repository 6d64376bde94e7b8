"""Targets and weights: of another length, of another kind, beyond the classes, or not there at all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import fcdense as fc
from fcdense.errors import ArgumentError, DataError, DTypeError, FcdenseError, ShapeError
from tests.bad_input.unchanged import facts, refused, settled, table

X, Y = table()
BCE = "binary_cross_entropy_with_logits"


def with_label(value: Any, row: int = 7) -> np.ndarray:
    y = Y.astype(np.result_type(Y, type(value))) if not isinstance(value, str) else Y.astype(object)
    y[row] = value
    return y


# outputs, loss, target, error, words
LABELS: dict[str, tuple[int, Any, Any, type[FcdenseError], tuple[str, ...]]] = {
    "too few": (3, "cross_entropy", Y[:-1], ShapeError, ("x has 12 rows and y has 11", "one row of y per row of x")),
    "too many": (3, "cross_entropy", np.r_[Y, 0], ShapeError, ("x has 12 rows and y has 13",)),
    "one class too many": (3, "cross_entropy", with_label(3), DataError, ("target is 3", "classes 0 to 2")),
    "negative": (3, "cross_entropy", with_label(-1), DataError, ("target is -1", "0 to 2", "ignore_index")),
    "fractions": (3, "cross_entropy", Y + 0.5, DataError, ("integers, not float64", "astype('int64')")),
    "NaN": (3, "cross_entropy", with_label(math.nan), DataError, ("target is nan", "class numbers are integers")),
    "text": (3, "cross_entropy", Y.astype(str), DTypeError, ("dtype <U", "np.unique(y, return_inverse=True)")),
    "text among numbers": (3, "cross_entropy", with_label("cat"), DTypeError, ("dtype object", "no numbers")),
    "one-hot of 4 classes": (3, "cross_entropy", np.eye(4)[Y], ShapeError, ("(12, 4)", "the logits (12, 3)")),
    "rows that are not one-hot": (3, "cross_entropy", 2 * np.eye(3)[Y], DataError, ("in row", "sum to 1")),
    "numbers among rows": (3, "cross_entropy", [0, [0, 1, 0], *Y[2:]], ShapeError, ("y is ragged",)),
    "one output": (1, "cross_entropy", Y % 2, ShapeError, ("(12, 1)", "K >= 2", BCE)),
    "three classes for two": (1, BCE, Y, DataError, ("target is 2", "0 to 1")),
    "one-hot for two classes": (1, BCE, np.eye(2)[Y % 2], ShapeError, ("(12, 1)", "(12, 2)", "Nothing is broadcast")),
    "class numbers for several labels": (3, BCE, Y, ShapeError, ("(12, 3)", "(12,)", "Nothing is broadcast")),
    "class numbers for values": (3, "mse", Y, ShapeError, ("(12, 3)", "(12,)", "Nothing is broadcast")),
    "another width": (3, "mse", np.ones((12, 2)), ShapeError, ("(12, 3)", "(12, 2)", "expected equal shapes")),
    "values as text": (1, "mse", Y.astype(str), DTypeError, ("y has dtype <U", "expected floats")),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_that_do_not_fit(case):
    outputs, loss, y, kind, words = LABELS[case]
    first = "cross_entropy" if outputs == 3 else "mse"
    trainer = settled(fc.nn.Dense(4, "tanh"), fc.nn.BatchNorm(), fc.nn.Dense(outputs), loss=first)
    trainer.loss = fc.losses.get(loss)
    for call in (lambda: trainer.fit(X, y, verbose=False), lambda: trainer.evaluate(X, y)):
        with refused(kind, *words, keeps=(trainer,)):
            call()


def test_labels_in_every_form_that_fits_are_the_same():
    forms = [Y, Y.tolist(), Y[:, None], Y.astype(np.uint8), np.eye(3)[Y], np.eye(3, dtype=bool)[Y], fc.tensor(Y)]
    values = {settled().evaluate(X, y)["loss"] for y in forms}
    assert len(values) == 1


def test_a_single_class_is_learned():
    trainer = settled(fc.nn.Dense(3), learning_rate=0.5)
    trainer.fit(X, np.ones(12, int), epochs=30, verbose=False)
    assert set(trainer.predict(X).argmax(axis=1)) == {1}
    assert trainer.evaluate(X, np.ones(12, int))["loss"] < 0.01


def test_a_wrong_label_in_a_later_batch_keeps_the_whole_steps_before_it():
    """Batches are looked at one by one; the failed one leaves no trace, in the statistics of BatchNorm neither."""
    trainer, expected = settled(), settled()
    y = with_label(9, row=8)
    with pytest.raises(DataError, match="target is 9"):
        trainer.fit([(X[rows], y[rows]) for rows in (slice(4), slice(4, 8), slice(8, 12))], verbose=False)
    expected.fit(X[:8], y[:8], batch_size=4, shuffle=False, verbose=False)
    assert facts(trainer.optimizer, trainer.model) == facts(expected.optimizer, expected.model)


# ---- weights of rows -------------------------------------------------------------------------------------------------


def weight_with(value: float) -> np.ndarray:
    weights = np.ones(12)
    weights[5] = value
    return weights


WEIGHTS: dict[str, tuple[Any, type[FcdenseError], tuple[str, ...]]] = {
    "negative": (weight_with(-1), DataError, ("sample_weight is -1.0 in row 5", "finite number >= 0")),
    "NaN": (weight_with(math.nan), DataError, ("sample_weight is nan in row 5", "finite number >= 0")),
    "infinite": (weight_with(math.inf), DataError, ("sample_weight is inf in row 5", "finite number >= 0")),
    "all zero": (np.zeros(12), DataError, ("The weights of all 12 rows are 0", "nothing to")),
    "too few": (np.ones(11), ShapeError, ("x has 12 rows and sample_weight has 11",)),
    "a column": (np.ones((12, 1)), ShapeError, ("(12, 1)", "one weight per row: (12,)")),
    "one number": (2.0, ShapeError, ("sample_weight has shape ()",)),
    "a name": ("balanced", DTypeError, ("sample_weight has dtype <U8",)),
    "complex": (np.ones(12, complex), DTypeError, ("sample_weight has dtype complex128",)),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_of_rows_that_mean_nothing(case):
    weights, kind, words = WEIGHTS[case]
    trainer = settled(fc.nn.Dense(3))
    for call in (trainer.fit, trainer.evaluate):
        options = {"verbose": False} if call == trainer.fit else {}
        keeps = () if case == "all zero" and call == trainer.fit else (trainer,)
        with refused(kind, *words, keeps=keeps):
            call(X, Y, sample_weight=weights, **options)
    assert trainer.optimizer.steps == 2


LOSS_WEIGHTS: dict[str, tuple[Any, type[FcdenseError], tuple[str, ...]]] = {
    "negative": (weight_with(-1), DataError, ("sample_weight is -1.0 in row 5", ">= 0")),
    "NaN": (weight_with(math.nan), DataError, ("sample_weight is nan in row 5", ">= 0")),
    "all zero": (np.zeros(12), DataError, ("0 in every row", "Leave such a batch out")),
    "too few": (np.ones(11), ShapeError, ("(11,)", "one for each row: (12,)")),
    "a name": ("balanced", DTypeError, ("dtype <U8",)),
}


@pytest.mark.parametrize("loss", [fc.losses.cross_entropy, fc.losses.mse, fc.losses.binary_cross_entropy_with_logits])
@pytest.mark.parametrize("case", LOSS_WEIGHTS)
def test_weights_of_rows_in_a_loss(loss, case):
    weights, kind, words = LOSS_WEIGHTS[case]
    model = fc.nn.Dense(3, in_features=3)
    target = Y if loss is fc.losses.cross_entropy else np.eye(3)[Y]
    with refused(kind, *words, keeps=(model,)):
        loss(model(X), target, weights)


# ---- weights of classes ----------------------------------------------------------------------------------------------

CLASS_WEIGHTS: dict[str, tuple[Any, type[FcdenseError], tuple[str, ...]]] = {
    "unknown class": ({3: 1.0}, ArgumentError, ("names class 3", "classes are 0 to 2")),
    "negative class": ({-1: 1.0}, ArgumentError, ("names class -1", "classes are 0 to 2")),
    "name of a class": ({"cat": 1.0}, ArgumentError, ("names class 'cat'", "classes are 0 to 2")),
    "True": ({True: 1.0}, ArgumentError, ("names class True", "classes are 0 to 2")),
    "negative": ({0: -1.0}, DataError, ("class_weight is -1.0", "finite number >= 0")),
    "NaN": ([1.0, math.nan, 1.0], DataError, ("class_weight is nan", "finite number >= 0")),
    "text": ({0: "x"}, DTypeError, ("class_weight has dtype", "expected floats")),
    "None": ({0: None}, DTypeError, ("class_weight has dtype object", "expected floats")),
    "too few": ([1.0, 2.0], ShapeError, ("class_weight has shape (2,)", "one weight for each class: (3,)")),
    "one number": (2.0, ShapeError, ("class_weight has shape ()", "(3,)")),
    "a name": ("balanced", DTypeError, ("class_weight has dtype <U8",)),
}


@pytest.mark.parametrize("case", CLASS_WEIGHTS)
def test_weights_of_classes_that_mean_nothing(case):
    weights, kind, words = CLASS_WEIGHTS[case]
    trainer = settled(class_weight=None)
    trainer.class_weight = weights
    for call in (lambda: trainer.fit(X, Y, verbose=False), lambda: trainer.evaluate(X, Y)):
        with refused(kind, *words, keeps=(trainer,)):
            call()
    with refused(kind, *words, keeps=(trainer,)):
        fc.losses.cross_entropy(trainer.model.eval()(X), Y, class_weight=weights)
