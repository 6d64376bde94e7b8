"""Indices against NumPy, their gradients against central differences, and assignment in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fcdense import ops
from fcdense.errors import DTypeError, GraphError, ShapeError
from fcdense.gradients import gradcheck
from fcdense.tape import no_grad
from fcdense.tensor import Tensor, tensor

DATA = np.arange(24.0).reshape(4, 3, 2)
BASIC = [
    0,
    -1,
    np.int64(2),
    slice(None),
    slice(1, 3),
    slice(None, None, -1),
    slice(3, 0, -2),
    slice(2, 2),
    slice(-2, None),
    None,
    Ellipsis,
    (),
    (1, 2, 1),
    (1, -1),
    (Ellipsis, 0),
    (0, Ellipsis, 1),
    (slice(None, None, -1), None, slice(0, 2)),
    (None, 0, Ellipsis, None, slice(None, None, -1)),
    (slice(None), slice(None), 1),
]
ADVANCED = [
    [0, 2],
    [0, 0, 3, 0],
    [-1, 1],
    [],
    [[0, 1], [3, 3]],
    np.array([2, 2], np.int8),
    np.array([1, 3], np.uint16),
    np.array(2),
    np.array([True, False, True, True]),
    [False, True, False, False],
    np.zeros(4, bool),
    DATA > 7.5,
    DATA[:, :, 0] > 7.5,
    True,
    ([0, 1, 1], [2, 0, 0]),
    (np.arange(4), 0, 1),
    (np.arange(4)[:, None], [0, 2]),
    (slice(None), [0, 2, 0]),
    (Ellipsis, [1, 1]),
    (slice(1, 3), 0, np.array([True, False])),
    (0, [1, 2], None),
]


def shown(key: Any) -> str:
    return repr(key).replace("\n", "")[:40]


@pytest.mark.parametrize("key", [*BASIC, *ADVANCED], ids=shown)
def test_every_index_of_numpy(key: Any) -> None:
    x = tensor(DATA, requires_grad=True)
    out = x[key]
    expected = DATA[key]
    assert isinstance(out, Tensor)
    assert (out.shape, out.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(out.numpy(), expected)
    weights = np.random.default_rng(0).normal(size=expected.shape)
    (out * weights).sum().backward()
    scattered = np.zeros_like(DATA)
    np.add.at(scattered, key, weights)
    np.testing.assert_allclose(x.grad.numpy(), scattered, rtol=1e-15)
    if expected.size:
        gradcheck(lambda v: v[key] * v[key], DATA)


@pytest.mark.parametrize("key", BASIC, ids=shown)
def test_basic_indices_are_views(key: Any) -> None:
    x = tensor(DATA)
    assert x.size == 0 or x[key].size == 0 or np.shares_memory(x[key].array, x.array)
    view = x[key]
    view[...] = -1.0
    expected = DATA.copy()
    expected[key] = -1.0
    np.testing.assert_array_equal(x.numpy(), expected)


@pytest.mark.parametrize("key", BASIC, ids=shown)
def test_assignment_to_basic_indices(key: Any) -> None:
    x, expected = tensor(DATA), DATA.copy()
    values = -np.arange(DATA[key].size, dtype=np.float32).reshape(DATA[key].shape)
    x[key] = values
    expected[key] = values
    np.testing.assert_array_equal(x.numpy(), expected)
    x[key] = tensor(7)
    expected[key] = 7
    np.testing.assert_array_equal(x.numpy(), expected)


def test_overlapping_assignment() -> None:
    x, expected = tensor(DATA), DATA.copy()
    x[1:] = x[:-1]
    expected[1:] = expected[:-1].copy()
    np.testing.assert_array_equal(x.numpy(), expected)


@pytest.mark.parametrize("key", [key for key in ADVANCED if key is not True], ids=shown)
def test_assignment_to_other_indices_is_refused_and_writes_nothing(key: Any) -> None:
    x = tensor(DATA)
    with pytest.raises(IndexError, match=r"np\.where\(mask, v, t\)"):
        x[key] = 0.0
    np.testing.assert_array_equal(x.numpy(), DATA)


@pytest.mark.parametrize(
    "values", [np.ones((4, 3, 3)), np.ones((2, 4, 3, 2)), np.ones((5, 3, 2))], ids=lambda v: str(v.shape)
)
def test_assigned_values_must_fit(values: Any) -> None:
    x = tensor(DATA)
    with pytest.raises(ShapeError, match=r"do not fit the part of shape \(4, 3, 2\)"):
        x[...] = values
    np.testing.assert_array_equal(x.numpy(), DATA)
    assert x.version.number == 0


def test_assignment_inside_a_graph_is_refused() -> None:
    x = tensor(DATA, requires_grad=True)
    y = x * 2.0
    free = tensor(DATA)
    for target, values in ((y, 0.0), (x, 0.0), (y[0], 0.0)):
        with pytest.raises(GraphError, match="part of a graph"):
            target[0] = values
    with pytest.raises(GraphError, match="would lose it"):
        free[0] = y[0]
    np.testing.assert_array_equal(free.numpy(), DATA)
    with no_grad():
        x[0] = 0.0
        free[0] = y[0]
    assert x.numpy()[0].sum() == 0.0
    np.testing.assert_array_equal(free.numpy()[0], 2.0 * DATA[0])


@pytest.mark.parametrize("key", [4, -5, (0, 3), (0, 0, 0, 0), [0, 4], [-5], ([0], [3]), np.array([10])], ids=shown)
def test_indices_that_are_not_there(key: Any) -> None:
    with pytest.raises(IndexError):
        tensor(DATA)[key]


@pytest.mark.parametrize("key", [[0.0, 1.0], np.array([1.5]), "a", 1.5, (0, [0.5]), tensor([0.0])], ids=shown)
def test_indices_of_other_kinds(key: Any) -> None:
    with pytest.raises((DTypeError, IndexError), match=r"integers"):
        tensor(DATA)[key]


@pytest.mark.parametrize(
    "mask", [np.ones(3, bool), np.ones((4, 2), bool), np.ones((4, 3, 2, 1), bool)], ids=lambda m: str(m.shape)
)
def test_masks_of_another_shape(mask: Any) -> None:
    with pytest.raises(IndexError):
        tensor(DATA)[mask]


def test_tensors_are_indices_too() -> None:
    x = tensor(DATA, requires_grad=True)
    np.testing.assert_array_equal(x[tensor([3, 0])].numpy(), DATA[[3, 0]])
    np.testing.assert_array_equal(x[x > 7.5].numpy(), DATA[DATA > 7.5])
    rows, columns = np.arange(4), tensor([0, 1, 2, 0])
    np.testing.assert_array_equal(x[rows, columns].numpy(), DATA[rows, columns.numpy()])


def test_the_picked_log_probability_is_cross_entropy(rng: np.random.Generator) -> None:
    """The two ways to write it agree, value and gradient."""
    logits, labels = rng.normal(size=(6, 5)), rng.integers(0, 5, 6)
    x, y = tensor(logits, requires_grad=True), tensor(logits, requires_grad=True)
    picked = -ops.log_softmax(x)[np.arange(6), labels].mean()
    fused = ops.softmax_cross_entropy(y, labels, None, 1.0 / 6.0)
    np.testing.assert_allclose(picked.numpy(), fused.numpy(), rtol=1e-14)
    picked.backward()
    fused.backward()
    np.testing.assert_allclose(x.grad.numpy(), y.grad.numpy(), rtol=1e-13, atol=1e-16)


def test_an_index_may_be_changed_afterwards() -> None:
    x, rows = tensor(DATA, requires_grad=True), np.array([0, 1])
    out = x[rows]
    rows[:] = 3
    out.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy()[:, 0, 0], [1, 1, 0, 0])
