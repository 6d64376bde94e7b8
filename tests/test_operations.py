"""Each operation by itself: first and second derivatives, what it saves, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fcdense import indexing, operations, ops
from fcdense.backends import device
from fcdense.errors import DeviceError, DTypeError, GraphError, ShapeError
from fcdense.gradients import grad, gradcheck
from fcdense.operations import Elementwise, Operation
from fcdense.program import trace
from fcdense.tensor import Tensor, tensor

CONDITION = np.array([[True, False, True], [False, False, True]])
MULTIPLY = trace(lambda x, y: x * y, 2, name="times")
MIXED = trace(lambda x, y, s: np.exp(x * s) * y + x, 2, 1, name="mixed")

CASES: dict[str, tuple[Operation, tuple[tuple[int, ...], ...]]] = {
    "elementwise": (Elementwise(MIXED, (0.7,)), ((2, 3), (3,))),
    "elementwise, 0-d": (Elementwise(MIXED, (0.7,)), ((), ())),
    "elementwise, repeated": (Elementwise(MIXED, (0.7,)), ((2, 1), (1, 3))),
    "sum": (operations.Reduce("sum", (0, 2)), ((2, 3, 2),)),
    "max": (operations.Reduce("max", (1,)), ((2, 3),)),
    "min": (operations.Reduce("min", (0,)), ((2, 3),)),
    "broadcast_to": (operations.BroadcastTo((4, 2, 3)), ((2, 1),)),
    "matmul": (operations.MatMul(), ((2, 3), (3, 4))),
    "matmul, stacked": (operations.MatMul(), ((2, 1, 2, 3), (3, 3, 2))),
    "reshape": (operations.Reshape((3, 2)), ((2, 3),)),
    "transpose": (operations.Transpose((2, 0, 1)), ((2, 3, 1),)),
    "concatenate": (operations.Concatenate(1), ((2, 1), (2, 3), (2, 0))),
    "astype": (operations.AsType(np.dtype(np.float64)), ((2, 3),)),
    "slice": (indexing.Slice((slice(None, None, -1), 1)), ((2, 3),)),
    "embed": (indexing.Embed((Ellipsis, 1), (2, 3)), ((2,),)),
    "gather_rows": (indexing.GatherRows(np.array([2, 0, 0])), ((3, 2),)),
    "scatter_add_rows": (indexing.ScatterAddRows(np.array([2, 0, 0]), (4, 2)), ((3, 2),)),
    "softmax": (ops.SoftmaxRows(False), ((2, 3),)),
    "log_softmax": (ops.SoftmaxRows(True), ((2, 3),)),
    "dropout": (ops.Dropout(0.5, np.array([7, 3], np.uint64)), ((4, 5),)),
}


def squared(operation: Operation) -> Callable[..., Tensor]:
    """A function whose derivatives of every order go through `operation`."""

    def function(*inputs: Tensor) -> Tensor:
        y = Tensor.apply(operation, *inputs)
        return y * y

    return function


@pytest.mark.parametrize("name", CASES)
def test_first_derivatives(name: str, rng: np.random.Generator) -> None:
    operation, shapes = CASES[name]
    gradcheck(squared(operation), [rng.normal(size=shape) for shape in shapes])


@pytest.mark.parametrize("name", CASES)
def test_second_derivatives(name: str, rng: np.random.Generator) -> None:
    operation, shapes = CASES[name]
    function = squared(operation)
    points = [rng.normal(size=shape) for shape in shapes]
    directions = [rng.normal(size=shape) for shape in shapes]

    def slope(*inputs: Tensor) -> Tensor:
        gradients = grad(function(*inputs).sum(), list(inputs), create_graph=True)
        total = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
        return total + 0.0 * sum(x.sum() for x in inputs)  # depends on every input

    gradcheck(slope, points)


@pytest.mark.parametrize("name", CASES)
def test_only_the_gradients_that_are_needed(name: str, rng: np.random.Generator) -> None:
    """Each input alone, the others constant: the same gradient as with all of them."""
    operation, shapes = CASES[name]
    points = [rng.normal(size=shape) for shape in shapes]
    leaves = [tensor(p, requires_grad=True) for p in points]
    out = Tensor.apply(operation, *leaves)
    dy = rng.normal(size=out.shape)
    together = grad(out, leaves, dy)
    for k in range(len(points)):
        alone = [tensor(p, requires_grad=i == k) for i, p in enumerate(points)]
        gradient = grad(Tensor.apply(operation, *alone), alone[k], dy)
        np.testing.assert_array_equal(gradient.numpy(), together[k].numpy())
        assert gradient.shape == points[k].shape


@pytest.mark.parametrize("name", CASES)
def test_on_the_reference_device(name: str, rng: np.random.Generator) -> None:
    """The other backend in plain float64: results and gradients."""
    operation, shapes = CASES[name]
    points = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    results = []
    for on in ("cpu", "reference"):
        leaves = [tensor(p, device=on, requires_grad=True) for p in points]
        out = Tensor.apply(operation, *leaves)
        assert out.device is device(on)
        results.append([out, *grad(out, leaves, np.ones(out.shape, out.dtype))])
    for cpu, reference in zip(*results, strict=True):
        assert cpu.dtype == reference.dtype
        np.testing.assert_allclose(cpu.numpy(), reference.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("operation", "needs", "saved"),
    [
        (Elementwise(MULTIPLY), (True, True), (0, 1)),
        (Elementwise(MULTIPLY), (True, False), (1,)),
        (Elementwise(MULTIPLY), (False, True), (0,)),
        (Elementwise(trace(lambda x, y: x + y, 2)), (True, True), ()),
        (Elementwise(trace(lambda x, y: x / y, 2)), (True, False), (1,)),
        (Elementwise(trace(lambda x: x * 3.0, 1)), (True,), ()),
        (operations.MatMul(), (True, True), (0, 1)),
        (operations.MatMul(), (True, False), (1,)),
        (operations.MatMul(), (False, True), (0,)),
        (operations.Reduce("sum", (0,)), (True,), ()),
        (operations.Reduce("max", (0,)), (True,), (0,)),
        (operations.Reshape((1,)), (True,), ()),
        (operations.Concatenate(0), (True, True), ()),
    ],
)
def test_what_is_saved(operation: Operation, needs: tuple[bool, ...], saved: tuple[int, ...]) -> None:
    assert operation.saves(needs) == saved


@pytest.mark.parametrize(
    ("shape", "operand"), [((2, 3), (2, 3)), ((2, 3), (3,)), ((2, 3), (2, 1)), ((2, 3), ()), ((2, 3), (1, 1))]
)
@pytest.mark.parametrize("leading", [(), (4,), (1,)])
def test_sum_to_undoes_broadcasting(shape: Any, operand: Any, leading: Any, rng: np.random.Generator) -> None:
    values = rng.integers(-9, 9, (*leading, *shape)).astype(np.float64)
    result = operations.sum_to(tensor(values), operand)
    lead = values.ndim - len(operand)
    expected = values.sum(axis=tuple(range(lead)))
    for axis, size in enumerate(operand):
        if size == 1:
            expected = expected.sum(axis=axis, keepdims=True)
    np.testing.assert_array_equal(result.numpy(), expected)
    assert result.shape == operand


def test_a_gradient_that_passes_through_is_not_copied() -> None:
    x, y = tensor(np.ones((4, 4)), requires_grad=True), tensor(np.ones((4, 4)), requires_grad=True)
    dy = tensor(np.arange(16.0).reshape(4, 4))
    dx, dz = grad(x + y, [x, y], dy)
    assert np.shares_memory(dx.numpy(), dy.numpy())
    assert np.shares_memory(dz.numpy(), dy.numpy())
    (x + y).backward(dy)
    assert not np.shares_memory(x.grad.numpy(), y.grad.numpy()), "what is kept has memory of its own"
    assert not np.shares_memory(x.grad.numpy(), dy.numpy())


def test_conditions_have_no_gradient_and_none_flows_into_them() -> None:
    x = tensor([1.0, -1.0], requires_grad=True)
    positive = x > 0
    assert (positive.dtype, positive.requires_grad, positive.node) == (np.bool_, False, None)
    (positive * x + positive).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [1.0, 0.0])
    with pytest.raises(GraphError, match="'greater' has no gradient"):
        operations.Compare(trace(lambda a: a > 0, 1, name="greater")).vjp(x, None)  # type: ignore[arg-type]


def test_operands_on_two_devices() -> None:
    x, y = tensor([1.0]), tensor([1.0], device="reference")
    for call in (lambda: x + y, lambda: x.reshape(1, 1) @ y.reshape(1, 1), lambda: np.stack([x, y]), lambda: x > y):
        with pytest.raises(DeviceError, match=r"tensors on cpu and reference. Move one: x.to\('cpu'\)"):
            call()


def test_what_does_not_fit() -> None:
    x, n = tensor(np.ones((2, 3))), tensor([[1, 2, 3]])
    with pytest.raises(ShapeError, match=r"\(2, 3\) cannot be broadcast to \(2, 4\)"):
        x.broadcast_to((2, 4))
    with pytest.raises(ShapeError, match=r"concatenate along axis 0: shapes \(2, 3\), \(2, 4\) differ"):
        np.concatenate([x, np.ones((2, 4))])
    with pytest.raises(ShapeError, match="differ"):
        np.concatenate([x, np.ones((2, 3, 1))])
    with pytest.raises(DTypeError, match="'concatenate' got float64 and int64"):
        np.concatenate([x, n])
    with pytest.raises(DTypeError, match="'concatenate' got float64 and int64"):
        np.concatenate([n, x])
    np.testing.assert_array_equal(np.concatenate([n, n]).numpy(), [[1, 2, 3], [1, 2, 3]])
