"""Softmax, losses, dropout, choices and joins, against NumPy in float64, PyTorch and central differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fcdense import ops, random
from fcdense.errors import ArgumentError, DTypeError, ShapeError
from fcdense.gradients import grad, gradcheck
from fcdense.program import trace
from fcdense.tensor import Tensor, tensor

HUBER = trace(
    lambda p, t, delta: (
        np.where(abs(p - t) > delta, delta * (abs(p - t) - 0.5 * delta), 0.5 * (p - t) * (p - t)),
        np.where(abs(p - t) > delta, delta * np.sign(p - t), p - t),
    ),
    2,
    1,
    name="huber",
)


def leaf(values: Any, dtype: Any = None) -> Tensor:
    return tensor(values, dtype=dtype, requires_grad=True)


def log_softmax64(z: Any, axis: int = -1) -> Any:
    z = np.asarray(z, np.float64)
    shifted = z - z.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


EXTREME = [
    [[1e4, -1e4, 0.0], [1e4, 1e4, 1e4], [-1e4, -1e4, -1e4]],
    [[-np.inf, 0.0, 1.0], [0.0, -np.inf, -np.inf], [3.0, -np.inf, 3.0]],
    [[88.8, 88.9, -104.0], [700.0, 0.0, -700.0], [0.0, 0.0, 0.0]],
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("values", EXTREME, ids=["1e4", "-inf", "overflow"])
def test_softmax_of_extreme_rows(values: Any, dtype: Any) -> None:
    z = np.array(values, dtype)
    expected = log_softmax64(z)
    eps = np.finfo(dtype).eps
    x = leaf(z)
    np.testing.assert_allclose(ops.log_softmax(x).numpy(), expected, rtol=4 * eps, atol=4 * eps)
    p = ops.softmax(x)
    np.testing.assert_allclose(p.numpy(), np.exp(expected), rtol=4e2 * eps, atol=4 * eps)
    weights = np.array([1.0, 2.0, 3.0], dtype)
    (p * weights).sum().backward()
    q = np.exp(expected)
    slope = q * (weights - (q * weights).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(x.grad.numpy(), slope, rtol=4e2 * eps, atol=8 * eps)
    y = leaf(z)
    ops.logsumexp(y).sum().backward()
    np.testing.assert_allclose(y.grad.numpy(), q, rtol=4e2 * eps, atol=4 * eps)


def test_rows_of_nothing_but_minus_infinity() -> None:
    x = tensor([[-np.inf, -np.inf], [0.0, 0.0]])
    assert np.isnan(ops.softmax(x).numpy()[0]).all()
    assert np.isfinite(ops.softmax(x).numpy()[1]).all()
    np.testing.assert_array_equal(ops.logsumexp(x).numpy(), [-np.inf, np.log(2.0)])
    np.testing.assert_array_equal(ops.logsumexp(tensor([[np.inf, 0.0], [np.inf, np.inf]])).numpy(), np.inf)
    assert np.isnan(ops.logsumexp(tensor([np.nan, 0.0])).numpy())


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_softmax_along_any_axis(axis: int, rng: np.random.Generator) -> None:
    z = rng.normal(size=(2, 3, 4))
    expected = log_softmax64(z, axis)
    np.testing.assert_allclose(ops.log_softmax(tensor(z), axis).numpy(), expected, rtol=1e-14)
    np.testing.assert_allclose(ops.softmax(tensor(z), axis).numpy(), np.exp(expected), rtol=1e-14)
    gradcheck(lambda x: ops.softmax(x, axis), z[:, :2, :3])
    gradcheck(lambda x: ops.log_softmax(x, axis), z[:, :2, :3])


@pytest.mark.parametrize("axis", [None, 0, -1, (0, 1), (2, -3)])
@pytest.mark.parametrize("keepdims", [False, True])
def test_logsumexp(axis: Any, keepdims: bool, rng: np.random.Generator) -> None:
    z = rng.normal(size=(2, 3, 4)) * 300.0
    top = z.max(axis=axis, keepdims=True)
    expected = np.log(np.exp(z - top).sum(axis=axis, keepdims=True)) + top
    expected = expected if keepdims else expected.squeeze(axis)
    out = ops.logsumexp(tensor(z), axis, keepdims)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-15)
    assert out.shape == expected.shape
    gradcheck(lambda x: ops.logsumexp(x, axis, keepdims), z[:, :2, :2] / 300.0)


@pytest.mark.parametrize(("shape", "axis"), [((), 0), ((2, 3), 2), ((2, 3), -3), ((2, 0), 1), ((0, 3), 0)])
def test_axes_without_a_softmax(shape: Any, axis: int) -> None:
    for function in (ops.softmax, ops.log_softmax):
        with pytest.raises(ShapeError, match="the axis must exist and not be empty"):
            function(tensor(np.empty(shape)), axis)
    with pytest.raises(DTypeError, match="needs float tensors"):
        ops.softmax(tensor([[1, 2]]))
    assert ops.softmax(tensor(np.empty((0, 3)))).shape == (0, 3)


# ---- losses ----------------------------------------------------------------------------------------------------------


def cross_entropy64(z: Any, target: Any, weight: Any, scale: float) -> float:
    log_p = log_softmax64(z)
    t = np.eye(z.shape[1])[target] if np.ndim(target) == 1 else target
    rows = -np.where(t == 0, 0.0, t * log_p).sum(axis=1)
    return float(scale * (rows if weight is None else rows * weight).sum())


def both_gradients(function: Callable[[Tensor], Tensor], point: Any) -> list[Any]:
    """The gradient that can be differentiated again, and the one that comes with the loss."""
    x = leaf(point)
    return [grad(function(x) * 3.0, x, create_graph=create_graph).numpy() for create_graph in (True, False)]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["classes", "probabilities", "rows that do not sum to 1"])
def test_softmax_cross_entropy(kind: str, weighted: bool, rng: np.random.Generator) -> None:
    z = rng.normal(size=(5, 4)) * 3.0
    target = rng.integers(0, 4, 5) if kind == "classes" else rng.dirichlet(np.ones(4), 5)
    if kind.startswith("rows"):
        target[1], target[2, 0] = 0.0, 3.0
    weight = rng.uniform(0.0, 2.0, 5) if weighted else None
    out = ops.softmax_cross_entropy(tensor(z), target, weight, 0.2)
    np.testing.assert_allclose(out.item(), cross_entropy64(z, target, weight, 0.2), rtol=1e-14)
    gradcheck(lambda x: ops.softmax_cross_entropy(x, target, weight, 0.2) ** 2, z)
    recorded, fused = both_gradients(lambda x: ops.softmax_cross_entropy(x, target, weight, 0.2), z)
    np.testing.assert_allclose(recorded, fused, rtol=1e-13, atol=1e-15)

    def penalty(x: Tensor) -> Tensor:
        return (grad(ops.softmax_cross_entropy(x, target, weight, 0.2), x, create_graph=True) ** 2).sum()

    gradcheck(penalty, z)


def test_cross_entropy_of_extreme_logits() -> None:
    z = np.array([[1e4, -1e4, 0.0], [-np.inf, 0.0, -np.inf]], np.float32)
    x = leaf(z)
    ops.softmax_cross_entropy(x, np.array([1, 1]), None, 1.0).backward()
    np.testing.assert_array_equal(x.grad.numpy(), [[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
    soft = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], np.float32)
    assert ops.softmax_cross_entropy(tensor(z), soft, None, 1.0).item() == 0.0


@pytest.mark.parametrize("weight_shape", [None, (), (4,), (3, 1), (3, 4)])
def test_elementwise_losses(weight_shape: Any, rng: np.random.Generator) -> None:
    p, t = rng.normal(size=(3, 4)) * 2.0, rng.normal(size=(3, 4))
    weight = None if weight_shape is None else rng.uniform(0.0, 2.0, weight_shape)
    difference = np.abs(p - t)
    rows = np.where(difference > 0.8, 0.8 * (difference - 0.4), 0.5 * difference**2)

    def loss(x: Tensor) -> Tensor:
        return ops.elementwise_loss(HUBER, x, t, weight, 0.25, (0.8,))

    np.testing.assert_allclose(
        loss(tensor(p)).item(), 0.25 * (rows * (1.0 if weight is None else weight)).sum(), rtol=1e-14
    )
    gradcheck(lambda x: loss(x * 1.5) ** 2, p)
    recorded, fused = both_gradients(loss, p)
    np.testing.assert_allclose(recorded, fused, rtol=1e-13, atol=1e-15)
    gradcheck(lambda x: (grad(loss(x), x, create_graph=True) ** 2).sum() + x.sum(), p)


def test_a_loss_twice_backward_and_within_a_larger_graph(rng: np.random.Generator) -> None:
    z, labels = rng.normal(size=(5, 4)), rng.integers(0, 4, 5)
    x = leaf(z)
    loss = ops.softmax_cross_entropy(x * 2.0, labels, None, 1.0)
    (loss * 3.0 + (x * x).sum()).backward(retain_graph=True)
    once = np.array(x.grad.numpy())
    (loss * 1.0).backward()
    inner = 2.0 * (np.exp(log_softmax64(2.0 * z)) - np.eye(4)[labels])
    np.testing.assert_allclose(once, 3.0 * inner + 2.0 * z, rtol=1e-13)
    np.testing.assert_allclose(x.grad.numpy(), once + inner, rtol=1e-13)


# ---- dropout ---------------------------------------------------------------------------------------------------------


def test_dropout_masks_scales_and_repeats() -> None:
    random.manual_seed(3)
    x = leaf(np.ones((200, 300), np.float32))
    y = ops.dropout(x, 0.25)
    assert set(np.unique(y.numpy())) == {np.float32(0.0), np.float32(1.0 / 0.75)}
    assert abs((y.numpy() == 0).mean() - 0.25) < 0.01
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), y.numpy())
    again = ops.dropout(x, 0.25)
    assert (again.numpy() != y.numpy()).any(), "each call draws its own mask"
    random.manual_seed(3)
    np.testing.assert_array_equal(ops.dropout(x, 0.25).numpy(), y.numpy())
    assert ops.dropout(x, 0.0) is x


def test_the_gradient_of_dropout_has_the_mask_of_its_own_call(rng: np.random.Generator) -> None:
    x = leaf(rng.uniform(1.0, 2.0, (30, 40)))
    first, second = ops.dropout(x, 0.5), ops.dropout(x, 0.5)
    dy = rng.normal(size=(40, 30))
    for y in (second, first):
        np.testing.assert_array_equal(grad(y.T, x, dy).numpy(), dy.T * (y.numpy() != 0) * 2.0)


@pytest.mark.parametrize("rate", [1.0, -0.1, np.nan, 2])
def test_dropout_rates_that_are_none(rate: float) -> None:
    with pytest.raises(ArgumentError, match="from 0 up to, but not including, 1"):
        ops.dropout(tensor([1.0]), rate)


# ---- choices and joins -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shapes", [((3, 4), (3, 4), (3, 4)), ((3, 1), (1, 4), ()), ((4,), (3, 1), (4,)), ((), (2,), (2,))], ids=str
)
def test_where(shapes: Any, rng: np.random.Generator) -> None:
    c, a, b = rng.normal(size=shapes[0]) > 0, rng.normal(size=shapes[1]), rng.normal(size=shapes[2])
    expected = np.where(c, a, b)
    for condition in (c, tensor(c), c.tolist(), tensor(c.astype(int)), tensor(c.astype(float)), c.astype(np.int8)):
        out = np.where(condition, tensor(a), b) if isinstance(condition, Tensor) else ops.where(condition, tensor(a), b)
        np.testing.assert_array_equal(out.numpy(), expected)
        assert out.dtype == np.float64
    gradcheck(lambda x, y: ops.where(c, x * x, y * y), (a, b))


def test_where_chooses_and_never_multiplies() -> None:
    """The branch not taken has no say, even where it is not finite: 0 * inf would be NaN."""
    x = leaf([0.0, 4.0])
    y = np.where(x > 0, x, 1.0)
    out = np.where(x > 0, np.log(y), -np.inf)
    np.testing.assert_array_equal(out.numpy(), [-np.inf, np.log(4.0)])
    out[1].backward()
    np.testing.assert_array_equal(x.grad.numpy(), [0.0, 0.25])


def test_where_between_numbers_arrays_and_dtypes() -> None:
    x = tensor(np.array([-1.0, 2.0], np.float32))
    for out, expected in (
        (np.where(x > 0, 1.0, 0.0), np.array([0.0, 1.0], np.float32)),
        (np.where(x > 0, x, 0), np.array([0.0, 2.0], np.float32)),
        (np.where(x > 0, 1, x), np.array([-1.0, 1.0], np.float32)),
        (np.where(x > 0, np.float64(0.1), x), np.array([-1.0, 0.1], np.float32)),
        (np.where(x > 0, np.array([0.1, 0.1]), x), np.array([-1.0, 0.1])),
        (np.where(x > 0, np.array([3, 4]), x), np.array([-1.0, 4.0], np.float32)),
    ):
        assert out.dtype == expected.dtype
        np.testing.assert_array_equal(out.numpy(), expected)
    with pytest.raises(ShapeError, match="cannot broadcast"):
        np.where(x > 0, np.ones(3), x)


def test_clip(rng: np.random.Generator) -> None:
    a = np.array([-np.inf, -2.0, -1.0, -0.5, 0.5, 1.0, 2.0, np.inf, np.nan])
    x = leaf(a)
    y = ops.clip(x, -1.0, 1.0)
    np.testing.assert_array_equal(y.numpy(), np.clip(a, -1.0, 1.0))
    y[:8].sum().backward()
    np.testing.assert_array_equal(x.grad.numpy()[:8], [0, 0, 0, 1, 1, 0, 0, 0])
    assert ops.clip(x) is x
    for low, high in ((None, 0.3), (-0.3, None), (np.full(4, -0.3), 0.3), (0.3, -0.3)):
        b = rng.normal(size=(3, 4))
        np.testing.assert_array_equal(ops.clip(tensor(b), low, high).numpy(), np.clip(b, low, high))
        gradcheck(lambda v, low=low, high=high: ops.clip(v, low, high) + v, b)
    bound = leaf(0.25)
    ops.clip(tensor([0.0, 1.0]), bound, None).sum().backward()
    assert bound.grad.item() == 1.0


@pytest.mark.parametrize("function", [ops.softmax, ops.log_softmax, ops.logsumexp, ops.clip])
@pytest.mark.parametrize("given", [np.arange(3.0), [0.0, 1.0], 2.0])
def test_what_is_no_tensor(function: Any, given: Any) -> None:
    with pytest.raises(ArgumentError, match=rf"needs a Tensor, given {type(given).__name__}\. Make it one: fc.tensor"):
        function(given)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_concatenate_and_stack(axis: int, rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 4))
    np.testing.assert_array_equal(
        ops.concatenate((x for x in (tensor(a), b, tensor(a))), axis).numpy(), np.concatenate([a, b, a], axis)
    )
    np.testing.assert_array_equal(ops.stack([a, tensor(b)], axis).numpy(), np.stack([a, b], axis))
    gradcheck(lambda x, y: ops.concatenate([x, y * y, x], axis), (a[:, :2, :2], b[:, :2, :2]))
    gradcheck(lambda x, y: ops.stack([x, y * y, x], axis), (a[:, :2, :2], b[:, :2, :2]))


def test_joins_of_unequal_lengths_and_dtypes(rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(2, 3)), rng.normal(size=(4, 3)).astype(np.float32)
    x, y = leaf(a), leaf(b)
    out = ops.concatenate([x, y, np.empty((0, 3))])
    np.testing.assert_array_equal(out.numpy(), np.concatenate([a, b]))
    (out * out).sum().backward()
    np.testing.assert_array_equal(y.grad.numpy(), 2.0 * b)
    assert (out.dtype, x.grad.dtype, y.grad.dtype) == (np.float64, np.float64, np.float32)
    np.testing.assert_array_equal(ops.concatenate(tensor(np.ones((3, 2)))).numpy(), np.ones(6))
    np.testing.assert_array_equal(ops.stack([tensor(1.0), 2.0]).numpy(), [1.0, 2.0])


def test_joins_that_do_not_fit() -> None:
    x = tensor(np.ones((2, 3)))
    for call in (lambda: ops.concatenate([]), lambda: ops.stack([]), lambda: ops.concatenate([np.ones(2)])):
        with pytest.raises(ArgumentError, match="at least one Tensor"):
            call()
    for call in (
        lambda: ops.concatenate([x, x], axis=2),
        lambda: ops.concatenate([tensor(1.0), 2.0]),
        lambda: ops.stack([x, x], axis=3),
        lambda: ops.stack([x, x.T]),
    ):
        with pytest.raises(ShapeError):
            call()
