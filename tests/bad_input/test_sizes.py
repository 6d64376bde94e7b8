"""Sizes: what is no size, what does not fit, nothing at all, and the awkward ones (1, primes, 2^16 + 1)."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import fcdense as fc
from fcdense.errors import ArgumentError, DataError, OutOfMemory, ShapeError
from tests.bad_input.unchanged import refused, settled, table

NO_SIZES = [0, -3, 2.5, True, "64", [4], math.nan, np.float64(3.0), np.True_]


@pytest.mark.parametrize("units", [*NO_SIZES, None], ids=repr)
def test_units_that_are_no_positive_integer(units):
    with refused(ArgumentError, "Dense: units is", repr(units), "expected a positive integer"):
        fc.nn.Dense(units, in_features=3)


@pytest.mark.parametrize("in_features", NO_SIZES, ids=repr)
@pytest.mark.parametrize("make", [fc.nn.LayerNorm, fc.nn.BatchNorm, lambda **o: fc.nn.Dense(2, **o)])
def test_in_features_that_is_no_positive_integer(make, in_features):
    with refused(ArgumentError, "in_features is", repr(in_features), "expected a positive integer"):
        make(in_features=in_features)


def test_integers_of_numpy_are_sizes():
    layer = fc.nn.Dense(np.uint8(4), in_features=np.int64(3))
    assert (layer.units, layer.kernel.shape) == (4, (3, 4))


@pytest.mark.parametrize("units", [2**40, 2**59, 2**62, 2**70], ids=lambda n: f"2^{n.bit_length() - 1}")
def test_a_layer_that_no_memory_holds(units):
    layer = fc.nn.Dense(units)
    with refused(OutOfMemory, f"{units * 100 * 8:,} bytes", f"(100, {units})", "smaller layers", keeps=(layer,)):
        layer(np.ones((2, 100), np.float32))
    with refused(OutOfMemory, "bytes"):
        fc.nn.Dense(units, in_features=100)


# ---- the wrong last axis ---------------------------------------------------------------------------------------------

WRONG = np.ones((2, 5), np.float32)
CALLS = {
    "array": lambda t: t.model(WRONG),
    "list": lambda t: t.model(WRONG.tolist()),
    "tensor": lambda t: t.model(fc.tensor(WRONG)),
    "several axes": lambda t: t.model(WRONG.reshape(2, 1, 5)),
    "one row": lambda t: t.model(WRONG[0]),
    "no rows": lambda t: t.model(WRONG[:0]),
    "predict": lambda t: t.predict(WRONG),
    "evaluate": lambda t: t.evaluate(WRONG, [0, 1]),
    "fit": lambda t: t.fit(WRONG, [0, 1], verbose=False),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("first", ["Dense", "BatchNorm", "LayerNorm"])
def test_another_number_of_features_than_before(call, first):
    make = {"Dense": lambda: fc.nn.Dense(4), "BatchNorm": fc.nn.BatchNorm, "LayerNorm": fc.nn.LayerNorm}[first]
    trainer = settled(fc.nn.Sequential(make()), fc.nn.Dense(3))
    with refused(ShapeError, f"{first} 'layers.0.layers.0'", "x has 5 features", "expects 3", keeps=(trainer,)):
        CALLS[call](trainer)


def test_the_layer_in_the_middle_is_named():
    model = fc.nn.Sequential(
        fc.nn.Dense(4, in_features=3), fc.nn.Sequential(fc.nn.ReLU(), fc.nn.Dense(2, in_features=5))
    )
    words = ("Dense 'layers.1.layers.1'", "x has 4 features", "its kernel expects 5", "(x (7, 4), kernel (5, 2))")
    with refused(ShapeError, *words, keeps=(model,)):
        model(np.ones((7, 3), np.float32))


# ---- nothing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: fc.nn.Dense(4), fc.nn.LayerNorm, fc.nn.BatchNorm])
@pytest.mark.parametrize("rows", [0, 5])
def test_no_features(make, rows):
    trainer = fc.Trainer(fc.nn.Sequential(make(), fc.nn.Dense(2)))
    nothing = np.ones((rows, 0), np.float32)
    for call in (trainer.model, trainer.predict):
        with refused(ShapeError, f"({rows}, 0)", "no features", "must not be empty", keeps=(trainer,)):
            call(nothing)
    if rows:
        with refused(ShapeError, "x has 0 features (shape (5, 0))", "at least one", keeps=(trainer,)):
            trainer.fit(nothing, np.zeros(5, int), verbose=False)


@pytest.mark.parametrize("built", [False, True])
def test_no_rows_predict_no_rows(built):
    layers = (fc.nn.Dense(4, "softmax"), fc.nn.LayerNorm(), fc.nn.Dropout(), fc.nn.BatchNorm(), fc.nn.Dense(5, "gelu"))
    trainer = fc.Trainer(fc.nn.Sequential(*layers))
    if built:
        trainer.predict(np.ones((2, 3), np.float32))
    for shape in ((0, 3), (0, 7, 3)):
        found = trainer.predict(np.empty(shape, np.float32))
        assert (found.shape, found.dtype) == ((*shape[:-1], 5), np.float32)


def test_no_rows_have_gradients_of_zero():
    model = fc.nn.Sequential(fc.nn.Dense(4, "tanh"), fc.nn.Dense(2))
    x = fc.tensor(np.empty((0, 3), np.float32), requires_grad=True)
    model(x).sum().backward()
    assert x.grad.shape == (0, 3)
    assert all(not p.grad.numpy().any() for p in model.parameters())


def test_nothing_can_be_learned_or_measured_from_no_rows():
    trainer = settled()
    x, y = table()
    for call in (lambda: trainer.fit(x[:0], y[:0], verbose=False), lambda: trainer.evaluate(x[:0], y[:0])):
        with refused(DataError, "x has 0 rows (0, 3)", "expected at least one", keeps=(trainer,)):
            call()
    with refused(ShapeError, "(0, 3) is empty", "no value", keeps=(trainer,)):
        fc.losses.cross_entropy(trainer.model(x[:0]), y[:0])
    with refused(ShapeError, "BatchNorm 'layers.1'", "0 row(s)", "at least 2", "model.eval()", keeps=(trainer,)):
        trainer.model.train()(x[:0])


# ---- awkward sizes ---------------------------------------------------------------------------------------------------

AWKWARD = (1, 3, 17, 127, 65537)
SHAPES = [(rows, *pair) for pair, rows in zip(
    (p for p in itertools.product(AWKWARD, AWKWARD) if p[0] * p[1] < 2**21), itertools.cycle((1, 3, 17, 127)))
]  # fmt: skip


def integers(rng, *shape):
    """Small enough that every sum below is exact in float32, whatever its order."""
    return rng.integers(-2, 3, shape).astype(np.float32)


@pytest.mark.parametrize(("rows", "features", "units"), [*SHAPES, (65537, 1, 1), (65537, 3, 17), (65537, 17, 3)])
def test_awkward_sizes_are_exact(rng, rows, features, units):
    """Operands are integers, so float64 is an exact oracle and float32 has to have every bit right."""
    x, w, b, dy = (integers(rng, *s) for s in ((rows, features), (features, units), (units,), (rows, units)))
    layer = fc.nn.Dense(units, "relu", in_features=features)
    layer.kernel.assign(w)
    layer.bias.assign(b)
    leaf = fc.tensor(x, requires_grad=True)
    y = layer(leaf)
    y.backward(fc.tensor(dy))
    x64, w64 = x.astype(np.float64), w.astype(np.float64)
    z = x64 @ w64 + b
    dz = dy * (z > 0)
    np.testing.assert_array_equal(y.numpy(), np.maximum(z, 0))
    np.testing.assert_array_equal(layer.kernel.grad.numpy(), x64.T @ dz)
    np.testing.assert_array_equal(layer.bias.grad.numpy(), dz.sum(axis=0))
    np.testing.assert_array_equal(leaf.grad.numpy(), dz @ w64.T)


@pytest.mark.parametrize("classes", [3, 17, 127, 65537])
def test_awkward_numbers_of_classes(rng, classes):
    """Logits are ln 2 or 0: every probability is known."""
    halves = rng.integers(0, 2, (3, classes))
    logits = fc.tensor(np.log(2.0) * halves, requires_grad=True)
    target = rng.integers(0, classes, 3)
    loss = fc.losses.cross_entropy(logits, target)
    loss.backward()
    p = 2.0**halves / (2.0**halves).sum(axis=1, keepdims=True)
    assert loss.item() == pytest.approx(-np.log(p[np.arange(3), target]).mean(), rel=1e-12)
    hits = np.arange(classes) == target[:, None]
    np.testing.assert_allclose(logits.grad.numpy(), (p - hits) / 3, rtol=0, atol=1e-15)
