"""Predictions: row by row, whatever the source and the size of the blocks, without changing the model."""

from __future__ import annotations

import numpy as np
import pytest

import fcdense as fc
from fcdense.errors import ArgumentError, DTypeError, ShapeError
from fcdense.inference import evaluating, predict
from tests.training import F64, X, same, small_net


def network() -> fc.nn.Sequential:
    model = small_net()
    model(X)
    return model


def test_predictions_are_those_of_evaluation_mode_and_leave_no_trace():
    model = network().train()
    model[2].eval()
    modes = [module.training for module in model.modules()]
    state, numbers = model.state_dict(), fc.random.random_state().words[1]
    found = predict(model, X)
    assert [module.training for module in model.modules()] == modes
    assert same(model.state_dict(), state)
    assert fc.random.random_state().words[1] == numbers
    np.testing.assert_array_equal(found, model.eval()(X).numpy())
    assert (type(found), found.dtype, found.shape) == (np.ndarray, np.float64, (24, 3))
    found[0] = 0.0  # it is the caller's own
    np.testing.assert_array_equal(fc.Trainer(model).predict(X)[1:], found[1:])


@pytest.mark.parametrize("batch_size", [1, 5, 24, 100])
def test_the_size_of_the_blocks_does_not_matter(batch_size):
    model = network()
    np.testing.assert_allclose(predict(model, X, batch_size=batch_size), predict(model, X), rtol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda: X.tolist(),
        lambda: fc.tensor(X),
        lambda: np.asfortranarray(X),
        lambda: X.astype(">f8"),
        lambda: fc.data.Batches(X, batch_size=7, shuffle=False),
        lambda: fc.data.DataLoader(fc.data.Batches(X, np.zeros(24), batch_size=7, shuffle=False)),
        lambda: [(X[:9], np.zeros(9)), (X[9:], np.zeros(15))].__iter__(),
        lambda: (X[i : i + 1] for i in range(24)),
        lambda: lambda: iter([X]),
    ],
    ids=["list", "tensor", "columns first", "big-endian", "Batches", "DataLoader", "pairs", "generator", "function"],
)
def test_rows_may_come_from_anywhere(make):
    model = network()
    np.testing.assert_allclose(predict(model, make()), predict(model, X), rtol=1e-12)


def test_no_rows_give_no_rows():
    model = network()
    assert predict(model, X[:0]).shape == (0, 3)
    assert predict(model, np.zeros((0, 7, 3))).shape == (0, 7, 3)


def test_rows_may_have_several_axes():
    x = np.random.default_rng(0).normal(size=(6, 4, 3))
    found = predict(network(), x, batch_size=4)
    np.testing.assert_allclose(found.reshape(24, 3), predict(network(), x.reshape(24, 3)), rtol=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_nan_stays_in_its_row(value):
    x = X.copy()
    x[3] = value
    model = fc.nn.Sequential(fc.nn.Dense(4, dtype=F64), fc.nn.Dense(3, dtype=F64))
    found = predict(model, x, batch_size=6)
    assert np.isnan(found).any(axis=1).tolist() == [row == 3 for row in range(24)]


class Recording(fc.nn.Module):
    """Tells whether gradients are being recorded."""

    def forward(self, x):
        return x * float(fc.tape.is_recording())


def test_nothing_is_recorded():
    assert not predict(Recording(), X).any()


class Pair(fc.nn.Module):
    def forward(self, x):
        return x, x


class Other(fc.nn.Module):
    """Not a row for each row."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("model", "x", "options", "error", "message"),
    [
        (Other(lambda x: x[::2]), X, {"batch_size": 7}, ShapeError, r"shape \(4, 3\) for 7 rows; predict"),
        (Other(lambda x: x.mean()), iter([X]), {}, ShapeError, r"shape \(\) for 24 rows"),
        (Other(lambda x: x.mean(axis=0, keepdims=True)), X, {}, ShapeError, r"shape \(1, 3\) for 24 rows"),
        (network(), X[0], {}, ShapeError, r"A single row is x\[None\]"),
        (network(), X[:, :2], {}, ShapeError, "has 2 features, its kernel expects 3"),
        (network(), X[:0, :2], {}, ShapeError, "has 2 features, its kernel expects 3"),
        (network(), [["a", "b", "c"]], {}, DTypeError, "x has dtype"),
        (network(), [[1.0], [1.0, 2.0]], {}, ShapeError, "ragged"),
        (network(), fc.data.Batches(X), {}, ArgumentError, "shuffled"),
        (network(), fc.data.DataLoader(fc.data.Batches(X)), {}, ArgumentError, "shuffled"),
        (network(), 3, {}, ArgumentError, "source is 3"),
        (network(), X, {"batch_size": 0}, ArgumentError, "batch_size is 0"),
        (Pair(), X, {}, ArgumentError, "The model returned tuple"),
    ],
)
def test_what_cannot_be_predicted_is_refused(model, x, options, error, message):
    with pytest.raises(error, match=message):
        predict(model, x, **options)


def test_the_modes_come_back_after_an_error():
    model = network().train()
    with pytest.raises(ShapeError), evaluating(model):
        assert not model[2].training
        model(X[:, :2])
    assert all(module.training for module in model.modules())
