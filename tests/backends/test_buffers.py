"""What changes from step to step lies in arrays: scalars and flags of `map`, and streams of random numbers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fcdense.backends.base import Backend
from fcdense.backends.checked import CheckedBackend
from fcdense.backends.cpu import CpuBackend
from fcdense.errors import ContractError
from fcdense.program import trace
from tests.backends import cases, formulas
from tests.backends.calls import DEVICES, assert_same_bits, backend_of, contiguous, draw, run

pytestmark = pytest.mark.parametrize("on", [*DEVICES, "reference"])

WITH_SCALARS = (
    cases.map_(formulas.axpy, (17, 13), (17, 13), (13,)),
    cases.map_(formulas.constant, (3, 2)),
    cases.map_(formulas.momentum, *[(40_000,)] * 4, may_be=("inputs[0]", "inputs[1]")),
)


def checked(on: str) -> Backend:
    return CheckedBackend(backend_of(on))


def flagged(case: cases.Case) -> cases.Case:
    return replace(case, arguments={**case.arguments, "when": None})


def cell(backend: Backend, value: float) -> Any:
    return contiguous(np.array(value), backend)


@pytest.mark.parametrize("case", WITH_SCALARS, ids=str)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_scalars_in_an_array_give_the_same_bits(
    on: str, case: cases.Case, dtype: str, rng: np.random.Generator
) -> None:
    backend, values = backend_of(on), draw(case, dtype, rng)
    vector = contiguous(np.array(values["scalars"], np.float64), backend)
    assert_same_bits(run(backend, case, values), run(backend, case, values | {"scalars": vector}))
    assert_same_bits(
        run(backend, case, values),
        run(backend, flagged(case), values | {"scalars": vector, "when": cell(backend, 1.0)}, in_place=True),
    )


def test_the_contents_count_when_the_call_runs(on: str) -> None:
    backend = checked(on)
    x, out = (contiguous(np.array([3.0, 4.0], np.float32), backend) for _ in range(2))
    y, vector = contiguous(np.zeros(2, np.float32), backend), contiguous(np.array([2.0]), backend)
    for factor in (2.0, 5.0, -1.0):
        vector[0] = factor
        backend.map(formulas.axpy, (x, y), vector, out=(out,))
        np.testing.assert_array_equal(backend.to_host(out), [3.0 * factor, 4.0 * factor])


def test_a_part_of_a_longer_vector(on: str) -> None:
    backend = checked(on)
    words = contiguous(np.array([9.0, 2.0, 8.0, -0.5, 7.0]), backend)
    out = contiguous(np.zeros(2, np.float32), backend)
    backend.map(formulas.constant, (), words[1:2], out=(out,))
    np.testing.assert_array_equal(backend.to_host(out), [4.0, 4.0])
    w, v, g = (contiguous(np.ones(2, np.float32), backend) for _ in range(3))
    backend.map(formulas.momentum, (w, v, g), words[1::2], out=(w, v))
    np.testing.assert_array_equal(backend.to_host(v), [0.5, 0.5])
    np.testing.assert_array_equal(backend.to_host(w), [2.0, 2.0])


@pytest.mark.parametrize("flag", [0.0, -0.0, 1.0, -2.0, 1e-300, np.inf, np.nan])
@pytest.mark.parametrize("case", WITH_SCALARS, ids=str)
def test_a_call_with_a_flag(on: str, case: cases.Case, flag: float, rng: np.random.Generator) -> None:
    backend, values = backend_of(on), draw(case, "float32", rng)
    for in_place in (False, True):
        got = run(backend, flagged(case), values | {"when": cell(backend, flag)}, in_place=in_place)
        if flag != 0.0:
            expected = run(backend, case, values)
        else:
            before = values["inputs"] if in_place and case.arguments["out"][0].may_be else values["out"]
            expected = {"out": tuple(before[: len(values["out"])])}
        assert_same_bits(got, expected)


@pytest.mark.parametrize("flag", [0.0, 1.0])
def test_numbers_that_follow_from_scalars_alone(on: str, flag: float) -> None:
    backend = checked(on)
    words = contiguous(np.array([3.0, 0.5, -1.0, -1.0]), backend)
    both = trace(lambda a, b: (a + b, a * b), 0, 2, name="sum_and_product")
    backend.map(both, (), words[:2], out=(words[2, ...], words[3, ...]), when=cell(backend, flag))
    assert backend.to_host(words).tolist() == [3.0, 0.5, *([3.5, 1.5] if flag else [-1.0, -1.0])]


def test_streams_follow_one_another(on: str) -> None:
    backend = checked(on)
    state, out = (contiguous(np.array([7, 2**64 - 2], np.uint64), backend) for _ in range(2))
    for number in (2**64 - 2, 2**64 - 1, 0, 1):
        backend.next_stream(state, out=out)
        assert backend.to_host(out).tolist() == [7, number]
    assert backend.to_host(state).tolist() == [7, 2]


def test_no_stream_is_given_twice(on: str) -> None:
    backend = backend_of(on)
    state = contiguous(np.array([1, 1], np.uint64), backend)

    def draw_one(_: int) -> tuple[int, ...]:
        out = backend.empty((2,), np.dtype(np.uint64))
        backend.next_stream(state, out=out)
        return tuple(backend.to_host(out).tolist())

    with ThreadPoolExecutor(4) as pool:
        streams = list(pool.map(draw_one, range(4000)))
    assert sorted(streams) == [(1, number) for number in range(1, 4001)]
    assert backend.to_host(state).tolist() == [1, 4001]


def test_a_backend_that_records_nothing_cannot_be_joined(on: str) -> None:
    backend = backend_of(on)
    assert not backend.is_recording
    with pytest.raises(ContractError, match="does not record"):
        backend.join(CpuBackend())  # type: ignore[arg-type]
