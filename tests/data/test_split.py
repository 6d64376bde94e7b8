"""Splits: disjoint, complete, repeatable, and in proportion where asked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcdense.data import Dataset, split_rows, train_test_split, validation_split
from fcdense.errors import ArgumentError, DataError, DTypeError, ShapeError


@given(n=st.integers(2, 60), share=st.floats(0.01, 0.99), seed=st.integers(0, 2**40))
def test_parts_are_disjoint_and_complete(n: int, share: float, seed: int) -> None:
    first, second = split_rows(n, share, seed=seed)
    assert sorted([*first, *second]) == list(range(n))
    assert len(first) >= 1
    assert len(second) == min(max(round(n * share), 1), n - 1)
    again = split_rows(n, share, seed=seed)
    assert (again[0] == first).all()
    assert (again[1] == second).all()


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6), share=st.floats(0.05, 0.5))
def test_stratified_parts_keep_proportions(sizes: list[int], share: float) -> None:
    labels = np.repeat(np.arange(len(sizes)) * 3 - 1, sizes)
    n_test = min(max(round(len(labels) * share), 1), max(len(labels) - 1, 1))
    if len(labels) < 2 or n_test > sum(sizes) - len(sizes):
        with pytest.raises(DataError):
            split_rows(len(labels), share, labels=labels)
        return
    first, second = split_rows(len(labels), share, labels=labels)
    assert sorted([*first, *second]) == list(range(len(labels)))
    assert len(second) == n_test
    for k, size in enumerate(sizes):
        in_test = int((labels[second] == k * 3 - 1).sum())
        assert in_test <= size - 1
        if min(sizes) > 1 / (1 - share) + 1:  # no class runs into the cap of size - 1
            assert abs(in_test - size * n_test / len(labels)) < 1


def test_proportions_in_closed_form() -> None:
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    _, second = split_rows(160, 0.2, labels=labels)
    assert np.bincount(labels[second]).tolist() == [20, 10, 2]


def test_a_class_of_one_row_is_trained_on() -> None:
    labels = np.array([0] * 10 + [1])
    for seed in range(20):
        first, second = split_rows(11, 0.5, labels=labels, seed=seed)
        assert 10 in first
        assert len(second) == 6


def test_stratified_rows_come_mixed() -> None:
    first, second = split_rows(100, 0.5, labels=np.repeat([0, 1], 50))
    assert (np.diff(first) < 0).any()
    assert (np.diff(second) < 0).any()


def test_train_test_split_keeps_rows_together() -> None:
    x, y = np.arange(60, dtype=np.float32).reshape(20, 3), np.arange(20)
    x_train, x_test, y_train, y_test = train_test_split(x, y, 0.25, seed=1)
    assert (x_train.shape, x_test.shape, y_train.shape, y_test.shape) == ((15, 3), (5, 3), (15,), (5,))
    assert (x_train[:, 0] == 3 * y_train).all()
    assert (x_test[:, 0] == 3 * y_test).all()
    assert sorted([*y_train, *y_test]) == list(range(20))
    assert x_train.dtype == np.float32
    assert not np.shares_memory(x_train, x)


def test_another_seed_gives_other_parts() -> None:
    parts = [split_rows(50, 0.2, seed=seed)[1].tolist() for seed in (0, 1)]
    assert parts[0] != parts[1]


def test_validation_split_carries_weights() -> None:
    x = np.arange(10.0)[:, None]
    training, validation = validation_split(x, np.arange(10), 0.3, sample_weight=np.arange(10) / 2)
    assert len(validation.x) == 3
    for x_part, y_part, weight in (training, validation):
        assert (x_part[:, 0] == y_part).all()
        assert (weight == y_part / 2).all()
    training, validation = validation_split(x)
    assert len(validation.x) == 2
    assert training.y is None
    assert training.sample_weight is None


@pytest.mark.parametrize("share", [0, 1, 0.0, 1.0, -0.2, 1.5, 30, True, float("nan"), "0.2", None])
def test_the_share_lies_between_0_and_1(share) -> None:
    x = np.zeros((10, 2))
    with pytest.raises(ArgumentError, match=r"test_size is .*0 < test_size < 1"):
        train_test_split(x, np.zeros(10), share)
    with pytest.raises(ArgumentError, match=r"validation_split is .*0 < validation_split < 1"):
        validation_split(x, fraction=share)


@pytest.mark.parametrize(
    ("x", "y", "options", "error", "words"),
    [
        (np.zeros((5, 2)), np.zeros(4), {}, ShapeError, "x has 5 rows and y has 4"),
        (np.zeros((1, 2)), np.zeros(1), {}, DataError, "1 row cannot be split"),
        (np.zeros((0, 2)), np.zeros(0), {}, DataError, "x has 0 rows"),
        (np.zeros((5, 2)), np.zeros(5), {"seed": -1}, ArgumentError, "seed is -1"),
        (np.zeros((5, 2)), np.zeros((5, 2)), {"stratify": True}, ShapeError, r"y has shape \(5, 2\)"),
        (np.zeros((2, 2)), [0.5, 1.0], {"stratify": True}, DataError, "y has fractions"),
        (np.zeros((2, 2)), [np.nan, 1.0], {"stratify": True}, DataError, "NaN"),
        (np.zeros((2, 2)), ["a", "b"], {"stratify": True}, DTypeError, "np.unique"),
        (np.zeros((3, 2)), [0, 1, 2], {"stratify": True}, DataError, "last row of some of the 3 classes; at most 0"),
        (np.zeros((3, 2)), [0, 1, 2], {"stratify": True}, DataError, r"Lower test_size or pass stratify=False\.$"),
    ],
)
def test_refused(x, y, options, error, words) -> None:
    with pytest.raises(error, match=words):
        train_test_split(x, y, **options)


def test_the_cure_is_one_that_the_caller_has() -> None:
    with pytest.raises(DataError, match=r"Lower test_size or leave out labels\.$"):
        split_rows(3, 0.2, labels=[0, 1, 2])
    rows = Dataset(name="rows", task="classification", class_names=("a", "b"), x=np.zeros((2, 1)), y=np.arange(2))
    with pytest.raises(DataError, match=r"Lower test_size \(--test-size\) or add rows of the rare classes"):
        rows.split()
