"""A steady state allocates no array data, on backends whose memory Python can see."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fcdense import activations
from fcdense.arena import Workspace
from fcdense.backends.cpu import CpuBackend
from tests.backends import cases, formulas
from tests.backends.calls import draw
from tests.backends.cases import LARGE, Case

# NumPy's iterator buffers 8192 elements of an operand that it broadcasts, and a few columns are smaller than what the
# workspace keeps. The arrays of these calls have 0.8 MB and more.
LIMIT = 8192 * 4 + 6 * Workspace.smallest

STEADY = (
    *LARGE,
    cases.dense(1000, 2000, 500, activations.relu, bias=False),
    cases.dense_grad_input(1000, 500, 2000, activations.linear),
    cases.dense_grad_input(1000, 500, 2000, activations.silu),
    cases.dense_grad_weight(2000, 1000, 500),
    cases.act_grad(5000, 640, activations.linear),
    cases.act_grad(5000, 640, activations.relu, "accumulate"),
    cases.softmax(1000, 2000, False),
    cases.softmax_xent(2000, 1000, False, weight=False),
    cases.softmax_xent(2000, 1000, True, weight=False),
    cases.softmax_xent(2000, 1000, False, dz=False),
    cases.elementwise_loss((1009, 1013), (1009, 1)),
    cases.elementwise_loss((1009, 1013), dz=False),
    cases.map_(formulas.momentum, *[(1_000_003,)] * 4),
    cases.reduce("max", (1009, 1013), (0, 1)),
    cases.reduce("sum", (1009, 1013), (0, 1)),
    cases.copy((1009, 1013), (1009, 1013), "float64"),
)


class Counting(CpuBackend):
    """Counts the arrays that it is asked for, less those that are too small for the workspace to keep."""

    def __init__(self) -> None:
        super().__init__()
        self.allocated = 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        array = super().empty(shape, dtype)
        self.allocated += array.nbytes >= Workspace.smallest
        return array


def peak_of(call: Callable[[], None]) -> int:
    """Bytes that a call of a steady state has allocated at its highest point."""
    call()
    call()
    tracemalloc.start()
    try:
        call()
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        call()
        call()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("case", [pytest.param(case, id=str(case)) for case in STEADY])
def test_no_array_data_is_allocated(case: Case, rng: np.random.Generator) -> None:
    backend = Counting()
    values = draw(case, "float32", rng)
    primitive = getattr(backend, case.primitive)
    primitive(**values)
    primitive(**values)
    warm = backend.allocated
    assert peak_of(lambda: primitive(**values)) < LIMIT
    assert backend.allocated == warm


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_norm2_of_large_numbers_allocates_no_copy(dtype: str) -> None:
    x, out, backend = np.full(500_000, np.finfo(dtype).max, dtype), np.empty(()), CpuBackend()
    assert peak_of(lambda: backend.norm2(x, out=out)) < LIMIT
    assert np.isfinite(out)


def test_norm2_of_a_transposed_array_allocates_no_copy() -> None:
    x, out, backend = np.ones((500, 1000), np.float32).T, np.empty(()), CpuBackend()
    assert peak_of(lambda: backend.norm2(x, out=out)) < LIMIT
    assert float(out) == 500_000


def test_the_measurement_sees_an_allocation() -> None:
    x, out = np.ones(1_000_000, np.float32), np.empty(())
    assert peak_of(lambda: np.copyto(out, (x + x)[0])) > x.nbytes
