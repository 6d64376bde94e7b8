"""DataLoader: the same Batch tuples from functions, generators, lists and foreign loaders."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from fcdense.data import Batch, Batches, DataLoader
from fcdense.errors import ArgumentError, DataError, DTypeError, ShapeError

X = np.arange(6.0).reshape(2, 3)
Y = np.array([0, 1])
W = np.array([0.5, 2.0])


def three():
    for k in range(3):
        yield X + k, Y


def forever():
    k = 0
    while True:
        yield X + k
        k += 1


def test_a_function_is_called_in_every_epoch() -> None:
    loader = DataLoader(three)
    for epoch in range(3):
        assert loader.epoch == epoch
        assert [float(batch.x[0, 0]) for batch in loader] == [0, 1, 2]


@pytest.mark.parametrize("item", [X, (X,), (X, Y), [X, Y], (X, Y, W), Batch(X, Y), (X, None, W), (X.tolist(),)])
def test_every_form_of_a_batch(item) -> None:
    (batch,) = DataLoader([item])
    assert isinstance(batch, Batch)
    parts = list(item) if isinstance(item, tuple | list) else [item]
    for given, got in zip(parts + [None] * 3, batch, strict=False):
        assert (got is None) if given is None else np.array_equal(got, given)


def test_a_used_up_generator_names_the_cure() -> None:
    loader = DataLoader(three())
    assert len(list(loader)) == 3
    with pytest.raises(DataError, match=r"'three' was used up before epoch 1.*pass the function.*DataLoader\(f\)"):
        iter(loader)


def test_a_generator_that_was_used_up_elsewhere_is_an_error_at_once() -> None:
    generator = three()
    list(generator)
    with pytest.raises(DataError, match="Generator 'three' was used up before epoch 0"):
        list(DataLoader(generator))


def test_a_generator_goes_on_over_epochs_of_given_length() -> None:
    loader = DataLoader(forever(), steps_per_epoch=4)
    assert len(loader) == loader.steps_per_epoch == 4
    assert [[float(b.x[0, 0]) for b in loader] for _ in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_function_starts_anew_in_epochs_of_given_length() -> None:
    loader = DataLoader(forever, steps_per_epoch=2)
    assert [[float(b.x[0, 0]) for b in loader] for _ in range(2)] == [[0, 1], [0, 1]]


@pytest.mark.parametrize(("source", "cure"), [(three, "Lower steps_per_epoch"), (three(), "pass the function")])
def test_steps_per_epoch_longer_than_the_source(source, cure) -> None:
    with pytest.raises(
        DataError, match=f"'three' ended after 3 batches of epoch 0, expected steps_per_epoch=5.*{cure}"
    ):
        list(DataLoader(source, steps_per_epoch=5))


def test_an_epoch_without_batches_is_an_error() -> None:
    with pytest.raises(DataError, match="'list' ended after 0 batches of epoch 0, expected at least one"):
        list(DataLoader([]))


def test_errors_inside_a_generator_keep_their_class_and_gain_a_note() -> None:
    def broken():
        yield X
        raise KeyError("column")

    loader = DataLoader(broken)
    with pytest.raises(KeyError) as caught:
        list(loader)
    assert caught.value.__notes__ == ["Raised by 'broken' while making batch 1 of epoch 0."]
    with pytest.raises(KeyError) as caught:
        list(loader)
    assert "batch 1 of epoch 1" in caught.value.__notes__[0]


def test_errors_at_the_start_gain_a_note() -> None:
    def unopened():
        raise OSError("no disk")

    with pytest.raises(OSError, match="no disk") as caught:
        list(DataLoader(unopened))
    assert caught.value.__notes__ == ["Raised by 'unopened' at the start of epoch 0."]


def test_errors_of_the_caller_get_no_note() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        sum(1 / 0 for _ in DataLoader(three))
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize(
    ("item", "error", "words"),
    [
        (None, DataError, ["got a NoneType"]),
        ((), DataError, ["got a tuple of 0 entries"]),
        ((X, Y, W, X), DataError, ["got a tuple of 4 entries"]),
        ({"x": X}, DataError, ["got a dict of 1 entries", "(x, y)"]),
        ((X, Y[:1]), ShapeError, ["x has 2 rows and y has 1"]),
        ((X, Y, W[:1]), ShapeError, ["x has 2 rows", "sample_weight has 1"]),
        ((X[0], Y), ShapeError, ["x has shape (3,)"]),
        ((X, 1), ShapeError, ["y has shape ()"]),
        ((X[:0], Y[:0]), DataError, ["x has 0 rows"]),
        ((X, ["a", "b"]), DTypeError, ["y has dtype <U1"]),
        ((X, Y, -W), DataError, ["sample_weight is -0.5 in row 0"]),
        ("text", DTypeError, ["x has dtype <U4"]),
    ],
)
def test_what_is_no_batch_is_named_with_its_place(item, error, words) -> None:
    def source():
        yield X, Y
        yield item

    with pytest.raises(error) as caught:
        list(DataLoader(source))
    for word in ["batch 1 of 'source'", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("source", [X, "file.csv", {"x": X}])
def test_rows_instead_of_batches_are_refused(source) -> None:
    with pytest.raises(ArgumentError, match=r"Batches\(x, y\)"):
        DataLoader(source)


def test_what_cannot_be_walked_is_refused() -> None:
    with pytest.raises(ArgumentError, match="source is 7"):
        DataLoader(7)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [0, -1, 2.5, True])
def test_steps_per_epoch_must_count(steps) -> None:
    with pytest.raises(ArgumentError, match="steps_per_epoch"):
        DataLoader(three, steps_per_epoch=steps)


def test_length() -> None:
    assert len(DataLoader([X, X])) == 2
    assert DataLoader(three).steps_per_epoch is None
    with pytest.raises(TypeError, match="'three' is not known"):
        len(DataLoader(three))


def test_an_epoch_number_reaches_the_source() -> None:
    x = np.arange(40.0)[:, None]
    loader = DataLoader(Batches(x, batch_size=8, seed=5))
    loader.set_epoch(2)
    got = np.concatenate([batch.x[:, 0] for batch in loader])
    assert (got == x[Batches(x, seed=5).order(2), 0]).all()
    assert loader.epoch == 3


def test_classes_and_partials_are_functions_too() -> None:
    class Source:
        def __iter__(self):
            return three()

    for source in (Source, Source(), partial(three)):
        loader = DataLoader(source)
        assert [len(list(loader)) for _ in range(2)] == [3, 3]


def test_a_torch_loader() -> None:
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.arange(12.0).reshape(6, 2), torch.arange(6))
    loader = DataLoader(torch.utils.data.DataLoader(data, batch_size=4))
    assert len(loader) == 2
    batches = list(loader)
    assert [batch.x.shape for batch in batches] == [(4, 2), (2, 2)]
    assert np.concatenate([batch.y for batch in batches]).tolist() == [0, 1, 2, 3, 4, 5]
    assert batches[0].x.dtype == np.float32


def test_rows_of_the_batches_to_come() -> None:
    x = np.arange(23.0)[:, None]
    source = Batches(x, batch_size=4)
    for steps, left in ((None, 4), (4, 3), (2, 1)):
        loader = DataLoader(source, steps_per_epoch=steps)
        walk = iter(loader)
        next(walk)
        rows = walk.ahead(9)
        np.testing.assert_array_equal(rows, source.order(0)[4 : 4 + 4 * left].reshape(left, 4))
        walk.skip(left - 1)
        np.testing.assert_array_equal(next(walk).x[:, 0], rows[-1])
        assert [len(batch.x) for batch in walk] == ([3] if steps is None else [])
    assert iter(DataLoader(three)).ahead(9).shape == (0, 0)


def test_repr_tells_the_facts() -> None:
    assert repr(DataLoader(three, steps_per_epoch=2)) == "DataLoader(three, steps_per_epoch=2, next epoch 0)"
