"""Batches: every row once, orders that can be repeated, errors that name the cure."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcdense.data import Batch, Batches
from fcdense.errors import ArgumentError, DataError, DTypeError, ShapeError


def table(n: int, features: int = 3) -> np.ndarray:
    """Row r is (r·I, r·I + 1, ...), so that every row tells its own number."""
    return np.arange(n * features, dtype=np.float32).reshape(n, features)


def row_numbers(batches: Batches) -> list[int]:
    return [int(row[0]) // batches._x.shape[-1] for batch in batches for row in batch.x]


@given(n=st.integers(1, 40), size=st.integers(1, 50), shuffle=st.booleans(), drop=st.booleans())
def test_an_epoch_visits_every_row_once(n: int, size: int, shuffle: bool, drop: bool) -> None:
    batches = Batches(table(n), np.arange(n), batch_size=size, shuffle=shuffle, drop_last=drop)
    sizes = [len(batch.x) for batch in batches]
    visited = row_numbers(batches)
    full, rest = divmod(n, min(size, n))
    assert sizes == [min(size, n)] * full + ([rest] if rest and not drop else [])
    assert len(batches) == len(sizes)
    assert batches.n == n
    assert len(set(visited)) == len(visited) == n - (rest if drop else 0)
    if not shuffle:
        assert visited == list(range(len(visited)))


def test_targets_and_weights_stay_with_their_rows() -> None:
    batches = Batches(table(17), np.arange(17), sample_weight=np.arange(17) / 16, batch_size=5)
    for x, y, weight in batches:
        assert (x[:, 0] == 3 * y).all()
        assert (weight == y / 16).all()


def test_what_was_not_given_is_none() -> None:
    (batch,) = Batches(table(2), shuffle=False)
    assert isinstance(batch, Batch)
    assert batch.y is None
    assert batch.sample_weight is None


def test_same_seed_same_order_and_other_epochs_differ() -> None:
    first, second = Batches(table(100), seed=3), Batches(table(100), seed=3)
    epochs = [row_numbers(first) for _ in range(4)]
    assert epochs == [row_numbers(second) for _ in range(4)]
    assert all(a != b for a, b in itertools.combinations(epochs, 2))
    assert epochs[0] != row_numbers(Batches(table(100), seed=4))


def test_any_epoch_can_be_resumed() -> None:
    whole = Batches(table(50), seed=9)
    epochs = [row_numbers(whole) for _ in range(5)]
    resumed = Batches(table(50), seed=9)
    resumed.set_epoch(3)
    assert row_numbers(resumed) == epochs[3] == whole.order(3).tolist()
    assert resumed.epoch == 4


def test_order_does_not_hang_on_the_global_generator() -> None:
    before = Batches(table(30)).order(0)
    np.random.seed(1)
    state = np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    assert (Batches(table(30)).order(0) == before).all()
    assert (np.random.get_state()[1] == state).all()  # type: ignore[index]


def test_seeds_wider_than_a_word_keep_their_own_orders() -> None:
    # As lists of 32-bit words (0, epoch 1) and (2**32, epoch 0) would be padded to the same entropy.
    assert (Batches(table(50), seed=0).order(1) != Batches(table(50), seed=2**32).order(0)).any()


def test_a_pass_that_is_left_early_does_not_come_again() -> None:
    batches = Batches(table(64), batch_size=8)
    first = next(iter(batches)).x
    assert batches.epoch == 1
    assert not np.array_equal(next(iter(batches)).x, first)


def test_two_passes_at_once_do_not_disturb_each_other() -> None:
    batches = Batches(table(20), batch_size=4)
    pairs = list(zip(batches, batches, strict=True))
    assert sorted(int(r) for a, _ in pairs for r in a.x[:, 0]) == sorted(int(r) for _, b in pairs for r in b.x[:, 0])
    assert batches.epoch == 2


def test_batches_are_fresh_arrays() -> None:
    x = table(8)
    for shuffle in (True, False):
        kept = [batch.x for batch in Batches(x, batch_size=4, shuffle=shuffle)]
        assert not any(np.shares_memory(batch, x) for batch in kept)
        assert not np.shares_memory(kept[0], kept[1])
        kept[0][:] = -1
    assert (x == table(8)).all()


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "u1", "i8", "?", ">f4", ">i2"])
@pytest.mark.parametrize("layout", ["C", "F", "strided"])
def test_dtype_is_kept_whatever_the_layout(dtype: str, layout: str) -> None:
    values = (table(12, 4) % 7).astype(dtype)
    x = {"C": values, "F": np.asfortranarray(values), "strided": np.repeat(values, 2, axis=1)[:, ::2]}[layout]
    for batch in Batches(x, np.arange(12), batch_size=5):
        assert batch.x.dtype == np.dtype(dtype).newbyteorder("=")
        assert batch.x.dtype.isnative
        assert batch.x.flags.c_contiguous
        assert (batch.x == values[batch.y]).all()


def test_leading_axes_and_target_axes_pass_through() -> None:
    (batch,) = Batches(np.zeros((6, 28, 28), np.float32), np.zeros((6, 10)))
    assert batch.x.shape == (6, 28, 28)
    assert batch.y is not None
    assert batch.y.shape == (6, 10)


def test_a_memory_map_is_read_batch_by_batch(tmp_path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, table(1000))
    mapped = np.load(path, mmap_mode="r")
    batches = Batches(mapped, batch_size=10)
    assert np.shares_memory(batches._x, mapped)
    batch = next(iter(batches))
    assert not isinstance(batch.x, np.memmap)
    assert (batch.x == table(1000)[batches.order(0)[:10]]).all()


def test_a_batch_larger_than_the_data_is_one_batch() -> None:
    for drop_last in (False, True):
        (batch,) = Batches(table(3), batch_size=1000, drop_last=drop_last)
        assert len(batch.x) == 3


def test_integer_weights_become_float32() -> None:
    (batch,) = Batches(table(3), sample_weight=[1, 2, 3], shuffle=False)
    assert batch.sample_weight is not None
    assert batch.sample_weight.dtype == np.float32
    assert batch.sample_weight.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"x": table(3), "y": [1, 2]}, ShapeError, ["x has 3 rows", "y has 2", "(3, 3)", "(2,)"]),
        ({"x": table(3), "sample_weight": [1.0]}, ShapeError, ["x has 3 rows", "sample_weight has 1"]),
        ({"x": table(3), "sample_weight": np.ones((3, 1))}, ShapeError, ["sample_weight", "(3, 1)", "(3,)"]),
        ({"x": table(3), "sample_weight": [1, -1, 1]}, DataError, ["sample_weight", "-1", "row 1"]),
        ({"x": table(3), "sample_weight": [1, 1, np.nan]}, DataError, ["nan", "row 2"]),
        ({"x": np.zeros((0, 4))}, DataError, ["x has 0 rows"]),
        ({"x": []}, ShapeError, ["x", "(0,)"]),
        ({"x": np.zeros((4, 0))}, ShapeError, ["x has 0 features", "(4, 0)"]),
        ({"x": table(3), "y": np.zeros((3, 0))}, ShapeError, ["y has 0 features"]),
        ({"x": [1.0, 2.0]}, ShapeError, ["x has shape (2,)", "x[:, None]"]),
        ({"x": 3.0}, ShapeError, ["x has shape ()"]),
        ({"x": table(3), "y": 1}, ShapeError, ["y has shape ()"]),
        ({"x": [[1, 2], [3, 4], [5]]}, ShapeError, ["x is ragged", "row 2 has length 1", "row 0 has length 2"]),
        ({"x": [[1, 2], 3]}, ShapeError, ["x is ragged"]),
        ({"x": [[[1], [2]], [[3], [4, 5]]]}, ShapeError, ["x is ragged"]),
        ({"x": np.array([[1, "a"]], dtype=object)}, DTypeError, ["x has dtype object", "encode"]),
        ({"x": [["a", "b"]]}, DTypeError, ["x has dtype <U1"]),
        ({"x": table(2), "y": ["cat", "dog"]}, DTypeError, ["y has dtype <U3", "np.unique(y, return_inverse=True)"]),
        ({"x": [[1j]]}, DTypeError, ["complex128"]),
        ({"x": [["2020-01-01"]], "y": np.array(["2020"], "M8[Y]")}, DTypeError, ["dtype"]),
        ({"x": np.ma.masked_array(table(2), [[1, 0, 0], [0, 0, 0]])}, DataError, ["masked", "filled"]),
        ({"x": table(3), "batch_size": 0}, ArgumentError, ["batch_size is 0", ">= 1"]),
        ({"x": table(3), "batch_size": -4}, ArgumentError, ["batch_size is -4"]),
        ({"x": table(3), "batch_size": 2.0}, ArgumentError, ["batch_size is 2.0", "integer"]),
        ({"x": table(3), "batch_size": True}, ArgumentError, ["batch_size is True"]),
        ({"x": table(3), "batch_size": None}, ArgumentError, ["batch_size is None"]),
        ({"x": table(3), "seed": -1}, ArgumentError, ["seed is -1", ">= 0"]),
        ({"x": table(3), "seed": None}, ArgumentError, ["seed is None"]),
    ],
)
def test_refused(arguments, error, words) -> None:
    with pytest.raises(error) as caught:
        Batches(**arguments)
    for word in words:
        assert word in str(caught.value)


def test_a_sparse_matrix_is_refused_with_its_cure() -> None:
    class Sparse:
        def toarray(self) -> np.ndarray:
            return table(2)

    with pytest.raises(DataError, match=r"sparse.*x\.toarray\(\)"):
        Batches(Sparse())  # type: ignore[arg-type]


def test_epoch_must_count() -> None:
    batches = Batches(table(3))
    for wrong in (-1, 1.5, "2"):
        with pytest.raises(ArgumentError, match="epoch"):
            batches.set_epoch(wrong)  # type: ignore[arg-type]
    assert batches.epoch == 0


def test_repr_tells_the_facts() -> None:
    assert repr(Batches(table(10), batch_size=4)) == (
        "Batches(10 rows, 3 batches of 4, shuffled with seed 0, next epoch 0)"
    )


@pytest.mark.parametrize("kind", ["contiguous", "strided", "no targets"])
def test_batches_written_into_arrays_of_the_caller(kind):
    generator = np.random.default_rng(5)
    x, y = generator.normal(size=(11, 3)), generator.integers(0, 9, 11)
    x = np.repeat(x, 2, axis=1)[:, ::2] if kind == "strided" else x
    batches = Batches(x, None if kind == "no targets" else y, batch_size=4)
    expected = list(batches)
    fixed = Batch(np.empty((4, 3)), None if kind == "no targets" else np.empty(4, y.dtype))
    batches.set_epoch(0)
    batches.write_into(fixed)
    for number, (batch, fresh) in enumerate(zip(batches, expected, strict=True)):
        assert (batch is fixed) == (number < 2)
        np.testing.assert_array_equal(batch.x, fresh.x)
        assert (batch.y is None and fresh.y is None) or (batch.y == fresh.y).all()
    batches.write_into(None)
    assert next(iter(batches)) is not fixed


@pytest.mark.parametrize("drop_last", [False, True])
def test_rows_of_the_batches_to_come(drop_last):
    batches = Batches(table(23), batch_size=4, drop_last=drop_last)
    order = batches.order(0)
    walk = iter(batches)
    next(walk)
    assert walk.ahead(0).shape == (0, 4)
    np.testing.assert_array_equal(walk.ahead(2), order[4:12].reshape(2, 4))
    np.testing.assert_array_equal(walk.ahead(99), order[4:20].reshape(4, 4))
    walk.skip(3)
    np.testing.assert_array_equal(next(walk).x, table(23)[order[16:20]])
    assert walk.ahead(9).shape == (0, 4)
    assert [len(batch.x) for batch in walk] == ([] if drop_last else [3])


def test_batches_written_into_wider_integers():
    x, y = table(11), np.arange(11, dtype=np.uint8)
    fixed = Batch(np.empty((4, x.shape[1]), x.dtype), np.empty(4, np.int64))
    batches = Batches(x, y, batch_size=4, shuffle=False)
    batches.write_into(fixed)
    assert [batch.y.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
