"""What training and evaluation accept as data, and the batches that they make of it."""

from __future__ import annotations

import numpy as np
import pytest

from fcdense.data import Batches, DataLoader
from fcdense.data.feed import feed, validation_feed
from fcdense.errors import ArgumentError, DataError, ShapeError

X = np.arange(20.0).reshape(10, 2)
Y = np.arange(10)


def test_arrays_come_in_order_unless_asked_otherwise():
    (batch,) = feed(X, Y)
    np.testing.assert_array_equal(batch.x, X)
    np.testing.assert_array_equal(batch.y, Y)
    assert [len(batch.x) for batch in feed(X, Y, usual=4)] == [4, 4, 2]
    assert [len(batch.x) for batch in feed(X, Y, usual=4, batch_size=3, drop_last=True)] == [3, 3, 3]
    shuffled = np.concatenate([batch.y for batch in feed(X, Y, shuffle=True, seed=1, batch_size=3)])
    assert sorted(shuffled) == Y.tolist() != shuffled.tolist()


def test_weights_stay_with_their_rows():
    for batch in feed(X, Y, Y + 0.5, shuffle=True, batch_size=3):
        np.testing.assert_array_equal(batch.sample_weight, batch.y + 0.5)


def test_a_loader_is_taken_as_it_is():
    loader = DataLoader([(X, Y)] * 3)
    assert feed(loader) is loader
    assert len(list(feed(loader, steps_per_epoch=2))) == 2
    assert len(list(feed(Batches(X, Y, batch_size=2), steps_per_epoch=4))) == 4


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X,), {}, "targets y are missing"),
        (([(X, Y)],), {"batch_size": 3}, "batch_size is for arrays"),
        (([(X, Y)], None, Y), {}, "sample_weight is for arrays"),
        ((X, Y), {"batch_size": 4, "steps_per_epoch": 4}, "10 rows make 3 batches of 4"),
        ((3,), {}, "source is 3"),
    ],
)
def test_what_does_not_go_together(arguments, options, message):
    with pytest.raises(ArgumentError, match=message):
        feed(*arguments, **options)


def test_validation_data():
    (batch,) = validation_feed((X, Y, Y), X, Y)
    np.testing.assert_array_equal(batch.sample_weight, Y)
    assert len(list(validation_feed([(X, Y)] * 2, X, Y))) == 2
    assert len(list(validation_feed((X[:, :1], Y), [(X, Y)], None))) == 1
    with pytest.raises(ShapeError, match=r"rows of shape \(1,\), x of \(2,\)"):
        validation_feed((X[:, :1], Y), X, Y)
    for bad in ((X,), (X, None), (X, Y, Y, Y)):
        with pytest.raises(ArgumentError, match=f"a tuple of {len(bad)}"):
            validation_feed(bad, X, Y)


@pytest.mark.parametrize("given", [[X, Y], [X, Y, Y], [X]])
def test_validation_data_in_a_list(given):
    with pytest.raises(ArgumentError, match=r"validation_data is a list of arrays.*\(x, y\).*tuple"):
        validation_feed(given, X, Y)


def test_validation_data_that_comes_only_once():
    once = (batch for batch in [(X, Y)])
    assert len(list(validation_feed(once, X, Y))) == 1
    for used_up in (once, DataLoader(once), DataLoader(once, steps_per_epoch=1)):
        with pytest.raises(DataError, match=r"'<genexpr>' was used up before epoch 0.*pass the function"):
            validation_feed(used_up, X, Y)
    for later in ((batch for batch in [(X, Y)]), iter([(X, Y)])):
        with pytest.raises(DataError, match=r"yields its batches once, and 3 epochs need them.*pass the function"):
            validation_feed(later, X, Y, epochs=3)
        assert len(list(later)) == 1
    validation_feed(DataLoader((batch for batch in [(X, Y)]), steps_per_epoch=1), X, Y, epochs=3)
