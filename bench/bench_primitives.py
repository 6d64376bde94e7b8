"""The primitives one by one, under pytest-benchmark: `python -m pytest bench --benchmark-only`.

For work on one primitive: `--benchmark-autosave`, then `--benchmark-compare`. Plain test runs do not collect this file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fcdense import activations, backends
from fcdense.activation import Activation
from fcdense.program import trace

from .cases import synchroniser

Timer = Callable[..., None]

SHAPES = ((1, 784, 512), (256, 784, 512))
ADAM = trace(
    lambda w, g, m, v: (
        w - 1e-3 * (0.9 * m + 0.1 * g) / (np.sqrt(0.999 * v + 0.001 * g * g) + 1e-8),
        0.9 * m + 0.1 * g,
        0.999 * v + 0.001 * g * g,
    ),
    4,
    name="adam",
)


@pytest.fixture(params=backends.available_devices())
def device(request: pytest.FixtureRequest) -> backends.Device:
    """Every device that works here."""
    return backends.device(request.param)


@pytest.fixture
def backend(device: backends.Device) -> backends.Backend:
    """The device's primitives."""
    return device.backend


@pytest.fixture
def timed(benchmark: Callable[..., Any], device: backends.Device) -> Timer:
    """Calls a primitive under the benchmark, and waits until the device has finished."""
    wait = synchroniser(device)

    def run(primitive: Callable[..., None], *operands: Any, **options: Any) -> None:
        def call() -> None:
            primitive(*operands, **options)
            wait()

        benchmark(call)

    return run


@pytest.fixture(params=SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def shape(request: pytest.FixtureRequest) -> tuple[int, int, int]:
    """(B, I, O)."""
    sizes: tuple[int, int, int] = request.param
    return sizes


@pytest.fixture(params=["linear", "relu", "gelu"])
def act(request: pytest.FixtureRequest) -> Activation:
    """No work, cheap work, and work that needs f' kept."""
    found: Activation = getattr(activations, request.param)
    return found


def random(backend: backends.Backend, *shape: int) -> Any:
    """Standard normal float32 numbers on the backend's device."""
    return backend.from_host(np.random.default_rng(0).standard_normal(shape).astype(np.float32))


def test_dense(timed: Timer, backend: backends.Backend, shape: tuple[int, int, int], act: Activation) -> None:
    """One layer, as in training: with f' where the gradient needs it."""
    batch, inner, outer = shape
    x, w, b = random(backend, batch, inner), random(backend, inner, outer), random(backend, outer)
    y = random(backend, batch, outer)
    aux = random(backend, batch, outer) if act.aux == "derivative" else None
    timed(backend.dense, x, w, b, act, out=y, aux=aux)


def test_dense_grad_input(
    timed: Timer, backend: backends.Backend, shape: tuple[int, int, int], act: Activation
) -> None:
    """The input gradient times f' of the layer below, and that layer's bias gradient."""
    batch, inner, outer = shape
    dz, w = random(backend, batch, outer), random(backend, inner, outer)
    dx, db = random(backend, batch, inner), random(backend, inner)
    aux = None if act.aux == "none" else random(backend, batch, inner)
    timed(backend.dense_grad_input, dz, w, act, aux, out=dx, db=db)


@pytest.mark.parametrize("mode", ["overwrite", "accumulate"])
def test_dense_grad_weight(timed: Timer, backend: backends.Backend, shape: tuple[int, int, int], mode: str) -> None:
    """x.T @ dz."""
    batch, inner, outer = shape
    x, dz, dw = random(backend, batch, inner), random(backend, batch, outer), random(backend, inner, outer)
    timed(backend.dense_grad_weight, x, dz, out=dw, mode=mode)


@pytest.mark.parametrize("rows", [1, 256])
def test_softmax_xent(timed: Timer, backend: backends.Backend, rows: int) -> None:
    """Loss and gradient for ten classes."""
    z, dz = random(backend, rows, 10), random(backend, rows, 10)
    target = backend.from_host(np.random.default_rng(0).integers(10, size=rows))
    loss = backend.empty((), np.dtype(np.float32))
    timed(backend.softmax_xent, z, target, None, 1.0 / rows, loss=loss, dz=dz)


@pytest.mark.parametrize("size", [4_096, 1_048_576])
def test_map_adam(timed: Timer, backend: backends.Backend, size: int) -> None:
    """An optimizer's pass over flat buffers, in place."""
    w, g, m = (random(backend, size) for _ in range(3))
    v = backend.from_host(np.full(size, 0.5, np.float32))
    timed(backend.map, ADAM, (w, g, m, v), out=(w, m, v))


@pytest.mark.parametrize("size", [4_096, 1_048_576])
def test_norm2(timed: Timer, backend: backends.Backend, size: int) -> None:
    """The norm that clipping asks for."""
    timed(backend.norm2, random(backend, size), out=backend.empty((), np.dtype(np.float64)))
