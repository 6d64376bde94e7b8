"""Tensors against NumPy (values) and PyTorch or central differences (gradients)."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fcdense import emit
from fcdense import math as fm
from fcdense.errors import ArgumentError, DTypeError, GraphError, ShapeError
from fcdense.gradients import grad, gradcheck
from fcdense.tape import no_grad
from fcdense.tensor import Tensor, as_tensor, matmul, tensor

Array = np.ndarray[Any, Any]
F16, F32, F64 = np.float16, np.float32, np.float64


def leaf(array: Any, dtype: Any = None) -> Tensor:
    return tensor(array, dtype=dtype, requires_grad=True)


def same(result: Tensor, expected: Any) -> None:
    """Values, shape and dtype, to the bit."""
    expected = np.asarray(expected)
    assert isinstance(result, Tensor)
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(result.numpy(), expected)


ARITHMETIC = [operator.add, operator.sub, operator.mul, operator.truediv]
COMPARISONS = [operator.gt, operator.ge, operator.lt, operator.le, operator.eq, operator.ne]
PAIRS = [
    ((3, 4), (3, 4)),
    ((3, 4), (4,)),
    ((3, 1), (1, 4)),
    ((), (3,)),
    ((), ()),
    ((2, 1, 3), (4, 1)),
    ((1,), (2, 3)),
    ((1, 3), (0, 3)),
    ((1,), (0,)),
    ((3, 0), (3, 1)),
]


@pytest.mark.parametrize("shapes", PAIRS, ids=str)
@pytest.mark.parametrize(
    "function", [*ARITHMETIC, operator.pow, np.maximum, np.minimum, np.hypot], ids=lambda f: f.__name__
)
def test_binary_operations(function: Callable[..., Any], shapes: Any, rng: np.random.Generator) -> None:
    a, b = (rng.uniform(0.5, 2.0, shape) for shape in shapes)
    x, y = leaf(a), leaf(b)
    out = function(x, y)
    np.testing.assert_allclose(out.numpy(), function(a, b), rtol=1e-15)
    assert out.shape == np.broadcast_shapes(*shapes)
    gradcheck(function, (a, b))
    dx, dy = grad(out, [x, y], np.ones(out.shape))
    assert (dx.shape, dy.shape) == shapes


@pytest.mark.parametrize("function", ARITHMETIC, ids=lambda f: f.__name__)
@pytest.mark.parametrize("other", [2, 0.5, np.float64(0.3), np.float32(0.3), np.int64(3), np.array(0.25), True])
def test_numbers_take_the_tensors_dtype_on_either_side(function: Callable[..., Any], other: Any) -> None:
    a = np.array([[1.5, -2.0, 3.0]], F32)
    same(function(tensor(a), other), function(a, F32(other)))
    same(function(other, tensor(a)), function(F32(other), a))


@pytest.mark.parametrize("function", ARITHMETIC, ids=lambda f: f.__name__)
def test_arrays_and_lists_beside_tensors(function: Callable[..., Any], rng: np.random.Generator) -> None:
    a, b = rng.uniform(1, 2, (2, 3)).astype(F32), rng.uniform(1, 2, (2, 3)).astype(F32)
    x = leaf(a)
    for out, expected in ((function(b, x), function(b, a)), (function(x, b), function(a, b))):
        same(out, expected)
        assert out.requires_grad
    same(function(x, [1, 2, 3]), function(a, np.array([1, 2, 3], F32)))
    same(function([1, 2, 3], x), function(np.array([1, 2, 3], F32), a))
    same(function(x, np.arange(1, 4)), function(a, np.arange(1, 4, dtype=F32)))
    same(function(x, np.ones(3, F64)), function(a.astype(F64), 1.0))


@pytest.mark.parametrize("function", [*ARITHMETIC, np.maximum, matmul], ids=lambda f: f.__name__)
@pytest.mark.parametrize(("left", "right"), [(F32, F64), (F64, F32), (F16, F32), (F16, F64)])
def test_float_dtypes_meet_in_the_wider_and_gradients_come_back(
    function: Callable[..., Any], left: Any, right: Any, rng: np.random.Generator
) -> None:
    a, b = rng.uniform(1, 2, (3, 3)).astype(left), rng.uniform(1, 2, (3, 3)).astype(right)
    wide = np.promote_types(left, right)
    x, y = leaf(a), leaf(b)
    out = function(x, y)
    expected = a.astype(wide) @ b.astype(wide) if function is matmul else function(a.astype(wide), b.astype(wide))
    same(out, expected)
    out.sum().backward()
    assert (x.grad.dtype, y.grad.dtype) == (left, right)


def test_integers_and_booleans_are_cast_beside_floats_and_refused_alone() -> None:
    x, n, flags = leaf([1.5, 2.5], F32), tensor([2, 3]), tensor([True, False])
    same(x * n, np.array([3.0, 7.5], F32))
    same(n * x, np.array([3.0, 7.5], F32))
    same(flags * x, np.array([1.5, 0.0], F32))
    (n * x).sum().backward()
    same(x.grad, np.array([2.0, 3.0], F32))
    for call in (
        lambda: n + 1,
        lambda: n * n,
        lambda: flags * 2.0,
        n.sum,
        flags.mean,
        n.max,
        lambda: -n,
        lambda: np.exp(n),
    ):
        with pytest.raises(DTypeError, match=r"needs float tensors, not (int64|bool); use .astype"):
            call()
    for call in (lambda: n.reshape(1, 2) @ x, lambda: x @ n):
        with pytest.raises(DTypeError, match=r"float32 and int64|int64 and float32"):
            call()


@pytest.mark.parametrize("function", COMPARISONS, ids=lambda f: f.__name__)
def test_comparisons_give_booleans(function: Callable[..., Any]) -> None:
    a, b = np.array([[1.0, 2.0, np.nan, np.inf]], F32), np.array([[2.0], [1.0]], F32)
    x = leaf(a)
    same(function(x, leaf(b)), function(a, b))
    same(function(x, 1), function(a, 1))
    same(function(1, x), function(1, a))
    same(function(b, x), function(b, a))
    same(function(x, b), function(a, b))
    assert not function(x, 1).requires_grad
    n = np.array([-1, 0, 1, 2])
    same(function(tensor(n), 0.5), function(n, 0.5))
    same(function(tensor(n), np.float32(0.5)), function(n, np.float32(0.5)))
    same(function(tensor(n), tensor([0.5])), function(n, 0.5))


def test_conditions_combine_as_in_numpy() -> None:
    a = np.array([-2.0, -0.5, 0.5, 2.0])
    x = tensor(a)
    same((x > -1) & (x < 1), (a > -1) & (a < 1))
    same((x < -1) | (x > 1), (a < -1) | (a > 1))
    same(~(x > 0), ~(a > 0))
    same((a > -1) & (x < 1), (a > -1) & (a < 1))
    same(np.logical_and(x > -1, x < 1), (a > -1) & (a < 1))
    same(np.greater(x, 0.0), a > 0)
    same(np.isnan(x), np.isnan(a))
    with pytest.raises(ShapeError, match="one element"):
        bool(x > 0)
    assert bool(x.sum() == 0.0) is True


@pytest.mark.parametrize("exponent", [-2, -1, -0.5, 0, 0.5, 1, 2, 3, 4, 2.7, 7, np.float64(1.5)])
def test_constant_powers(exponent: Any, rng: np.random.Generator) -> None:
    a = rng.uniform(0.5, 2.0, (3, 4))
    np.testing.assert_allclose((tensor(a) ** exponent).numpy(), a**exponent, rtol=1e-15)
    np.testing.assert_allclose(np.power(tensor(a), exponent).numpy(), a**exponent, rtol=1e-15)
    np.testing.assert_allclose(
        (exponent ** tensor(a) if exponent > 0 else tensor(a)).numpy(), exponent**a if exponent > 0 else a
    )
    gradcheck(lambda x: x**exponent, a)
    gradcheck(lambda x: 2.0**x, a)


def test_powers_at_zero_and_of_negative_numbers() -> None:
    x = leaf([-2.0, 0.0, 3.0])
    for exponent, slope in ((0, [0, 0, 0]), (1, [1, 1, 1]), (2, [-4, 0, 6]), (3, [12, 0, 27]), (5, [80, 0, 405])):
        (dx,) = grad((x**exponent).sum(), [x])
        np.testing.assert_array_equal(dx.numpy(), slope)
        np.testing.assert_array_equal(grad(np.power(x, exponent).sum(), x).numpy(), slope)
    gradcheck(lambda x: x**x, np.array([0.5, 1.5]))


def test_ever_new_exponents_compile_nothing_new() -> None:

    x = leaf([1.5, 2.5])
    (x**1.01).sum().backward()
    before = emit._kernel.cache_info().currsize
    for k in range(20):
        (x ** (1.1 + k / 100)).sum().backward()
    assert emit._kernel.cache_info().currsize == before


AXES = [None, 0, 1, -1, (0, 2), (-1, 0), (), (0, 1, 2), np.int64(1), [0, 1]]


@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("name", ["sum", "mean", "max", "min"])
def test_reductions(name: str, axis: Any, keepdims: bool, rng: np.random.Generator) -> None:
    a = rng.permutation(24).reshape(2, 3, 4).astype(F64)
    plain = tuple(axis) if isinstance(axis, list) else axis
    out = getattr(tensor(a), name)(axis=axis, keepdims=keepdims)
    same(out, getattr(np, name)(a, axis=plain, keepdims=keepdims))
    gradcheck(lambda x: getattr(x, name)(axis=axis, keepdims=keepdims), a[:, :2, :2] / 7)


@pytest.mark.parametrize("name", ["max", "min"])
def test_ties_share_the_gradient(name: str) -> None:
    torch = pytest.importorskip("torch")
    a = np.array([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0], [-np.inf, -np.inf, 5.0, 5.0]])
    a = a if name == "max" else -a
    x, t = leaf(a), torch.tensor(a, requires_grad=True)
    weights = np.array([1.0, 10.0, 100.0])
    (getattr(x, name)(axis=1) * weights).sum().backward()
    (getattr(torch, f"a{name}")(t, dim=1) * torch.tensor(weights)).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), t.grad.numpy())
    y = leaf(a)
    (getattr(np, f"{name}imum")(y, y.detach() * 1.0)).sum().backward()
    assert np.isfinite(y.grad.numpy()).all()


def test_reductions_of_nothing() -> None:
    x = tensor(np.empty((0, 3)))
    same(x.sum(), 0.0)
    same(x.sum(axis=0), np.zeros(3))
    same(x.sum(axis=1), np.zeros(0))
    same(x.mean(axis=1), np.zeros(0))
    same(x.max(axis=1), np.zeros(0))
    for call in (x.mean, x.max, lambda: x.mean(axis=0), lambda: x.min(axis=0)):
        with pytest.raises(ShapeError, match=r"axis of size 0 \(shape \(0, 3\)\)"):
            call()


@pytest.mark.parametrize("axis", [2, -3, (0, 0), (0, -2)])
def test_axes_that_are_not_there(axis: Any) -> None:
    x = tensor(np.ones((2, 3)))
    with pytest.raises(ShapeError, match=r"out of range|named twice"):
        x.sum(axis=axis)
    with pytest.raises(ShapeError):
        x.transpose(axis if isinstance(axis, tuple) else (axis, 0))
    with pytest.raises(ArgumentError, match="Expected integers"):
        x.sum(axis=0.5)


def test_shapes_change_as_in_numpy(rng: np.random.Generator) -> None:
    a = rng.normal(size=(2, 3, 4))
    x = tensor(a)
    for function in (
        lambda v: v.reshape(6, 4),
        lambda v: v.reshape((4, -1)),
        lambda v: v.reshape(-1),
        lambda v: v.reshape([2, 12]),
        lambda v: v.reshape(np.int64(24)),
        lambda v: v.T,
        lambda v: v.transpose(),
        lambda v: v.transpose(1, 0, 2),
        lambda v: v.transpose((2, -3, 1)),
        lambda v: v.swapaxes(0, -1),
        lambda v: v.T.reshape(2, 12),
    ):
        same(function(x), function(a))
        gradcheck(function, a)
    same(x[0].broadcast_to((5, 3, 4)), np.broadcast_to(a[0], (5, 3, 4)))
    gradcheck(lambda v: v.broadcast_to((2, 3, 2)) * v, a[0, :, :1])
    same(tensor(2.0).reshape(1, 1), np.full((1, 1), 2.0))
    same(tensor([[2.0]]).reshape(()), 2.0)
    same(tensor([[2.0]]).reshape(), 2.0)
    same(tensor(np.empty((0, 3))).reshape(-1, 3), np.empty((0, 3)))


@pytest.mark.parametrize("shape", [(5, 5), (-1, 5), (-1, -1), (-2, -12), (0, -1), (24, 0), ()])
def test_shapes_that_do_not_fit(shape: Any) -> None:
    x = tensor(np.ones((2, 3, 4)))
    with pytest.raises(ShapeError, match=r"shape \(2, 3, 4\).*cannot take shape"):
        x.reshape(shape)
    with pytest.raises(ShapeError):
        x.broadcast_to((2, 3, 5))
    with pytest.raises(ShapeError, match="cannot broadcast shapes"):
        x + np.ones((2, 4))


MATMULS = [((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 2)), ((2, 3), (3, 4)), ((5, 2, 3), (3, 4)), ((5, 2, 3), (5, 3, 4))]
MATMULS += [
    ((2, 1, 2, 3), (5, 3, 2)),
    ((3,), (5, 3, 2)),
    ((5, 2, 3), (3,)),
    ((0, 3), (3, 2)),
    ((2, 0), (0, 3)),
    ((2, 3), (3, 0)),
]


@pytest.mark.parametrize("shapes", MATMULS, ids=str)
def test_matrix_products(shapes: Any, rng: np.random.Generator) -> None:
    a, b = (rng.integers(-4, 5, shape).astype(F64) for shape in shapes)
    same(tensor(a) @ tensor(b), a @ b)
    gradcheck(operator.matmul, (a, b))


@pytest.mark.parametrize("shapes", [((), (3,)), ((2, 3), (2, 3)), ((3,), (4,)), ((2, 2, 3), (3, 3, 2))], ids=str)
def test_matrix_products_that_do_not_fit(shapes: Any) -> None:
    with pytest.raises(ShapeError, match="matmul"):
        tensor(np.ones(shapes[0])) @ tensor(np.ones(shapes[1]))


def test_finite_results_raise_no_warning_and_cast_back() -> None:
    x = leaf(np.array([1e30, -1e30, 88.0, -100.0], F32))
    y = fm.sigmoid(x) * np.tanh(x) + np.exp(-abs(x)) + fm.softplus(x).sum() * 0.0
    y.sum().backward()
    assert np.isfinite(x.grad.numpy()).all()
    same(x.astype(F64), x.numpy().astype(F64))
    assert x.astype(F32) is x
    (x.astype(F64) * 2.0).sum().backward()
    assert x.grad.dtype == F32
    n = tensor([1.7, -1.7]).astype(int)
    same(n, np.array([1, -1]))
    same(x.copy(), x.numpy())
    for dtype in (complex, "U3", object, "datetime64[s]", np.longdouble, "nonsense"):
        with pytest.raises(DTypeError, match="dtype is"):
            x.astype(dtype)


def test_tensors_iterate_hash_and_format() -> None:
    a = np.arange(6.0).reshape(3, 2)
    x = tensor(a)
    assert [row.numpy().tolist() for row in x] == a.tolist()
    assert len(x) == 3
    assert len({x, x, tensor(a)}) == 2
    with pytest.raises(ShapeError, match="no length"):
        list(tensor(1.0))
    assert float(tensor(2.5)) == 2.5
    assert f"{as_tensor(1.5, like=x).item():.2f}" == "1.50"
    with pytest.raises(ShapeError, match=r"item\(\) needs one element"):
        x.item()


def test_no_grad_leaves_no_trace() -> None:
    x = leaf([1.0])
    with no_grad():
        y = x * 2
    assert not y.requires_grad
    with pytest.raises(GraphError, match="requires_grad=True"):
        y.backward()
