"""The tape: graphs of any form, when they refuse, and recording switched off."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from fcdense import activations, ops, tape
from fcdense.backends import device
from fcdense.errors import ArgumentError, GraphError, ShapeError
from fcdense.gradients import grad
from fcdense.parameter import Parameter, pack
from fcdense.tensor import Tensor, tensor

CPU = device("cpu")
TANH = activations.get("tanh")


def leaf(values: Any, dtype: Any = None) -> Tensor:
    return tensor(values, dtype=dtype, requires_grad=True)


def network(rng: np.random.Generator, sizes: tuple[int, ...] = (96, 64, 64, 10)) -> list[Parameter]:
    parameters = []
    for n, m in pairwise(sizes):
        parameters.append(Parameter(rng.normal(size=(n, m)).astype(np.float32) / 8, CPU, name="kernel", decay=True))
        parameters.append(Parameter(np.zeros(m, np.float32), CPU, name="bias"))
    pack(parameters)
    return parameters


def forward(parameters: list[Parameter], x: Any, name: str = "relu") -> Tensor:
    h = x if isinstance(x, Tensor) else tensor(x)
    for k in range(0, len(parameters), 2):
        last = k + 2 == len(parameters)
        h = ops.dense(h, parameters[k], parameters[k + 1], activations.get("linear" if last else name))
    return h


# ---- forms of graphs -------------------------------------------------------------------------------------------------


def test_a_tensor_used_again_and_again_sums_up() -> None:
    x = leaf([2.0, 3.0])
    (x * x + x - 5.0 * x + x / x).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 2.0 * x.numpy() - 4.0, rtol=1e-15)


def test_diamonds() -> None:
    """Each layer doubles the number of paths; every node is visited once."""
    visits = 0

    class Count(tape.VjpNode):
        __slots__ = ()

        def backward(self, dy: Any, sink: tape.GradientSink) -> Any:
            nonlocal visits
            visits += 1
            return super().backward(dy, sink)

    x = leaf([1.0])
    y = x
    for _ in range(60):
        y = 0.5 * y + 0.5 * y
        y = y.derived(y.array).attach(Count("same", (y,), lambda dy: (dy,)))
    y.backward(np.ones(1))
    assert x.grad.item() == 1.0
    assert visits == 60


def test_one_result_with_several_consumers(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    a = rng.normal(size=(4, 3))
    x, t = leaf(a), torch.tensor(a, requires_grad=True)

    def function(v: Any, exp: Any) -> Any:
        h = exp(v * 0.5)
        left, right = h * v, h + 1.0
        return (left * right + h).sum() + (right * right)[1:].sum() + h[0, 0]

    function(x, np.exp).backward()
    function(t, torch.exp).backward()
    np.testing.assert_allclose(x.grad.numpy(), t.grad.numpy(), rtol=1e-14)


def test_backward_over_parts_of_one_graph_adds_up() -> None:
    x = leaf([1.0, 2.0])
    h = x * x
    h.sum().backward(retain_graph=True)
    (h * h).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), 2.0 * x.numpy() + 4.0 * x.numpy() ** 3)


# ---- freed and changed graphs ----------------------------------------------------------------------------------------


def test_a_freed_graph_refuses_and_says_what_to_do() -> None:
    x = leaf([1.0, 2.0])
    h = np.exp(x)
    y = (h * h).sum()
    y.backward()
    before = x.grad.numpy().copy()
    for again in (y.backward, lambda: (h + 1.0).sum().backward(), lambda: grad(y, x)):
        with pytest.raises(GraphError, match=r"retain_graph=True"):
            again()
    np.testing.assert_array_equal(x.grad.numpy(), before)


def test_retained_graphs_give_exactly_the_same_again(rng: np.random.Generator) -> None:
    parameters, x = network(rng), leaf(rng.normal(size=(16, 96)), np.float32)
    y = forward(parameters, x, "tanh").sum()
    y.backward(retain_graph=True)
    once = [np.array(t.grad.numpy()) for t in (x, *parameters)]
    y.backward(retain_graph=True)
    y.backward()
    for t, first in zip((x, *parameters), once, strict=True):
        np.testing.assert_array_equal(t.grad.numpy(), first + first + first)


def with_overwritten(target: Tensor) -> None:
    with tape.no_grad():
        target[...] = 0.5


CHANGES: dict[str, Callable[[Tensor], None]] = {
    "setitem": with_overwritten,
    "one element": lambda t: with_overwritten(t.detach()[0]),
    "a view": lambda t: with_overwritten(t.detach().T),
    "a reshaped view": lambda t: with_overwritten(t.detach().reshape(-1)),
    "version": lambda t: t.version.bump(),
}
READERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "product": lambda x, w: x * w,
    "power": lambda x, w: w**3,
    "exp": lambda x, w: np.exp(w),
    "max": lambda x, w: w.max(axis=0),
    "matmul": lambda x, w: x @ w,
    "softmax": lambda x, w: ops.softmax(w),
    "dense": lambda x, w: ops.dense(x, w),
    "where": lambda x, w: np.where(w > 0, w * x, w),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("reader", READERS)
def test_a_saved_array_changed_in_place_is_refused_before_any_gradient_is_written(reader: str, change: str) -> None:
    x, w, other = leaf(np.eye(3) + 1.0), leaf(np.eye(3) + 2.0), leaf([1.0])
    other.sum().backward()
    y = READERS[reader](x, w).sum() + (other * 2.0).sum()
    CHANGES[change](w)
    with pytest.raises(GraphError, match=r"saved an array of shape \(3, 3\).*changed in place.*1 time"):
        y.backward()
    assert x.grad is None
    assert w.grad is None
    np.testing.assert_array_equal(other.grad.numpy(), [1.0])


@pytest.mark.parametrize("reader", ["product", "matmul", "dense", "exp", "max"])
def test_parameters_changed_by_assign_or_an_optimizer(reader: str) -> None:
    for change in (
        lambda p: p.assign(np.zeros((3, 3))),
        lambda p: p.arena.version.bump(),
        lambda p: with_overwritten(p),
    ):
        p, q = Parameter(np.eye(3), CPU), Parameter(np.ones(1), CPU)
        pack([p, q])
        (q * 3.0).sum().backward()
        y = READERS[reader](leaf(np.ones((3, 3))), p).sum() + q.sum()
        change(p)
        with pytest.raises(GraphError, match="changed in place"):
            y.backward()
        assert not p.has_grad
        np.testing.assert_array_equal(q.grad.numpy(), [3.0])


def test_the_result_that_an_activation_saved_is_watched_too() -> None:
    x, w = leaf(np.ones((2, 3))), leaf(np.ones((3, 2)))
    y = ops.dense(x, w, None, TANH)
    with_overwritten(y.detach())
    with pytest.raises(GraphError, match=r"'dense' saved an array of shape \(2, 2\)"):
        y.sum().backward()


def test_changes_that_no_gradient_reads_are_fine() -> None:
    x, y, scale = leaf([1.0, 2.0]), leaf([3.0, 4.0]), tensor([5.0, 6.0])
    out = ((x + y) - scale).sum() + (x * scale).sum()
    with tape.no_grad():
        x[0], y[0] = 100.0, 100.0
    out.backward()
    np.testing.assert_array_equal(x.grad.numpy(), [6.0, 7.0])
    np.testing.assert_array_equal(y.grad.numpy(), [1.0, 1.0])


def test_changes_after_backward_are_fine() -> None:
    p = Parameter(np.ones((2, 2)), CPU)
    pack([p])
    for k in range(3):
        (p * p).sum().backward()
        p.assign(p.numpy() - 0.25)
        np.testing.assert_array_equal(p.numpy(), 1.0 - 0.25 * (k + 1))


def test_a_parameter_packed_between_forward_and_backward() -> None:
    for change, refused in ((lambda p: None, False), (lambda p: p.assign(np.zeros((2, 2))), True)):
        p = Parameter(np.full((2, 2), 3.0), CPU)
        y = (p * p).sum() + ops.dense(tensor(np.ones((1, 2))), p, None, TANH).sum()
        pack([p])
        change(p)
        if refused:
            with pytest.raises(GraphError, match="changed in place"):
                y.backward()
        else:
            y.backward()
            slope = 1.0 / np.cosh(6.0) ** 2
            np.testing.assert_allclose(p.grad.numpy(), 6.0 + slope, rtol=1e-9)


# ---- recording -------------------------------------------------------------------------------------------------------


def test_no_grad_nests_survives_exceptions_and_decorates() -> None:
    x = leaf([1.0])

    @tape.no_grad()
    def silent() -> Tensor:
        return x * 2.0

    assert tape.is_recording()
    assert not silent().requires_grad
    assert not silent().requires_grad, "a decorated function works more than once"
    with tape.no_grad():
        with tape.no_grad():
            assert not tape.is_recording()
        assert not tape.is_recording()
        with tape.recording(True):
            assert (x * 2.0).requires_grad
        assert not (x * 2.0).requires_grad
    assert tape.is_recording()
    with pytest.raises(ZeroDivisionError), tape.no_grad():
        raise ZeroDivisionError
    assert tape.is_recording()
    y = (x * 2.0).sum()
    with pytest.raises(ShapeError):
        (x * np.ones(2)).backward()
    assert tape.is_recording(), "a walk that fails switches recording on again"
    with tape.no_grad():
        y.backward()
    assert x.grad.item() == 2.0


def test_a_scope_serves_several_blocks() -> None:
    scope = tape.no_grad()
    for _ in range(2):
        with scope:
            with scope:
                assert not tape.is_recording()
            assert not tape.is_recording()
        assert tape.is_recording()


def test_a_scope_is_open_in_one_thread() -> None:
    scope = tape.no_grad()
    raised: list[BaseException] = []

    def enter() -> None:
        try:
            with scope:
                pass
        except ArgumentError as error:
            raised.append(error)

    with scope:
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert "open in another thread" in str(raised[0])
    enter()
    assert len(raised) == 1


def test_what_runs_after_the_call_is_not_decorated() -> None:
    def batches() -> Iterator[bool]:
        yield tape.is_recording()

    async def step() -> bool:
        return tape.is_recording()

    for function in (batches, step, 3):
        with pytest.raises(ArgumentError, match=r"a function whose code runs when it is called.*`with` block"):
            tape.no_grad()(function)  # type: ignore[arg-type]


def test_no_grad_is_a_matter_of_one_thread() -> None:
    seen = []
    with tape.no_grad():
        thread = threading.Thread(target=lambda: seen.append(tape.is_recording()))
        thread.start()
        thread.join()
    assert seen == [True]
