"""What graphs keep alive and give back: reference counts alone free them, at any depth, and threads share nothing."""

from __future__ import annotations

import gc
import threading
import tracemalloc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from fcdense import activations, ops, tape
from fcdense.backends import device
from fcdense.gradients import grad
from fcdense.parameter import Parameter, pack
from fcdense.tensor import Tensor, tensor

CPU = device("cpu")


def leaf(values: Any, dtype: Any = None) -> Tensor:
    return tensor(values, dtype=dtype, requires_grad=True)


@contextmanager
def without_collector() -> Iterator[None]:
    """Reference counts alone free what is freed inside; anything left over is a cycle.

    Compiling a kernel leaves cycles as well: what runs inside has to have run before.
    """
    gc.collect()
    gc.disable()
    try:
        yield
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_fifty_thousand_operations() -> None:
    x = leaf(np.ones(3))

    def chain(length: int) -> Tensor:
        y = x
        for k in range(length):
            y = y + x if k % 2 else y * 0.999
        return y

    chain(4).sum().backward()
    x.zero_grad()
    y = chain(50_000)
    with without_collector():
        y.sum().backward()
        assert np.isfinite(x.grad.numpy()).all()
        del y


def test_a_deep_graph_is_dropped_without_recursion() -> None:
    x = leaf(np.ones(1))
    np.tanh(x) * x
    with without_collector():
        y = np.tanh(x)
        first = weakref.ref(y.array)
        for _ in range(50_000):
            y = np.tanh(y) * x
        assert first() is not None
        del y
        assert first() is None


def test_a_node_keeps_only_what_its_gradient_reads() -> None:
    x = leaf(np.ones(8))
    sums, products = x + 1.0, x * x
    refs = [weakref.ref(sums.array), weakref.ref(products.array)]
    out = (sums + products) * 2.0 + np.exp(x)
    del sums, products
    assert [ref() for ref in refs] == [None, None]
    kept = np.exp(x)
    ref = weakref.ref(kept.array)
    out = out + kept * kept
    del kept
    assert ref() is not None
    out.sum().backward()
    assert ref() is None


def test_a_gradient_is_let_go_before_the_next_node_computes_its_own() -> None:
    """So a walk through layers of one width lives in few buffers."""
    gradients: list[Any] = []
    w = leaf(np.ones(4))

    def vjp(dy: Any) -> Any:
        assert sum(ref() is not None for ref in gradients) <= 1, "more than dy itself"
        parts = [np.array(dy.numpy()) for _ in range(2)]
        gradients.extend(map(weakref.ref, parts))
        return tuple(map(dy.derived, parts))

    y = leaf(np.ones(4)) * 1.0
    for _ in range(5):
        y = y.derived(y.array).attach(tape.VjpNode("two", (y, w), vjp))
    y.sum().backward()
    assert len(gradients) == 10
    np.testing.assert_array_equal(w.grad.numpy(), 5.0)


def test_memory_of_a_long_chain_of_sums() -> None:
    x = leaf(np.zeros(40_000))
    y = x + 1.0
    tracemalloc.start()
    try:
        for _ in range(500):
            y = y + 1.0
        assert tracemalloc.get_traced_memory()[1] < 5 * 320_000, "the 500 intermediate arrays are 160 MB"
    finally:
        tracemalloc.stop()
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), 1.0)


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


def step(parameters: list[Parameter], x: Any, labels: Any, rate: float = 0.1, name: str = "relu") -> float:
    for p in parameters:
        p.zero_grad()
    loss = ops.softmax_cross_entropy(forward(parameters, x, name), labels, None, 1.0 / len(labels))
    loss.backward()
    arena = parameters[0].arena
    arena.values -= np.float32(rate) * arena.gradients
    arena.version.bump()
    return loss.item()


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu"])
def test_a_step_leaves_no_cycle_and_no_node(name: str, rng: np.random.Generator) -> None:
    parameters, x, labels = network(rng), rng.normal(size=(128, 96)).astype(np.float32), rng.integers(0, 10, 128)

    def second_order() -> None:
        h = tensor(x, requires_grad=True)
        first = grad(np.tanh(forward(parameters, h, name)).sum(), h, create_graph=True)
        (first * first).sum().backward()

    step(parameters, x, labels, name=name)
    second_order()
    with without_collector():
        loss = ops.softmax_cross_entropy(forward(parameters, x, name), labels, None, 1.0 / 128)
        nodes = [weakref.ref(loss), weakref.ref(loss.array)]
        del loss
        assert [ref() for ref in nodes] == [None, None]
        for _ in range(3):
            step(parameters, x, labels, name=name)
        second_order()


def test_a_steady_step_allocates_no_arrays(rng: np.random.Generator) -> None:
    rows = 1024  # so many that NumPy's own buffers, 32 KiB for each operand that it casts or repeats, do not matter
    parameters, labels = network(rng), rng.integers(0, 10, rows)
    x = tensor(rng.normal(size=(rows, 96)).astype(np.float32))
    for _ in range(5):
        step(parameters, x, labels)
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(5):
            step(parameters, x, labels)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 128 * 1024, f"{peak} bytes: one hidden layer's values alone are 262144"


def test_two_threads_train_as_if_alone(rng: np.random.Generator) -> None:
    data = [(rng.normal(size=(64, 96)).astype(np.float32), rng.integers(0, 10, 64)) for _ in range(2)]
    start = [np.array(p.numpy()) for p in network(rng)]

    def train(k: int, results: dict[int, list[Any]]) -> None:
        parameters = [Parameter(a.copy(), CPU) for a in start]
        pack(parameters)
        losses = [step(parameters, *data[k], name=("tanh", "gelu")[k]) for _ in range(60)]
        results[k] = [losses, *(np.array(p.numpy()) for p in parameters)]

    alone: dict[int, list[Any]] = {}
    together: dict[int, list[Any]] = {}
    for k in range(2):
        train(k, alone)
    threads = [threading.Thread(target=train, args=(k, together)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(2):
        assert alone[k][0][-1] < alone[k][0][0]
        for one, other in zip(alone[k], together[k], strict=True):
            np.testing.assert_array_equal(one, other)
