"""What every tensor is: its state, its gradient, copies of it, and how `backward` begins."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

from fcdense.backends import device
from fcdense.errors import DeviceError, DTypeError, GraphError, ShapeError
from fcdense.tape import no_grad
from fcdense.tensor import Tensor, tensor


def leaf(values: Any, dtype: Any = None) -> Tensor:
    return tensor(values, dtype=dtype, requires_grad=True)


def test_state() -> None:
    x = tensor(np.ones((2, 3, 4), np.float32))
    assert (x.shape, x.ndim, x.size, x.dtype, len(x)) == ((2, 3, 4), 3, 24, np.float32, 2)
    assert (x.device, x.grad, x.requires_grad, x.node) == (device("cpu"), None, False, None)
    y = tensor(3)
    assert (y.shape, y.ndim, y.size, y.item(), type(y.item())) == ((), 0, 1, 3, int)


def test_numpy_is_a_read_only_view() -> None:
    x = tensor([1.0, 2.0])
    view = x.numpy()
    assert np.shares_memory(view, x.array)
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 5.0
    with no_grad():
        x[0] = 5.0
    assert view[0] == 5.0
    assert np.asarray(x) is not x.array
    assert np.array(x, dtype=np.float32).dtype == np.float32
    assert np.array(x, copy=True).flags.writeable


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (tensor(np.array([1.0, 2.5], np.float32)), "tensor([1. , 2.5])"),
        (tensor([1, 2]), "tensor([1, 2], dtype=int64)"),
        (tensor([True]), "tensor([ True], dtype=bool)"),
        (leaf(np.float32(2.0)), "tensor(2., requires_grad=True)"),
        (leaf(np.array([1.0], np.float32)) * 2.0, "tensor([2.], from='mul')"),
        (tensor([1.0], device="reference"), "tensor([1.], dtype=float64, device='reference')"),
    ],
)
def test_repr(value: Tensor, text: str) -> None:
    assert repr(value) == f"{value}" == text


def test_a_number_is_formatted_as_one() -> None:
    assert f"{tensor(np.float32(0.125)):.2f} {tensor(3):>3d} {leaf([[2.0]]):.1e}" == "0.12   3 2.0e+00"
    with pytest.raises(ShapeError, match=r"item\(\) needs one element"):
        f"{tensor([1.0, 2.0]):.2f}"


# ---- gradients -------------------------------------------------------------------------------------------------------


def test_requires_grad_is_for_float_leaves() -> None:
    for data in ([1, 2], [True, False]):
        with pytest.raises(DTypeError, match=r"Only float tensors can require gradients; this one is (int64|bool)"):
            tensor(data, requires_grad=True)
        x = tensor(data)
        with pytest.raises(DTypeError):
            x.requires_grad = True
        x.requires_grad = False
    y = leaf([1.0]) * 2.0
    for value in (True, False):
        with pytest.raises(GraphError, match=r"leaves only; use detach\(\)"):
            y.requires_grad = value
    free = y.detach()
    free.requires_grad = True
    assert (free.node, free.requires_grad) == (None, True)
    assert np.shares_memory(free.numpy(), y.numpy())


def test_freezing_a_leaf_concerns_the_graphs_recorded_later() -> None:
    x = leaf([1.0])
    y = x * 2.0
    x.requires_grad = False
    assert not (x * 2.0).requires_grad
    y.backward()
    assert x.grad.item() == 2.0


def test_where_backward_begins() -> None:
    x = leaf([1.0, 2.0])
    with pytest.raises(ShapeError, match=r"needs one element; this tensor has shape \(2,\).*\.sum\(\), \.mean\(\)"):
        (x * 2.0).backward()
    for y in (tensor([1.0]), x.detach(), (x > 0), x.astype(int)):
        with pytest.raises(GraphError, match="requires_grad=True"):
            y.backward()
    for gradient, error in (
        (np.ones(3), ShapeError),
        (1.0, ShapeError),
        (np.ones((2, 1)), ShapeError),
        ([1j, 1j], DTypeError),
        ([None, None], DTypeError),
        (tensor(np.ones(2), device="reference"), DeviceError),
    ):
        with pytest.raises(error):
            (x * 2.0).backward(gradient)
    assert x.grad is None
    for gradient in ([1.0, 10.0], np.array([1, 10]), tensor([1.0, 10.0]), tensor(np.array([1.0, 10.0], np.float32))):
        x.zero_grad()
        (x * 2.0).backward(gradient)
        np.testing.assert_array_equal(x.grad.numpy(), [2.0, 20.0])
        assert x.grad.dtype == np.float64
    y = leaf(np.full((1, 1), 3.0))
    (y * y).backward()
    np.testing.assert_array_equal(y.grad.numpy(), [[6.0]])


def test_backward_from_a_leaf_itself() -> None:
    x, seed = leaf(2.0), leaf(3.0)
    x.backward()
    x.backward(seed)
    assert x.grad.item() == 4.0
    assert not x.grad.requires_grad
    assert seed.grad is None


def test_a_seed_with_a_gradient_of_its_own_is_taken_as_a_value() -> None:
    x, seed = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    (x * 2.0).backward(seed * 1.0)
    np.testing.assert_array_equal(x.grad.numpy(), [6.0, 8.0])
    assert not x.grad.requires_grad
    assert seed.grad is None


def test_the_kept_gradient_has_memory_of_its_own() -> None:
    x = leaf(np.ones((2, 3)))
    x.sum().backward()
    with no_grad():
        x.grad[0] = 5.0
    x.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [[6.0] * 3, [2.0] * 3])


def test_setting_and_forgetting_gradients() -> None:
    x = leaf([1.0, 2.0])
    x.grad = [3, 4]
    np.testing.assert_array_equal(x.grad.numpy(), [3.0, 4.0])
    assert x.grad.dtype == np.float64
    (x * 1.0).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [4.0, 5.0])
    with pytest.raises(ShapeError, match=r"gradient has shape \(3,\), the tensor \(2,\)"):
        x.grad = np.ones(3)
    np.testing.assert_array_equal(x.grad.numpy(), [4.0, 5.0])
    x.zero_grad()
    assert x.grad is None
    x.grad = None


def test_detach_cuts_the_graph() -> None:
    x = leaf([1.0, 2.0])
    (x * x.detach()).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [1.0, 2.0])


def test_gradients_cross_devices() -> None:
    x = leaf([1.0, 2.0])
    moved = x.to("reference")
    assert moved.device == device("reference")
    assert not np.shares_memory(moved.numpy(), x.numpy())
    (np.exp(moved).to("cpu") * 2.0).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 2.0 * np.exp([1.0, 2.0]), rtol=1e-15)
    assert x.grad.device == device("cpu")
    assert x.to("cpu") is x


# ---- copies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64, np.bool_])
def test_leaves_are_copied_and_pickled(dtype: Any) -> None:
    x = tensor(np.array([[0, 1], [1, 0]], dtype), requires_grad=np.dtype(dtype).kind == "f")
    for twin in (copy.deepcopy(x), copy.copy(x), pickle.loads(pickle.dumps(x))):
        assert (twin.dtype, twin.requires_grad, twin.device) == (x.dtype, x.requires_grad, x.device)
        np.testing.assert_array_equal(twin.numpy(), x.numpy())
        assert not np.shares_memory(twin.numpy(), x.numpy())
        with no_grad():
            twin[0] = 1
        assert x.numpy()[0, 0] == 0


def test_results_are_not_copied_with_their_graph() -> None:
    y = leaf([1.0]) * 2.0
    for call in (copy.deepcopy, pickle.dumps):
        with pytest.raises(GraphError, match=r"use detach\(\)"):
            call(y)
    assert copy.deepcopy(y.detach()).item() == 2.0
