"""What may be given as data: kinds of elements, numbers of axes, and every way in which an array may lie in memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fcdense as fc
from fcdense.errors import ArgumentError, DTypeError, DTypeWarning, ShapeError
from tests.bad_input.unchanged import refused, settled, table

# ---- what is no array of numbers -------------------------------------------------------------------------------------

NOT_NUMBERS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "text": (np.array([["1", "2", "3"]] * 12), ("dtype <U1", "floats, integers or bool")),
    "bytes": (np.array([[b"1", b"2", b"3"]] * 12), ("dtype |S1", "floats, integers or bool")),
    "objects": (np.array([[1, None, 2]] * 12, object), ("dtype object", "floats, integers or bool")),
    "times": (np.zeros((12, 3), "M8[D]"), ("datetime64[D]", "floats, integers or bool")),
    "records": (np.zeros((12, 3), [("a", "f4")]), ("[('a', '<f4')]", "floats, integers or bool")),
    "complex": (np.ones((12, 3), np.complex64), ("complex64",)),
}


@pytest.mark.parametrize("case", NOT_NUMBERS)
def test_elements_that_are_no_real_numbers(case):
    trainer = settled()
    x, words = NOT_NUMBERS[case]
    calls: list[Callable[[], Any]] = [
        lambda: trainer.model(x),
        lambda: trainer.model(x.tolist()) if case != "records" else trainer.model(x),
        lambda: trainer.predict(x),
        lambda: trainer.evaluate(x, np.zeros(12, int)),
        lambda: trainer.fit(x, np.zeros(12, int), verbose=False),
        lambda: fc.tensor(x),
    ]
    for number, call in enumerate(calls):
        # A list has NumPy's default dtype: longer text, complex128, objects for dates.
        with refused(DTypeError, *(words if number != 1 or case == "objects" else ()), keeps=(trainer,)):
            call()


def test_ragged_lists():
    trainer = settled()
    ragged = [[1.0, 2.0, 3.0], [1.0, 2.0]]
    for call in (trainer.model, trainer.predict, fc.tensor):
        with refused(ShapeError, "ragged", "unequal lengths", "Pad", keeps=(trainer,)):
            call(ragged)
    with refused(ShapeError, "x is ragged: row 1 has length 2, row 0 has length 3", "pad or cut", keeps=(trainer,)):
        trainer.fit(ragged, [0, 1], verbose=False)


def test_too_few_axes():
    trainer = settled()
    number = np.float32(3)
    for given in (number, np.array(3.0), fc.tensor(3.0, dtype="float32")):
        with refused(ShapeError, "Dense 'layers.0': x is a single number", "expected (..., 3)", keeps=(trainer,)):
            trainer.model(given)
    for given in (3.0, None, "data.csv", {"x": 1}, iter([1.0])):
        with refused(ArgumentError, "Dense 'layers.0'", "expected a tensor, an array or a list", keeps=(trainer,)):
            trainer.model(given)
    with refused(ShapeError, "x has shape (3,)", "(N, ..., I)", "x[None]", keeps=(trainer,)):
        trainer.predict(np.ones(3, np.float32))
    with refused(ShapeError, "x has shape (12,)", "(rows, ..., features)", "x[:, None]", keeps=(trainer,)):
        trainer.fit(np.ones(12, np.float32), np.zeros(12, int), verbose=False)
    with refused(ShapeError, "x has shape ()", "(rows, ..., features)", keeps=(trainer,)):
        trainer.fit(number, np.zeros(12, int), verbose=False)


def test_a_masked_array_would_lose_its_mask():
    trainer = settled()
    x = np.ma.array(table()[0], mask=np.arange(36).reshape(12, 3) % 5 == 0)
    for call in (trainer.model, trainer.predict, fc.tensor):
        with refused(DTypeError, "masked", ".filled(", keeps=(trainer,)):
            call(x)
    with refused(fc.errors.DataError, "masked entries", ".filled(", keeps=(trainer,)):
        trainer.fit(x, np.zeros(12, int), verbose=False)


# ---- elements that are converted -------------------------------------------------------------------------------------

WHOLE = np.random.default_rng(1).integers(0, 2, (12, 3))
"""Zeros and ones, which every dtype holds exactly."""


def trained(x: np.ndarray, y: Any, dtype: str = "float32", loss: str = "cross_entropy") -> list[np.ndarray]:
    """All that comes out when a small network meets `x` at every door."""
    fc.manual_seed(0)
    model = fc.nn.Sequential(
        fc.nn.Dense(5, "gelu", dtype=dtype), fc.nn.LayerNorm(dtype=dtype), fc.nn.Dense(3, dtype=dtype)
    )
    trainer = fc.Trainer(model, loss, "adam")
    history = trainer.fit(x, y, epochs=2, batch_size=5, verbose=False)
    layer = model[0]
    layer.zero_grad()
    y_array, y_tensor = layer(x), layer(fc.tensor(x))
    y_array.sum().backward()
    with fc.no_grad():
        unrecorded = layer(x).numpy()
    results = [y_array.numpy(), y_tensor.numpy(), unrecorded, layer.kernel.grad.numpy(), layer.bias.grad.numpy()]
    results += [model(x).numpy(), trainer.predict(x), trainer.predict(x, batch_size=5)]
    return [*results, *model.state_dict().values(), np.array([*history["loss"], *trainer.evaluate(x, y).values()])]


@functools.cache
def expected(dtype: str, loss: str = "cross_entropy") -> list[np.ndarray]:
    return trained(WHOLE.astype(dtype), targets(loss), dtype, loss)


def targets(loss: str) -> np.ndarray:
    return table()[1] if loss == "cross_entropy" else table()[0].astype(np.float64)


def same_bits(found: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True) for a, b in zip(found, other, strict=True))


SILENT = ["bool", "int8", "uint8", "int16", ">i2", "int32", ">i4", "uint32", "int64", ">i8", "uint64", "float16", ">f2"]


@pytest.mark.parametrize("given", [*SILENT, ">f4", "float32"])
def test_dtypes_that_are_cast_silently(given):
    assert same_bits(trained(WHOLE.astype(given), targets("cross_entropy")), expected("float32"))


@pytest.mark.parametrize(("given", "dtype"), [("float64", "float32"), (">f8", "float32"), ("float32", "float64")])
def test_other_floats_are_cast_and_say_so_once(given, dtype):
    verb = "rounded" if dtype == "float32" else "widened"
    with pytest.warns(DTypeWarning, match=f"'layers.0': x is float.. and is {verb} to {dtype} .*astype") as said:
        found = trained(WHOLE.astype(given), targets("cross_entropy"), dtype)
    assert same_bits(found, expected(dtype))
    assert len(said) == 1


def test_long_double_becomes_float64_and_says_so(monkeypatch):
    monkeypatch.setattr("fcdense.conversion._said", set())
    with pytest.warns(DTypeWarning, match="rounded to float64, the widest dtype"):
        found = trained(WHOLE.astype(np.longdouble), targets("cross_entropy"), "float64")
    assert same_bits(found, expected("float64"))


# ---- memory ----------------------------------------------------------------------------------------------------------


def memory_mapped(a: np.ndarray, tmp_path: Any) -> np.ndarray:
    file = tmp_path / f"{len(list(tmp_path.iterdir()))}.bin"
    a.tofile(file)
    return np.memmap(file, a.dtype, "r", shape=a.shape)


def misaligned(a: np.ndarray) -> np.ndarray:
    found = np.empty(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    found[...] = a
    assert not found.flags.aligned
    return found


def every_other(a: np.ndarray) -> np.ndarray:
    found = np.zeros(tuple(2 * n for n in a.shape), a.dtype)[tuple(slice(1, None, 2) for _ in a.shape)]
    found[...] = a
    return found


def read_only(a: np.ndarray) -> np.ndarray:
    found = a.copy()
    found.flags.writeable = False
    return found


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "columns of a table": lambda a: np.pad(a, [(0, 0)] * (a.ndim - 1) + [(3, 5)])[..., 3:-5],
    "every other": every_other,
    "negative strides": lambda a: np.flip(np.flip(a).copy()),
    "reversed rows": lambda a: a[::-1].copy()[::-1],
    "read-only": read_only,
    "misaligned": misaligned,
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", [*LAYOUTS, "memory-mapped"])
def test_the_bits_do_not_depend_on_how_an_array_lies(layout, dtype, tmp_path):
    change = LAYOUTS.get(layout, lambda a: memory_mapped(a, tmp_path))
    x = change(WHOLE.astype(dtype))
    assert np.array_equal(x, WHOLE)
    for loss in ("cross_entropy", "mse"):
        assert same_bits(trained(x, change(targets(loss)), dtype, loss), expected(dtype, loss))


@pytest.mark.parametrize(
    ("rows", "features", "units"), [(1, 784, 128), (2, 1000, 1), (100, 3, 1), (33, 65, 10), (64, 784, 32)]
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sums_of_many_terms_have_the_same_bits(rng, layout, rows, features, units):
    """Long rows of random numbers, where another order of summation would show."""
    x, y = rng.normal(size=(rows, features)).astype(np.float32), rng.normal(size=(rows, units))
    weight = rng.uniform(0.1, 1.0, (rows, units))

    def results(change: Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
        fc.manual_seed(0)
        layer = fc.nn.Dense(units, "gelu", in_features=features)
        given = change(x)
        loss = fc.losses.mse(layer(given), change(y), change(weight))
        loss.backward()
        with fc.no_grad():
            unrecorded = layer(given).numpy()
        return [
            unrecorded,
            loss.numpy(),
            *(p.grad.numpy() for p in layer.parameters()),
            fc.Trainer(layer, "mse").predict(given),
        ]

    assert same_bits(results(LAYOUTS[layout]), results(lambda a: a))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_broadcast_arrays(dtype):
    row = WHOLE[:1].astype(dtype)
    x = np.broadcast_to(row, (12, 3))
    y = np.broadcast_to(np.int64(1), (12,))
    assert x.strides[0] == y.strides[0] == 0
    assert same_bits(trained(x, y, dtype), trained(x.copy(), y.copy(), dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_probabilities_and_weights_may_lie_anyhow(rng, layout):
    change = LAYOUTS[layout]
    logits, p, weight = rng.normal(size=(7, 40)), rng.dirichlet(np.ones(40), 7), rng.uniform(size=7)
    weight_of_class = rng.uniform(size=40)

    def value(change: Callable[[np.ndarray], np.ndarray]) -> float:
        return fc.losses.cross_entropy(
            fc.tensor(change(logits)), change(p), change(weight), class_weight=change(weight_of_class)
        ).item()

    assert value(change) == value(lambda a: a)


def test_the_callers_array_is_not_kept():
    """What is computed from an array does not change when the array does."""
    layer = fc.nn.Dense(2, in_features=3)
    x = np.ones((2, 3), np.float32)
    loss, tensor = layer(x).sum(), fc.tensor(x)
    x[...] = 7.0
    loss.backward()
    np.testing.assert_array_equal(layer.kernel.grad.numpy(), np.full((3, 2), 2.0))
    np.testing.assert_array_equal(tensor.numpy(), np.ones((2, 3)))
