"""Which batches rounds convert as they take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ml_dtypes import bfloat16

from fcdense.backends.cuda import CudaBackend
from fcdense.backends.replay import Call, Feed, Keep
from fcdense.cuda.feeds import converted
from fcdense.cuda.graph import GraphReplay
from tests import emulation
from tests.backends.calls import contiguous, shifted
from tests.cuda.sums import DATA, F64, FINITE
from tests.emulation import EmulatedDriver

pytestmark = pytest.mark.skipif(not emulation.is_available(), reason="no g++ here")

F32, BATCH = np.dtype(np.float32), (2, 3)


def copy(x: Any, out: Any) -> Call:
    return Call("copy", {"x": x, "out": out}, (x,), (out,))


def total(x: Any, out: Any) -> Call:
    return Call("reduce", {"operation": "sum", "x": x, "axes": (0, 1), "out": out}, (x,), (out,))


@pytest.fixture
def backend() -> CudaBackend:
    return CudaBackend(EmulatedDriver())


@pytest.mark.parametrize("lay", [contiguous, shifted])
@pytest.mark.parametrize("row", [(), (3,), (4, 3), (300,)])
@pytest.mark.parametrize(
    ("stored", "read"),
    [(np.float32, bfloat16), (np.float32, np.float16), (np.float64, np.float32), (np.uint8, np.float32)],
)
def test_rows_are_converted_as_they_are_taken(
    stored: Any,
    read: Any,
    row: tuple[int, ...],
    lay: Callable[..., Any],
    backend: CudaBackend,
    rng: np.random.Generator,
) -> None:
    """As NumPy converts them, and by no launch of their own."""
    source, order = (rng.normal(size=(5, *row)) * 100 % 256).astype(stored), np.array([3, 0, 4, 4, 1, 2])
    batch, narrow = (lay(np.zeros((2, *row), dtype), backend) for dtype in (stored, read))
    kept = np.zeros((3, 2, *row), read)
    replay = GraphReplay(backend, [copy(batch, narrow)])
    driver: Any = backend.driver
    driver.launches.clear()
    run = replay.rounds([Feed(lay(source, backend), order, batch)], [Keep(narrow, kept)])
    assert run is not None
    assert run(3) == 3
    assert set(driver.launches) == {"convert_rows", "leave_results"}
    np.testing.assert_array_equal(kept, source[order].reshape(kept.shape).astype(read))
    assert driver.damaged_guards() == 0


def test_rows_of_the_last_round_stay(backend: CudaBackend) -> None:
    batch, narrow = backend.zeros(BATCH, F64), backend.zeros(BATCH, F32)
    sums, go_on = backend.zeros((), F32), backend.zeros((), F64)
    finite = {"program": FINITE, "inputs": (sums,), "scalars": (), "out": (go_on,), "when": None}
    calls = [copy(batch, narrow), total(narrow, sums), Call("map", finite, (sums,), (go_on,))]
    data = DATA.copy()
    data[4, 1] = np.inf
    run = GraphReplay(backend, calls).rounds([Feed(data, np.arange(10), batch)], [], go_on)
    assert run is not None
    assert run(5) == 3
    np.testing.assert_array_equal(backend.to_host(narrow), data[4:6])


def test_each_batch_for_itself(backend: CudaBackend) -> None:
    """One that is converted, one that is not."""
    x, y = (backend.zeros(BATCH, F64) for _ in range(2))
    narrow, sums, order = backend.zeros(BATCH, F32), backend.zeros((), F64), np.arange(10)
    feeds, calls = [Feed(DATA, order, x), Feed(DATA, order, y)], [copy(x, narrow), total(y, sums)]
    changed, left = converted(feeds, calls, [])
    assert [feed.target is array for feed, array in zip(changed, (narrow, y), strict=True)] == [True, True]
    assert left == calls[1:]


NOT_ALONE: dict[str, Callable[..., tuple[list[Call], list[Any]]]] = {
    "another reader": lambda x, out, other: ([copy(x, out), total(x, other)], []),
    "a second copy": lambda x, out, other: ([copy(x, out), copy(x, other)], []),
    "a reader of a part": lambda x, out, other: ([copy(x, out), total(x[:1], other)], []),
    "another writer": lambda x, out, other: ([copy(other, x), copy(x, out)], []),
    "who keeps it": lambda x, out, other: ([copy(x, out)], [x]),
    "no copy": lambda x, out, other: ([replace(copy(x, out), primitive="dropout")], []),
    "no reader": lambda x, out, other: ([copy(other, out)], []),
    "a copy of a part": lambda x, out, other: ([copy(x[:1], out[:1])], []),
    "a transposed copy": lambda x, out, other: ([copy(x.T, out.reshape(3, 2))], []),
    "a repeated copy": lambda x, out, other: ([copy(x, other.reshape(-1)[:12].reshape(2, *BATCH))], []),
    "columns of an array": lambda x, out, other: ([copy(x, other[0, :, :3])], []),
    "what is read before": lambda x, out, other: ([total(out, other), copy(x, out)], []),
    "what is written before": lambda x, out, other: ([copy(other[0, :, :3], out), copy(x, out)], []),
}


@pytest.mark.parametrize("name", NOT_ALONE)
def test_batches_that_stay_as_they_are(name: str, backend: CudaBackend) -> None:
    x, out, other = backend.zeros(BATCH, F64), backend.zeros(BATCH, F32), backend.zeros((2, 2, 5), F32)
    feeds = [Feed(DATA, np.arange(10), x)]
    calls, kept = NOT_ALONE[name](x, out, other)
    assert converted(feeds, calls, kept) == (feeds, calls)
