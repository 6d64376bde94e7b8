"""Parameters: built late, written in place, packed into arenas, moved, copied."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fcdense import ops
from fcdense.backends import device
from fcdense.errors import DeviceError, DTypeError, GraphError, ShapeError
from fcdense.gradients import grad
from fcdense.parameter import Parameter, pack
from fcdense.tape import no_grad
from fcdense.tensor import Tensor, tensor

CPU, REFERENCE = device("cpu"), device("reference")


def parameter(shape: tuple[int, ...] = (2, 3), dtype: Any = np.float32, **options: Any) -> Parameter:
    return Parameter(np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype), CPU, **options)


# ---- not built yet ---------------------------------------------------------------------------------------------------

READS: list[Callable[[Parameter], Any]] = [
    lambda p: p.shape,
    lambda p: p.dtype,
    lambda p: p.size,
    lambda p: len(p),
    lambda p: p.numpy(),
    lambda p: p.item(),
    lambda p: p + 1.0,
    lambda p: np.exp(p),
    lambda p: p[0],
    lambda p: p.sum(),
    lambda p: np.asarray(p),
    lambda p: p.assign(np.ones(3)),
    lambda p: p.backward(),
    lambda p: ops.dense(tensor(np.ones((2, 3))), p),
    lambda p: p.detach().numpy(),
]


@pytest.mark.parametrize("read", READS)
def test_an_unbuilt_parameter_says_what_to_do(read: Callable[[Parameter], Any]) -> None:
    with pytest.raises(GraphError, match=r"no shape yet.*Call the model once, or give in_features"):
        read(Parameter(None, CPU))


def test_what_an_unbuilt_parameter_can_do() -> None:
    p = Parameter(None, CPU, name="layers.0.kernel")
    assert not p.is_built
    assert repr(p) == "Parameter('layers.0.kernel', not built)"
    assert (p.grad, p.has_grad, p.requires_grad) == (None, False, True)
    p.requires_grad = False
    p.requires_grad = True
    p.zero_grad()
    pack([p])
    assert p.arena is None
    p.move(REFERENCE)
    for twin in (copy.deepcopy(p), pickle.loads(pickle.dumps(p))):
        assert not twin.is_built
        assert (twin.name, twin.device) == ("layers.0.kernel", REFERENCE)
    p.build(np.ones((2, 2), np.float32))
    assert (p.is_built, p.shape) == (True, (2, 2))
    with pytest.raises(GraphError, match=r"'layers.0.kernel' has values already, of shape \(2, 2\); use assign"):
        p.build(np.ones((3, 3), np.float32))


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_assign_copies_casts_and_raises_the_version(packed: bool) -> None:
    p = parameter()
    if packed:
        pack([p])
    array, memory = np.full((2, 3), 0.1), p.array
    for values, expected in ((array, 0.1), (tensor(array), 0.1), ([[1, 2, 3]] * 2, [1, 2, 3]), (parameter(), p)):
        before = p.version.number
        p.assign(values)
        np.testing.assert_array_equal(p.numpy(), np.broadcast_to(np.asarray(expected, np.float32), (2, 3)))
        assert p.version.number == before + 1
    array[:] = 9.0
    assert p.array is memory


@pytest.mark.parametrize(
    ("values", "error"),
    [
        (np.ones((3, 2)), ShapeError),
        (np.ones(3), ShapeError),
        (1.0, ShapeError),
        ([[1.0], [1.0, 2.0]], ShapeError),
        (np.ones((2, 3), complex), DTypeError),
        (np.full((2, 3), "1"), DTypeError),
        (np.full((2, 3), None), DTypeError),
        (None, DTypeError),
        (tensor(np.ones((2, 3)), device="reference"), DeviceError),
    ],
)
def test_assign_refuses_and_leaves_the_values(values: Any, error: type[Exception]) -> None:
    p = parameter()
    with pytest.raises(error):
        p.assign(values)
    np.testing.assert_array_equal(p.numpy(), parameter().numpy())
    assert p.version.number == 0


def test_parameters_are_floats() -> None:
    with pytest.raises(DTypeError, match="Only float tensors can require gradients; this one is int64"):
        parameter(dtype=int)
    assert parameter(dtype=int, requires_grad=False).dtype == np.int64


def test_a_parameter_is_a_tensor() -> None:
    p = parameter(dtype=np.float64)
    y = (p * p).sum()
    assert type(p * p) is Tensor
    assert not p.detach().requires_grad
    y.backward()
    np.testing.assert_array_equal(p.grad.numpy(), 2.0 * p.numpy())
    with pytest.raises(GraphError, match="part of a graph"):
        p[0] = 1.0
    with no_grad():
        p[0] = 1.0
    np.testing.assert_array_equal(p.numpy()[0], 1.0)


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_the_gradient_is_overwritten_once_and_then_summed_up_in_one_buffer(packed: bool) -> None:
    p = parameter(dtype=np.float64)
    if packed:
        pack([p])
    (p * 3.0).sum().backward()
    memory = p.grad.array
    (p * 4.0).sum().backward()
    np.testing.assert_array_equal(p.grad.numpy(), 7.0)
    p.zero_grad()
    assert (p.grad, p.has_grad) == (None, False)
    (p * 5.0).sum().backward()
    np.testing.assert_array_equal(p.grad.numpy(), 5.0)
    assert p.grad.array is memory
    if packed:
        assert np.shares_memory(memory, p.arena.gradients)


def test_what_lay_in_the_buffer_is_never_read() -> None:
    p = parameter(dtype=np.float64)
    pack([p])
    p.arena.gradients[:] = np.nan
    ops.dense(tensor(np.ones((1, 2))), p).sum().backward()
    np.testing.assert_array_equal(p.grad.numpy(), 1.0)


def test_setting_the_gradient() -> None:
    p = parameter(dtype=np.float64)
    for value in (np.ones((2, 3)), tensor(np.ones((2, 3), np.float32)), [[1, 1, 1], [1, 1, 1]]):
        p.grad = value
        np.testing.assert_array_equal(p.grad.numpy(), 1.0)
        p.grad = p.grad * 0.5
        np.testing.assert_array_equal(p.grad.numpy(), 0.5)
    for bad, error in (
        (np.ones(3), ShapeError),
        (2.0, ShapeError),
        ("text", DTypeError),
        (np.ones((2, 3)) * 1j, DTypeError),
    ):
        with pytest.raises(error):
            p.grad = bad
        np.testing.assert_array_equal(p.grad.numpy(), 0.5)
    (p * 1.0).sum().backward()
    np.testing.assert_array_equal(p.grad.numpy(), 1.5)
    p.grad = None
    assert p.grad is None
    p.grad = np.ones((2, 3))
    p.grad = p.grad
    np.testing.assert_array_equal(p.grad.numpy(), 1.0)


def test_deposits_are_copies() -> None:
    p, dy = parameter(dtype=np.float64), tensor(np.ones((2, 3)))
    (p + 0.0).backward(dy)
    dy[...] = 7.0
    np.testing.assert_array_equal(p.grad.numpy(), 1.0)


def test_grad_touches_no_buffer() -> None:
    p = parameter(dtype=np.float64)
    pack([p])
    gradient = grad(ops.dense(tensor(np.ones((1, 2))), p).sum(), p)
    np.testing.assert_array_equal(gradient.numpy(), 1.0)
    assert not p.has_grad
    assert not p.arena.gradients.any()
    p.backward(np.ones((2, 3)))
    np.testing.assert_array_equal(p.grad.numpy(), 1.0)


# ---- packing ---------------------------------------------------------------------------------------------------------


def test_packing_orders_by_trained_then_decayed_and_keeps_the_order_within() -> None:
    group = [
        parameter((3,), name="frozen bias", requires_grad=False),
        parameter((4,), name="bias"),
        parameter((2, 2), name="kernel", decay=True),
        parameter((2, 3), name="frozen kernel", requires_grad=False, decay=True),
        parameter((5, 1), name="second kernel", decay=True),
        parameter((1,), name="second bias"),
    ]
    values = [np.array(p.numpy()) for p in group]
    pack(group)
    arena = group[0].arena
    assert [slot.name for slot in arena.layout.slots] == [
        "kernel",
        "second kernel",
        "bias",
        "second bias",
        "frozen kernel",
        "frozen bias",
    ]
    for p, before in zip(group, values, strict=True):
        assert p.arena is arena
        assert p.version is arena.version
        assert np.shares_memory(p.array, arena.values)
        assert (p.array.ctypes.data - arena.values.ctypes.data) % 64 == 0
        np.testing.assert_array_equal(p.numpy(), before)
    covered = np.zeros(arena.layout.size, bool)
    for slot in arena.layout.slots:
        covered[slot.offset : slot.stop] = True
    assert not arena.values[~covered].any()
    trained = [p.index for p in group if p.requires_grad]
    assert len(arena.layout.spans(sorted(trained))) == 1


def test_what_is_adopted_stays_where_it_is() -> None:
    shared, first, second = parameter(name="encoder"), parameter(name="a"), parameter(name="b")
    pack([shared, first])
    home, memory = shared.arena, shared.array
    pack([shared, second, second])
    assert shared.arena is home
    assert shared.array is memory
    assert second.arena is not home
    assert [slot.name for slot in second.arena.layout.slots] == ["b"]
    pack([shared, first, second])
    assert shared.array is memory


def test_one_arena_for_each_dtype_and_device() -> None:
    p, q = parameter(dtype=np.float32), parameter(dtype=np.float64)
    r = Parameter(np.ones(2, np.float32), REFERENCE)
    pack([p, q, r])
    assert len({id(x.arena) for x in (p, q, r)}) == 3
    assert [x.arena.dtype for x in (p, q, r)] == [np.float32, np.float64, np.float32]
    pack([])


def test_gradients_survive_packing() -> None:
    p, q = parameter(dtype=np.float64), parameter(dtype=np.float64)
    (p * 3.0).sum().backward()
    pack([p, q])
    np.testing.assert_array_equal(p.grad.numpy(), 3.0)
    assert q.grad is None
    (p * 3.0 + q).sum().backward()
    np.testing.assert_array_equal(p.grad.numpy(), 6.0)
    np.testing.assert_array_equal(q.grad.numpy(), 1.0)
    assert np.shares_memory(p.grad.array, p.arena.gradients)


def test_parameters_of_size_zero_and_of_no_axes() -> None:
    empty, single = Parameter(np.empty((0, 3)), CPU), Parameter(np.array(2.0), CPU)
    pack([empty, single])
    assert (empty.shape, single.shape) == ((0, 3), ())
    (single * 3.0 + empty.sum()).backward()
    assert single.grad.item() == 3.0
    assert empty.grad.shape == (0, 3)


# ---- moving and copying ----------------------------------------------------------------------------------------------


def test_moving_leaves_the_arena_which_is_retired() -> None:
    p, stays = parameter(dtype=np.float64), parameter(dtype=np.float64)
    pack([p, stays])
    home = p.arena
    (p * 2.0).sum().backward()
    p.move(CPU)
    assert (p.arena, home.retired, p.has_grad) == (home, False, True)
    p.move(REFERENCE)
    assert (p.arena, home.retired, p.grad, p.device) == (None, True, None, REFERENCE)
    np.testing.assert_array_equal(p.numpy(), parameter().numpy())
    p.assign(np.zeros((2, 3)))
    assert home.version.number == 0, "what happens elsewhere is none of the old arena's business"
    np.testing.assert_array_equal(
        home.values[:6].reshape(2, 3) if p.index == 0 else home.values[8:14].reshape(2, 3), parameter().numpy()
    )
    pack([p])
    (p * 2.0).sum().backward()
    np.testing.assert_array_equal(p.grad.numpy(), 2.0)


@pytest.mark.parametrize(
    "twin_of", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
def test_copies_stand_alone_and_ties_stay(twin_of: Callable[[Any], Any]) -> None:
    tied, other = (
        parameter(name="embedding", decay=True, regularizer=abs, constraint=abs),
        parameter(requires_grad=False),
    )
    pack([tied, other])
    (tied * 2.0).sum().backward()
    model = {"in": tied, "out": tied, "other": other, "list": [other]}
    twin = twin_of(model)
    assert twin["in"] is twin["out"]
    assert twin["other"] is twin["list"][0]
    assert twin["in"] is not tied
    p = twin["in"]
    assert (p.name, p.decay, p.regularizer, p.constraint, p.arena, p.grad) == ("embedding", True, abs, abs, None, None)
    assert (p.requires_grad, twin["other"].requires_grad) == (True, False)
    p.assign(np.zeros((2, 3)))
    np.testing.assert_array_equal(tied.numpy(), parameter().numpy())
    np.testing.assert_array_equal(tied.grad.numpy(), 2.0)
    pack([twin["in"], twin["out"], twin["other"]])
    assert twin["in"].arena is not tied.arena
