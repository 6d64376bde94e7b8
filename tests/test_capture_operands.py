"""Replays against eager steps where operands are views, parts of each other, bare parameters or used twice."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fcdense as fc
from fcdense import ops
from fcdense.backends import recording
from fcdense.errors import CaptureError

RNG = np.random.default_rng(0)
KERNEL = (RNG.normal(size=(64, 64)) / 8).astype(np.float32)
W1, W2 = fc.tensor(KERNEL), fc.tensor(KERNEL.T.copy())

FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "rows and those after them": (lambda x: x[1:] - x[:-1], (5, 3)),
    "columns of one row": (lambda x: x[:, :3] * x[:, 3:], (1, 6)),
    "a part and the whole": (lambda x: x * x[:1], (4, 8)),
    "reversed rows": (lambda x: ops.dense(fc.concatenate([ops.dense(x, W1), x])[::-1], W2), (8, 64)),
    "reversed features": (lambda x: ops.dense(x[:, ::-1], W1), (8, 64)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_views(name: str) -> None:
    function, shape = FUNCTIONS[name]
    captured = fc.capture(function)
    for _ in range(4):
        x = RNG.normal(size=shape).astype(np.float32)
        eager = function(fc.tensor(x)).numpy().copy()
        np.testing.assert_array_equal(captured(x).numpy(), eager)


def test_parts_of_a_buffer_that_is_written_are_read_afterwards() -> None:
    w, buffer = fc.tensor(np.ones((128, 128), np.float32)), fc.tensor(np.zeros((4, 128), np.float32))

    @fc.capture
    def step(x: Any) -> Any:
        buffer[:2] = x * 2.0
        return ops.dense(buffer[::-1], w)

    for number in range(1, 5):
        result = step(np.full((2, 128), number, np.float32)).numpy()
        assert result[3, 0] == 256 * number


def both(step_of: Callable[[Any], Callable[..., Any]], *shapes: tuple[int, ...], start: Any) -> tuple[Any, Any]:
    """A parameter after eager steps and after captured ones."""
    found = []
    for captured in (False, True):
        w = fc.nn.parameter(start)
        step = step_of(w)
        run = fc.capture(step) if captured else step
        rng = np.random.default_rng(1)
        for _ in range(4):
            run(*(fc.tensor(rng.normal(size=shape).astype(np.float32)) for shape in shapes))
        found.append(w.numpy())
    return found[0], found[1]


def test_a_gradient_that_the_step_measures() -> None:
    def step_of(w: Any) -> Callable[..., Any]:
        optimizer = fc.optim.SGD([w], 0.01)

        def step(x: Any) -> Any:
            gradient = fc.grad((ops.dense(x, w) ** 2).sum(), w)
            optimizer.zero_grad()
            loss = (ops.dense(x, w) ** 2).mean() + (gradient.detach().reshape(-1) ** 2).sum() * 0.0
            loss.backward()
            optimizer.step()

        return step

    np.testing.assert_array_equal(*both(step_of, (4, 5), start=np.ones((5, 3), np.float32)))


def test_a_kernel_that_is_part_of_a_scaled_vector() -> None:
    def step_of(theta: Any) -> Callable[..., Any]:
        optimizer = fc.optim.SGD([theta], 0.01)

        def step(x: Any) -> Any:
            optimizer.zero_grad()
            (ops.dense(x, (theta * 2.0).reshape(5, 3)) ** 2).mean().backward()
            optimizer.step()

        return step

    np.testing.assert_array_equal(*both(step_of, (4, 5), start=np.ones(15, np.float32)))


@pytest.mark.parametrize("rows", [1, 2, 4, 9])
def test_a_kernel_that_is_used_twice(rows: int) -> None:
    """The update needs the whole input gradient of the same kernel."""

    def step_of(w: Any) -> Callable[..., Any]:
        optimizer = fc.optim.SGD([w], 0.5)

        def step(x: Any, t: Any) -> Any:
            optimizer.zero_grad()
            fc.losses.mse(ops.dense(ops.dense(x, w), w.detach()), t).backward()
            optimizer.step()

        return step

    np.testing.assert_array_equal(*both(step_of, (rows, 64), (rows, 64), start=KERNEL))


def constrained() -> tuple[Any, Any]:
    fc.manual_seed(0)
    model = fc.nn.Sequential(fc.nn.Dense(1, in_features=2, kernel_constraint=fc.constraints.max_norm(0.1)))
    return model, fc.optim.SGD(model.parameters(), 0.5)


def test_constraints_in_the_middle_of_a_step_are_refused() -> None:
    model, optimizer = constrained()

    @fc.capture
    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        fc.losses.mse(model(x), y).backward()
        optimizer.step()
        with fc.no_grad():
            return model(x)

    x, y = np.ones((4, 2), np.float32), np.full((4, 1), 5, np.float32)
    step(x, y)
    before = model.state_dict()
    with pytest.raises(CaptureError, match=r"a parameter with a constraint after SGD\.step"):
        step(x, y)
    for name, values in model.state_dict().items():
        np.testing.assert_array_equal(values, before[name])


def test_constraints_at_the_end_of_a_step() -> None:
    results = []
    for captured in (False, True):
        model, optimizer = constrained()

        def step(x: Any, y: Any, model: Any = model, optimizer: Any = optimizer) -> Any:
            optimizer.zero_grad()
            loss = fc.losses.mse(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        run: Any = fc.capture(lambda x, y, step=step: step(x, y)) if captured else step
        for _ in range(4):
            run(fc.tensor(np.ones((4, 2), np.float32)), fc.tensor(np.full((4, 1), 5, np.float32)))
        results.append(model[0].kernel.numpy())
    np.testing.assert_array_equal(*results)


def test_other_threads_train_while_one_records() -> None:
    model = fc.nn.Sequential(fc.nn.Dense(1, in_features=2))
    optimizer = fc.optim.SGD(model.parameters(), 0.1)
    x, y = fc.tensor(np.ones((4, 2), np.float32)), fc.tensor(np.zeros((4, 1), np.float32))
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(3):
                optimizer.zero_grad()
                fc.losses.mse(model(x), y).backward()
                optimizer.step()
        except BaseException as error:
            errors.append(error)

    def step(z: Any) -> Any:
        if recording.is_recording():
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        return z + 1.0

    captured = fc.capture(step)
    captured(np.zeros(3, np.float32))
    captured(np.zeros(3, np.float32))
    assert not errors
    assert optimizer.steps == 6


def test_a_parameter_that_moves_is_missed() -> None:
    x = np.ones((1, 2), np.float32)
    w = fc.nn.parameter(np.ones((2, 1), np.float32))
    product = fc.capture(lambda x: x @ w)
    product(x)
    product(x)
    optimizer = fc.optim.SGD([w], 0.5)
    (fc.tensor(x) @ w).sum().backward()
    optimizer.step()
    with pytest.raises(CaptureError, match="moved"):
        product(x)


def test_a_bare_parameter_that_is_thawed_is_trained() -> None:
    u, v = (fc.nn.parameter(np.ones(shape, np.float32)) for shape in ((2, 1), (1,)))
    u.requires_grad = False
    optimizer = fc.optim.SGD([u, v], 0.1)

    @fc.capture
    def step(x: Any) -> None:
        optimizer.zero_grad()
        ((x @ u + v) ** 2).mean().backward()
        optimizer.step()

    x = np.ones((1, 2), np.float32)
    for _ in range(3):
        step(x)
    np.testing.assert_array_equal(u.numpy(), 1.0)
    u.requires_grad = True
    step(x)
    assert not np.array_equal(u.numpy(), np.ones((2, 1)))


def test_freezing_inside_of_the_step_records_once() -> None:
    u, v = (fc.nn.parameter(np.ones(shape, np.float32)) for shape in ((2, 1), (1,)))
    optimizer = fc.optim.SGD([v], 0.1)
    made = []

    @fc.capture
    def step(x: Any) -> None:
        made.append(1)
        u.requires_grad = False
        optimizer.zero_grad()
        ((x @ u + v) ** 2).mean().backward()
        optimizer.step()
        u.requires_grad = True

    for _ in range(6):
        step(np.ones((1, 2), np.float32))
    assert len(made) == 3  # eagerly, and two recordings
