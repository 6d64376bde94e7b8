"""Programs: tracing, derivatives, and what is saved of them."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fcdense import algebra, emit
from fcdense.errors import ArgumentError, FormatError, TraceError
from fcdense.expression import array_var, const, scalar_var
from fcdense.program import Program, trace


def huber(p: Any, t: Any, delta: Any) -> Any:
    e = abs(p - t)
    return np.where(e > delta, delta * (e - 0.5 * delta), 0.5 * e * e)


HUBER = trace(huber, 2, 1)


def test_trace() -> None:
    assert (HUBER.name, HUBER.n_inputs, HUBER.n_scalars, len(HUBER.outputs)) == ("huber", 2, 1, 1)
    assert trace(lambda x: (x, 2), 1).outputs == (array_var(0), const(2.0))
    assert trace(lambda x: x, 1).name == "function"
    assert trace(lambda x: x, 1, name="identity").name == "identity"
    p, t = np.array([0.0, 3.0]), np.array([0.5, 0.0])
    np.testing.assert_allclose(emit.apply(HUBER, p, t, scalars=(1.0,)), huber(p, t, 1.0))


def test_equal_content_is_one_object() -> None:
    assert trace(huber, 2, 1) is HUBER
    assert trace(huber, 2, 1, name="other") is not HUBER
    assert pickle.loads(pickle.dumps(HUBER)) is copy.copy(HUBER) is copy.deepcopy(HUBER) is HUBER
    assert Program.from_data(json.loads(json.dumps(HUBER.to_data(), allow_nan=False))) is HUBER


def test_immutable() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        HUBER.name = "other"


def test_arguments_are_checked() -> None:
    with pytest.raises(ArgumentError, match="uses x1, but takes 1 arrays"):
        Program("p", 1, 0, [array_var(1)])
    with pytest.raises(ArgumentError, match="uses s0"):
        Program("p", 1, 0, [scalar_var(0)])
    with pytest.raises(ArgumentError, match="computes nothing"):
        trace(lambda x: (), 1)
    with pytest.raises(ArgumentError, match="takes 3 arguments, given 2"):
        HUBER(array_var(0), array_var(1))


def test_call_with_symbols() -> None:
    x, y = array_var(0), array_var(1)
    (e,) = HUBER(x + y, 0.0, 2.0)
    assert e is huber(x + y, const(0.0), const(2.0))


def test_depends_on() -> None:
    program = trace(lambda x, y: x * 2, 2)
    assert program.depends_on(0)
    assert not program.depends_on(1)
    assert [program.vjp(0).depends_on(i) for i in range(3)] == [False, False, True]


def test_derivative_keeps_the_arguments() -> None:
    slope = HUBER.derivative(1)
    assert (slope.n_inputs, slope.n_scalars) == (2, 1)
    np.testing.assert_allclose(emit.apply(slope, [0.0, 3.0], [0.5, 0.0], scalars=(1.0,)), [0.5, -1.0])
    assert trace(lambda x: (x, x * x), 1).derivative().outputs == (const(1.0), 2 * array_var(0))


FUNCTIONS: list[tuple[Callable[..., Any], int]] = [
    (lambda x: np.tanh(x) * x, 1),
    (lambda x, y: x / (1 + np.exp(-y)), 2),
    (lambda x, y: np.where(x > y, x * y, y - x), 2),
    (lambda x, y, z: np.maximum(x, y) * z + np.sqrt(x * x + 1), 3),
    (lambda x, y: x - np.log1p(np.exp(x)) * y, 2),
]


@pytest.mark.parametrize("number", range(len(FUNCTIONS)))
def test_vjp_against_central_differences(rng: np.random.Generator, number: int) -> None:
    fn, n = FUNCTIONS[number]
    program = trace(fn, n)
    *arrays, dy = rng.normal(size=(n + 1, 300))
    for i in range(n):
        shifted = [[a + h * (j == i) for j, a in enumerate(arrays)] for h in (1e-6, -1e-6)]
        numeric = dy * (fn(*shifted[0]) - fn(*shifted[1])) / 2e-6
        np.testing.assert_allclose(emit.apply(program.vjp(i), *arrays, dy), numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("number", range(len(FUNCTIONS)))
def test_vjp_against_torch(rng: np.random.Generator, number: int) -> None:
    torch = pytest.importorskip("torch")
    theirs = [
        lambda x: torch.tanh(x) * x,
        lambda x, y: x * torch.sigmoid(y),
        lambda x, y: torch.where(x > y, x * y, y - x),
        lambda x, y, z: torch.maximum(x, y) * z + torch.sqrt(x * x + 1),
        lambda x, y: x - torch.nn.functional.softplus(x) * y,
    ][number]
    fn, n = FUNCTIONS[number]
    *arrays, dy = rng.normal(size=(n + 1, 300))
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    theirs(*tensors).backward(torch.tensor(dy))
    for i, t in enumerate(tensors):
        given = emit.apply(trace(fn, n).vjp(i), *arrays, dy)
        np.testing.assert_allclose(given, t.grad.numpy(), rtol=1e-9, atol=1e-12)


def test_vjp_of_a_vjp() -> None:
    """Second derivatives: d/dx (dy tanh'(x)) = -2 dy tanh(x) tanh'(x)."""
    second = trace(np.tanh, 1, name="tanh").vjp(0).vjp(0)
    x, dy, ddy = 0.7, 3.0, 2.0
    t = math.tanh(x)
    assert emit.apply(second, x, dy, ddy) == pytest.approx(-2 * t * (1 - t * t) * dy * ddy)


def test_vjp_of_several_outputs_is_refused() -> None:
    with pytest.raises(ArgumentError, match="has 2 outputs"):
        trace(lambda x: (x, x), 1).vjp(0)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x: None, "returns None"),
        (lambda x: np.ones(2), r"array of shape \(2,\)"),
        (lambda x: [x], "real numbers"),
        (lambda x: x.sum(), r"no method \.sum.*np\.sum"),
        (lambda x: x % 2, "unsupported operand"),
        (lambda x, y: x, "missing 1 required positional argument"),
        (lambda x: math.tanh(x), r"np\.exp etc\. or fc\.math"),
        (lambda x: x if x > 0 else 0, r"np\.where"),
    ],
)
def test_what_cannot_be_traced(fn: Callable[..., Any], message: str) -> None:
    with pytest.raises(TraceError, match=f"^mine.*{message}"):
        trace(fn, 1, name="mine")


def test_errors_of_the_function_itself_pass() -> None:
    with pytest.raises(ZeroDivisionError):
        trace(lambda x: x / (1 // 0), 1)
    with pytest.raises(AttributeError, match="nothing"):
        trace(lambda x: np.nothing(x), 1)


@pytest.mark.parametrize(
    "change",
    [
        {"name": 5},
        {"inputs": -1},
        {"inputs": True},
        {"scalars": "1"},
        {"inputs": 1},
        {"scalars": 0},
        {"nodes": None},
        {"outputs": [999]},
        {"outputs": []},
    ],
)
def test_data_of_another_kind_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        Program.from_data(HUBER.to_data() | change)
    for key in change:
        data = HUBER.to_data()
        del data[key]
        with pytest.raises(FormatError):
            Program.from_data(data)


CONDITIONS = {
    "on a scalar that is used again": lambda x, s, t: np.where(s > 0.5, x * t, -x * s),
    "on a scalar that nothing else uses": lambda x, s, t: np.where(s > 0.5, x * t, -x),
    "on what is computed of scalars": lambda x, s, t: np.where((s * t > 1.0) & (t < 9.0), x + s * t, x / (1.0 - t**s)),
    "as a number": lambda x, s, t: x * (s > 0.5) + (t > 2.0) * t,
    "error functions of scalars": lambda x, s, t: x * algebra.erf(s) + algebra.ndtr(t * 0.1),
    "none": lambda x, s, t: x * (s * t) + np.sqrt(t),
    "no array": lambda x, s, t: np.where(s > t, s, t * 2.0),
    "no scalar": lambda x, s, t: x * 2.0,
}


@pytest.mark.parametrize("function", CONDITIONS.values(), ids=CONDITIONS)
@pytest.mark.parametrize("scalars", [(0.25, 3.0), (1.0, 1.5), (4.0, 0.5)])
def test_scalar_work_apart_gives_the_bits_of_the_program(function: Any, scalars: tuple[float, float]) -> None:
    program = trace(function, 1, 2)
    first, body = program.without_scalar_work()
    values = [np.empty(()) for _ in range(body.n_scalars)]
    if first is not None:
        emit.run(first, (), scalars, values)
    x = np.linspace(-2, 2, 9, dtype=np.float32)
    ours, theirs = np.empty_like(x), np.empty_like(x)
    emit.run(body, [x], [value.item() for value in values], [ours])
    emit.run(program, [x], scalars, [theirs])
    np.testing.assert_array_equal(ours, theirs)
