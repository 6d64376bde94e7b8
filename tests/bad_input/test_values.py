"""NaN, infinities and extremes: where they go through, where they stop, and what the limits are."""

from __future__ import annotations

import math

import numpy as np
import pytest

import fcdense as fc
from fcdense.errors import NonFiniteError
from tests.bad_input.unchanged import facts, refused, settled, table

X, Y = table()
INF = math.inf
EPS = {"float16": 1e-3, "float32": 1e-6, "float64": 1e-14}


def with_value(array: np.ndarray, value: float, *index: int) -> np.ndarray:
    found = array.astype(np.result_type(array, np.float32))
    found[index] = value
    return found


# ---- in the data -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, INF, -INF])
def test_a_layer_lets_them_through_in_their_row_only(value):
    model = settled(fc.nn.Dense(4, "relu"), fc.nn.LayerNorm(), fc.nn.Dense(3, "tanh")).model
    with np.errstate(invalid="ignore"):
        expected, found = model(X).numpy(), model(with_value(X, value, 7, 1)).numpy()
    assert np.isnan(found[7]).all() if math.isnan(value) else not np.array_equal(found[7], expected[7])
    others = np.arange(12) != 7
    np.testing.assert_array_equal(found[others], expected[others])


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "gelu", "silu", "tanh", "sigmoid", "softplus", "softmax"])
def test_no_activation_hides_a_nan(activation):
    layer = fc.nn.Dense(1 if activation != "softmax" else 2, activation, in_features=1)
    y = layer(np.array([[math.nan]], np.float32))
    y.sum().backward()
    assert np.isnan(y.numpy()).all()
    assert np.isnan(layer.kernel.grad.numpy()).all()


@pytest.mark.parametrize("value", [math.nan, INF, -INF])
@pytest.mark.parametrize("place", ["x", "y"])
def test_training_stops_before_the_step_and_names_the_row(value, place):
    trainer = settled(fc.nn.Dense(4, "tanh"), fc.nn.BatchNorm(), fc.nn.Dense(1), loss="mse")
    x, y = X, X[:, :1]
    data = (with_value(x, value, 7, 1), y) if place == "x" else (x, with_value(y, value, 7, 0))
    words = ("Step 2", f"{place} of the batch is {value} in row 7", "as they were before this step")
    with refused(NonFiniteError, *words, keeps=(trainer,)):
        trainer.fit(*data, shuffle=False, verbose=False)
    trainer.fit(x, y, verbose=False)
    assert np.isfinite(trainer.predict(x)).all()


def test_training_names_the_layer_that_overflows():
    trainer = settled(fc.nn.Dense(4, "exponential"), fc.nn.Dense(4), fc.nn.Dense(3))
    trainer.model[0].bias.assign(np.full(4, 1e3))
    with refused(NonFiniteError, "Step 2", "layer 'layers.0' is the first", "inf", "earning rate", keeps=(trainer,)):
        trainer.fit(X, Y, verbose=False)


def test_training_names_the_parameter_that_is_not_finite():
    trainer = settled()
    trainer.model[2].bias.assign([0.0, math.nan, 0.0])
    with refused(NonFiniteError, "parameter 'layers.2.bias' is nan at (1,)", keeps=(trainer,)):
        trainer.fit(X, Y, verbose=False)


def test_a_gradient_that_is_not_finite_is_skipped_and_counted():
    trainer = settled()
    optimizer, model = trainer.optimizer, trainer.model
    fc.losses.cross_entropy(model(X), Y).backward()
    model[0].kernel.grad = np.full(model[0].kernel.shape, INF)
    before = facts(model)
    steps = optimizer.steps
    assert optimizer.step(check_finite=True) is False
    assert (optimizer.steps, optimizer.skipped_steps) == (steps, 1)
    assert facts(model) == before


@pytest.mark.parametrize("kind", [fc.optim.SGD, fc.optim.Adam, fc.optim.AdamW, fc.optim.RMSprop])
def test_a_gradient_of_zero_has_no_direction_to_be_clipped_to(kind):
    """n = 0 in min(1, c / n): no 0/0."""
    layer = fc.nn.Dense(2, in_features=3)
    optimizer = kind(layer.parameters(), clip_norm=1.0, weight_decay=0.0)
    before = layer.kernel.numpy().copy()
    (layer(X) * 0.0).sum().backward()
    assert optimizer.step()
    assert optimizer.gradient_norm == 0.0
    np.testing.assert_array_equal(layer.kernel.numpy(), before)


# ---- logits ----------------------------------------------------------------------------------------------------------

Z = [[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [1e4, 1e4, 1e4], [-1e4, 1e4, 1e4]]
LABELS = [1, 0, 2, 1]


@pytest.mark.parametrize("dtype", EPS)
def test_logits_of_ten_thousand(dtype):
    """Loss and gradient in closed form; each class of a tie has an equal share."""
    logits = fc.tensor(Z, dtype=dtype, requires_grad=True)
    loss = fc.losses.cross_entropy(logits, LABELS)
    loss.backward()
    assert loss.item() == pytest.approx((2e4 + 2 * math.log(3) + math.log(2)) / 4, rel=EPS[dtype])
    p = np.array([[1, 0, 0], [1 / 3] * 3, [1 / 3] * 3, [0, 0.5, 0.5]])
    expected = (p - np.eye(3)[LABELS]) / 4
    np.testing.assert_allclose(logits.grad.numpy(), expected, rtol=0, atol=EPS[dtype])
    np.testing.assert_allclose(fc.softmax(logits).numpy(), p, rtol=EPS[dtype])
    np.testing.assert_allclose(
        fc.logsumexp(logits).numpy(), [1e4, -1e4 + math.log(3), 1e4 + math.log(3), 1e4 + math.log(2)], rtol=EPS[dtype]
    )
    assert np.isfinite(fc.log_softmax(logits).numpy()).all()


@pytest.mark.parametrize("dtype", EPS)
def test_binary_logits_of_ten_thousand(dtype):
    z = fc.tensor([1e4, -1e4, 1e4, -1e4], dtype=dtype, requires_grad=True)
    loss = fc.losses.binary_cross_entropy_with_logits(z, [1, 0, 0, 1])
    loss.backward()
    assert loss.item() == pytest.approx(5e3, rel=EPS[dtype])
    np.testing.assert_array_equal(z.grad.numpy(), [0.0, 0.0, 0.25, -0.25])


MASKED = [[1.0, -INF, 0.0], [-INF, 2.0, -INF]]
SIGMOID_1 = 1 / (1 + math.exp(-1))


@pytest.mark.parametrize("dtype", EPS)
def test_a_mask_of_minus_infinity(dtype):
    """A masked class has probability 0, adds nothing to the loss and gets no gradient."""
    z = np.array(MASKED, dtype)
    for target in ([0, 1], np.eye(3)[[0, 1]]):
        logits = fc.tensor(z, requires_grad=True)
        loss = fc.losses.cross_entropy(logits, target)
        loss.backward()
        assert loss.item() == pytest.approx(-math.log(SIGMOID_1) / 2, rel=EPS[dtype])
        expected = [[(SIGMOID_1 - 1) / 2, 0, (1 - SIGMOID_1) / 2], [0, 0, 0]]
        np.testing.assert_allclose(logits.grad.numpy(), expected, rtol=0, atol=EPS[dtype])
    logits = fc.tensor(z, requires_grad=True)
    p = [[SIGMOID_1, 0, 1 - SIGMOID_1], [0, 1, 0]]
    np.testing.assert_allclose(fc.softmax(logits).numpy(), p, rtol=0, atol=EPS[dtype])
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(fc.log_softmax(logits).numpy(), np.log(p), rtol=10 * EPS[dtype])
    fc.logsumexp(logits).sum().backward()
    np.testing.assert_allclose(logits.grad.numpy(), p, rtol=0, atol=EPS[dtype])


def test_a_masked_class_that_is_the_right_one_costs_infinitely_much():
    assert fc.losses.cross_entropy(fc.tensor(MASKED), [1, 1]).item() == INF
    trainer = settled(fc.nn.Dense(3))
    trainer.model[0].bias.assign([0.0, 0.0, -INF])
    with refused(NonFiniteError, "the loss is inf", "parameter 'layers.0.bias' is -inf", keeps=(trainer,)):
        trainer.fit(X, Y, verbose=False)


@pytest.mark.parametrize("dtype", EPS)
def test_a_row_that_is_masked_whole(dtype):
    """It has no distribution: NaN, in its own row only. Its log-sum-exp is log 0."""
    z = np.array([[-INF, -INF, -INF], [0.0, 1.0, 2.0]], dtype)
    p = np.exp([0.0, 1.0, 2.0]) / np.exp([0.0, 1.0, 2.0]).sum()
    for function, second in ((fc.softmax, p), (fc.log_softmax, np.log(p))):
        found = function(fc.tensor(z)).numpy()
        assert np.isnan(found[0]).all()
        np.testing.assert_allclose(found[1], second, rtol=10 * EPS[dtype])
    leaf = fc.tensor(z, requires_grad=True)
    sums = fc.logsumexp(leaf)
    sums.sum().backward()
    assert sums.numpy()[0] == -INF
    np.testing.assert_allclose(leaf.grad.numpy(), [[0, 0, 0], p], rtol=0, atol=EPS[dtype])
    assert math.isnan(fc.losses.cross_entropy(fc.tensor(z), [0, 0]).item())
    ignored = fc.tensor(z[1:], requires_grad=True)
    assert fc.losses.cross_entropy(ignored, [2]).item() == pytest.approx(-math.log(p[2]), rel=10 * EPS[dtype])
