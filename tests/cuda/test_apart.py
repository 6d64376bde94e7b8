"""Recorded calls in two: the same numbers, and less that has to be waited for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fcdense import activations
from fcdense.activation import Activation
from fcdense.backends.cuda import CudaBackend
from fcdense.backends.replay import Call
from fcdense.cuda.apart import apart
from fcdense.program import trace
from tests import emulation
from tests.emulation import EmulatedDriver

pytestmark = pytest.mark.skipif(not emulation.is_available(), reason="no g++ here")
F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
SCALED = trace(lambda x, rate, step: x - rate / np.sqrt(step) * x, 1, 2, name="scaled")
PLAIN = trace(lambda x, rate: x - rate * x, 1, 1, name="plain")


@pytest.fixture
def backend() -> CudaBackend:
    return CudaBackend(EmulatedDriver())


def results(backend: CudaBackend, calls: list[Call]) -> list[bytes]:
    for call in calls:
        getattr(backend, call.primitive)(**call.arguments)
    return [backend.to_host(array).tobytes() for call in calls for array in call.writes]


@pytest.mark.parametrize("act", [activations.linear, activations.get("tanh")])
def test_column_sums(act: Activation, backend: CudaBackend, rng: np.random.Generator) -> None:
    dy, y = (backend.from_host(rng.normal(size=(40, 5)).astype(np.float32)) for _ in range(2))
    out, db = backend.empty((40, 5), F32), backend.empty((5,), F32)
    aux = None if act.is_linear else y
    given: dict[str, Any] = {"dy_bo": dy, "aux_bo": aux, "act": act, "out": out, "db": db, "mode": "overwrite"}
    call = Call("act_grad", given, (dy, y), (out, db))
    whole = results(backend, [call])
    (_, gradient), (_, sums) = apart([call], backend.empty)
    assert results(backend, [gradient, sums]) == whole
    assert gradient.writes == (out,)
    assert sums.reads == (out,)


@pytest.mark.parametrize("form", ["transposed", "broadcast"])
def test_column_sums_of_what_does_not_lie_in_rows(form: str, backend: CudaBackend, rng: np.random.Generator) -> None:
    """Their order is that of the eager call, which adds up a copy."""
    shape = (40, 300) if form == "transposed" else (1, 40)
    lies = backend.from_host(rng.normal(size=shape).astype(np.float32))
    dy = lies.T if form == "transposed" else backend.broadcast_to(lies, (300, 40))
    out, db = backend.empty((300, 40), F32), backend.empty((40,), F32)
    given = {"dy_bo": dy, "aux_bo": None, "act": activations.linear, "out": out, "db": db, "mode": "overwrite"}
    call = Call("act_grad", given, (dy,), (out, db))
    whole = results(backend, [call])
    assert results(backend, [part.call for part in apart([call], backend.empty)]) == whole


@pytest.mark.parametrize("changes", [{"mode": "accumulate"}, {"db": None}, {"out": None}])
def test_what_stays_whole(changes: dict[str, Any], backend: CudaBackend) -> None:
    dy, db = backend.zeros((4, 5), F32), backend.zeros((5,), F32)
    given = {"dy_bo": dy, "aux_bo": None, "act": activations.linear, "out": dy, "db": db, "mode": "overwrite"}
    call = Call("act_grad", given | changes, (dy,), (dy,))
    assert apart([call], backend.empty) == [(0, call)]


def test_scalars_of_an_update(backend: CudaBackend, rng: np.random.Generator) -> None:
    numbers = rng.normal(size=70).astype(np.float32)
    x, scalars, flag = backend.from_host(numbers), backend.from_host(np.array([0.25, 7.0])), backend.zeros((), F64)
    given = {"program": SCALED, "inputs": (x,), "scalars": scalars, "out": (x,), "when": flag}
    call = Call("map", given, (x, scalars, flag, x), (x,))
    before, after = (Call("fill", {"value": 1.0, "out": array}, (), (array,)) for array in (flag, scalars))
    (number, alone), (_, first), (_, rest) = apart([before, call], backend.empty)
    assert (number, first) == (1, before), "it is computed as soon as its numbers are there"
    assert [part.call for part in apart([before, after, call], backend.empty)][:2] == [before, after]
    assert alone.reads == (scalars,)
    assert not any(array is scalars for array in rest.reads)
    assert any(array is flag for array in rest.reads)
    results(backend, [alone, rest])
    np.testing.assert_array_equal(backend.to_host(x), numbers, err_msg="`when` holds 0")
    flag[...] = 1.0
    results(backend, [alone, rest])
    expected = CudaBackend(EmulatedDriver())
    whole = expected.from_host(numbers)
    expected.map(SCALED, (whole,), expected.from_host(np.array([0.25, 7.0])), out=(whole,))
    np.testing.assert_array_equal(backend.to_host(x), expected.to_host(whole))
    np.testing.assert_allclose(backend.to_host(x), numbers * (1 - 0.25 / np.sqrt(7.0)), rtol=1e-6)


def test_an_input_that_is_the_scalars_as_well_is_still_read(backend: CudaBackend) -> None:
    numbers = backend.from_host(np.array([0.5, 4.0]))
    given = {"program": SCALED, "inputs": (numbers,), "scalars": numbers, "out": (numbers,), "when": None}
    *_, (_, rest) = apart([Call("map", given, (numbers, numbers), (numbers,))], backend.empty)
    assert any(array is numbers for array in rest.reads)


def test_an_update_that_takes_its_numbers_as_they_are_stays_whole(backend: CudaBackend) -> None:
    x, scalars = backend.zeros((3,), F32), backend.zeros((1,), F64)
    call = Call("map", {"program": PLAIN, "inputs": (x,), "scalars": scalars, "out": (x,), "when": None}, (), (x,))
    assert apart([call], backend.empty) == [(0, call)]


def test_an_update_by_numbers_of_the_host_stays_whole(backend: CudaBackend) -> None:
    """The host has computed with them when the step is recorded."""
    x = backend.zeros((3,), F32)
    call = Call(
        "map", {"program": SCALED, "inputs": (x,), "scalars": [0.5, 4.0], "out": (x,), "when": None}, (x,), (x,)
    )
    assert apart([call], backend.empty) == [(0, call)]


def test_what_is_computed_of_numbers_alone_stays_whole(backend: CudaBackend) -> None:
    scalars, cell, program = backend.zeros((2,), F64), backend.zeros((), F64), trace(lambda a, b: a / b, 0, 2)
    given = {"program": program, "inputs": (), "scalars": scalars, "out": (cell,), "when": None}
    call = Call("map", given, (scalars,), (cell,))
    assert apart([call], backend.empty) == [(0, call)]


def test_numbers_that_are_taken_as_they_are_or_stand_alone_need_one_launch(backend: CudaBackend) -> None:
    scalars = backend.from_host(np.array([0.5, 4.0]))
    x, cell = backend.from_host(np.array([2.0, 6.0], np.float32)), backend.empty((), F64)
    backend.map(PLAIN, (x,), scalars[:1], out=(x,))
    backend.map(trace(lambda a, b: a / np.sqrt(b), 0, 2, name="ratio"), (), scalars, out=(cell,))
    np.testing.assert_array_equal(backend.to_host(x), [1.0, 3.0])
    assert backend.to_host(cell) == 0.25
    assert backend.driver.launches == ["plain", "ratio"]  # type: ignore[attr-defined]
