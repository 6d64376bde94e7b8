"""Weight gradients that only the optimizer reads: joined with its update, with the bits of the eager step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

import fcdense as fc
from fcdense import emit
from fcdense.backends.fusion import join_passes
from fcdense.backends.native import NativeBackend
from fcdense.backends.replay import Call
from fcdense.program import trace
from fcdense.tensor import Tensor

JOINED = "Numba: weight gradient and update in one pass"
SIZES = (5, 33, 70, 3)


@pytest.fixture(autouse=True)
def native() -> Iterator[None]:
    cpu = fc.device("cpu")
    before = cpu.backend
    cpu.put(NativeBackend())
    yield
    cpu.put(before)


def network() -> fc.nn.Sequential:
    fc.manual_seed(3)
    layers = [fc.nn.Dense(o, activation="tanh", in_features=i) for i, o in pairwise(SIZES)]
    return fc.nn.Sequential(*layers)


def trained(
    make_optimizer: Callable[[Any], Any],
    captured: bool,
    change: Callable[[Any, Tensor], Tensor] | None = None,
    rows: int = 9,
) -> tuple[list[Any], Any]:
    """The parameters after 6 steps, and the step."""
    model = network()
    optimizer = make_optimizer(model.parameters())
    rng = np.random.default_rng(4)

    def step(x: Tensor, y: Tensor) -> Any:
        optimizer.zero_grad()
        loss = fc.losses.cross_entropy(model(x), y)
        if change is not None:
            loss = change(model, loss)
        loss.backward()
        optimizer.step()
        return loss

    run = fc.capture(step) if captured else step
    for _ in range(6):
        run(fc.tensor(rng.standard_normal((rows, SIZES[0])).astype(np.float32)), fc.tensor(rng.integers(0, 3, rows)))
    return [p.numpy() for p in model.parameters()], run


class Eased(fc.optim.Optimizer):
    """Slow until its fourth step."""

    slots = ("velocity",)

    def rule(self, w: Any, g: Any, slots: Any, s: Any) -> tuple[Any, ...]:
        v = 0.9 * slots[0] + g
        return np.where(s.step > 3.0, w - s.learning_rate * v, w - s.learning_rate * s.learning_rate * v), v


class Constant(fc.optim.Optimizer):
    """A rule of arrays alone."""

    slots = ()

    def rule(self, w: Any, g: Any, slots: Any, s: Any) -> tuple[Any, ...]:
        return (w - 0.01 * g,)


OPTIMIZERS = {
    "sgd": lambda p: fc.optim.SGD(p, learning_rate=0.1),
    "momentum": lambda p: fc.optim.SGD(p, learning_rate=0.1, momentum=0.9),
    "adam": lambda p: fc.optim.Adam(p, learning_rate=0.01),
    "adamw": lambda p: fc.optim.AdamW(p, learning_rate=0.01, weight_decay=0.1),
    "condition": lambda p: Eased(p, learning_rate=0.1),
    "constant": lambda p: Constant(p, learning_rate=0.1),
    "schedule": lambda p: fc.optim.Adam(p, learning_rate=lambda step: 0.1 / (step + 1)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_joined_steps_give_the_bits_of_eager_ones(name: str) -> None:
    eager, _ = trained(OPTIMIZERS[name], captured=False)
    replayed, step = trained(OPTIMIZERS[name], captured=True)
    for before, after in zip(eager, replayed, strict=True):
        np.testing.assert_array_equal(before, after)
    served = [(call.primitive, how) for call, how in step.calls()]
    assert served.count(("dense_grad_weight", JOINED)) == 3


def test_a_gradient_of_one_row_is_multiplied_where_it_is_used() -> None:
    program = trace(lambda g, w, m, rate: (w - rate * (m + g), m + g), 3, 1, name="update")
    product = program.of_product(0)
    assert product.n_inputs == 4
    rng = np.random.default_rng(0)
    x, w, m, dz = (rng.standard_normal((5, 7)).astype(np.float32) for _ in range(4))
    ours, theirs = ([np.empty((5, 7), np.float32) for _ in range(2)] for _ in range(2))
    emit.run(product, [x, w, m, dz], (0.1,), ours)
    emit.run(program, [x * dz, w, m], (0.1,), theirs)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_with_few_rows_the_update_is_joined_to_the_input_gradient(name: str, rows: int) -> None:
    eager, _ = trained(OPTIMIZERS[name], captured=False, rows=rows)
    replayed, step = trained(OPTIMIZERS[name], captured=True, rows=rows)
    for before, after in zip(eager, replayed, strict=True):
        np.testing.assert_array_equal(before, after)
    served = [how for call, how in step.calls() if call.primitive == "dense_grad_input"]
    assert served == ["Numba: input gradient and update in one pass"] * 2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("units", [17, 24, 31, 33, 40, 48, 57, 72, 136, 200])
def test_kernels_of_any_height_are_updated_after_they_are_read(units: int, rows: int, dtype: str) -> None:
    def run(captured: bool) -> list[Any]:
        fc.manual_seed(3)
        layers = [fc.nn.Dense(o, "tanh", in_features=i, dtype=dtype) for i, o in pairwise((5, units, 70, 3))]
        model = fc.nn.Sequential(*layers)
        optimizer = fc.optim.SGD(model.parameters(), learning_rate=0.5)

        def step(x: Tensor, y: Tensor) -> None:
            optimizer.zero_grad()
            fc.losses.mse(model(x), y).backward()
            optimizer.step()

        function = fc.capture(step) if captured else step
        rng = np.random.default_rng(0)
        for _ in range(4):
            function(*(fc.tensor(rng.standard_normal((rows, n)).astype(dtype)) for n in (5, 3)))
        return [p.numpy() for p in model.parameters()]

    for eager, replayed in zip(run(False), run(True), strict=True):
        np.testing.assert_array_equal(eager, replayed)


OPERANDS = {
    "gradient of one number": ((8, 4), lambda model, x: model(x).sum()),
    "of a column": ((8, 1), lambda model, x: model(x).sum()),
    "every other feature": ((32, 8), lambda model, x: (model(x[:, ::2]) ** 2).sum()),
    "one slice": ((6, 4, 3), lambda model, x: (model(x[:, :, 1]) ** 2).mean()),
    "no rows": ((0, 4), lambda model, x: model(x).sum()),
}


@pytest.mark.parametrize("kind", OPERANDS)
def test_gradients_of_operands_that_the_kernels_do_not_read_stay_matrices(kind: str) -> None:
    shape, loss_of = OPERANDS[kind]
    features = 4 if len(shape) == 3 or kind.startswith("every") else shape[1]

    def run(captured: bool) -> Any:
        fc.manual_seed(1)
        model = fc.nn.Sequential(fc.nn.Dense(3, use_bias=False, in_features=features))
        optimizer = fc.optim.SGD(model.parameters(), learning_rate=0.1)

        def step(x: Tensor) -> None:
            optimizer.zero_grad()
            loss_of(model, x).backward()
            optimizer.step()

        function = fc.capture(step) if captured else step
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        for _ in range(3):
            function(fc.tensor(x))
        return next(iter(model.parameters())).numpy()

    np.testing.assert_array_equal(run(False), run(True))


def test_an_update_is_not_joined_to_an_input_gradient_that_somebody_stands_between() -> None:
    w, slot, dz, x, dx = (np.zeros(shape) for shape in ((4, 4), (4, 4), (1, 4), (1, 4), (1, 4)))
    back = Call("dense_grad_input", {"w_io": w}, (dz, w), (dx,))
    update = Call("updated_weight", {}, (x, dz, w, slot), (w, slot))
    readers = [Call("copy", {}, (w,), (x,)), Call("copy", {}, (slot,), (w,)), Call("copy", {}, (x,), (dz,))]
    for between in readers:
        assert join_passes([back, between, update], lambda call: True) == [back, between, update]
    beside = Call("copy", {}, (dx,), (np.zeros((1, 4)),))
    joined = join_passes([back, beside, update], lambda call: True)
    assert [call.primitive for call in joined] == ["passed_weight", "copy"]
    assert join_passes([back, beside, update], lambda call: False) == [back, beside, update]


def test_a_gradient_that_was_consumed_is_gone() -> None:
    model = network()
    optimizer = fc.optim.SGD(model.parameters(), learning_rate=0.1)

    @fc.capture
    def step(x: Tensor, y: Tensor) -> Any:
        optimizer.zero_grad()
        fc.losses.cross_entropy(model(x), y).backward()
        optimizer.step()

    x, y = fc.tensor(np.ones((4, 5), np.float32)), fc.tensor(np.zeros(4, np.int64))
    step(x, y)
    assert all(p.grad is not None for p in model.parameters())
    step(x, y)
    kernels = [p for p in model.parameters() if p.ndim == 2]
    assert all(p.grad is None for p in kernels)


SEPARATE = {
    "clipped": (lambda p: fc.optim.SGD(p, learning_rate=0.1, clip_norm=0.5), None),
    "regularized": (
        OPTIMIZERS["sgd"],
        lambda model, loss: loss + 0.01 * sum((p * p).sum() for p in model.parameters()),
    ),
}


@pytest.mark.parametrize("name", ["clipped", "regularized"])
def test_gradients_with_other_readers_are_written(name: str) -> None:
    make, change = SEPARATE[name]
    eager, _ = trained(make, captured=False, change=change)
    replayed, step = trained(make, captured=True, change=change)
    for before, after in zip(eager, replayed, strict=True):
        np.testing.assert_array_equal(before, after)
    assert not any(how == JOINED for _, how in step.calls())
