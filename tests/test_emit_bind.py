"""Programs over arrays that stay: the bits of a run, without the looking up."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from fcdense import emit
from fcdense.codegen import compile_program
from fcdense.emit import BLOCK
from fcdense.errors import ArgumentError, DTypeError, ShapeError
from fcdense.expression import Expr
from fcdense.program import Program, trace
from tests.programs import LAYOUTS, MIX, TREES, operands

Array = np.ndarray[Any, Any]


def bits(arrays: list[Array]) -> list[bytes]:
    return [array.tobytes() for array in arrays]


@settings(max_examples=200)
@given(outputs=st.lists(TREES, min_size=1, max_size=3), order=st.permutations([0, 1, 2]), place=st.booleans())
def test_bound_programs_give_the_bits_of_a_run(outputs: list[Expr], order: list[int], place: bool) -> None:
    program = Program("bound", 3, 2, outputs)
    results = []
    for bound in (False, True):
        inputs = operands()
        outs = [inputs[i] if place else np.empty_like(inputs[i]) for i in order[: len(outputs)]]
        with np.errstate(all="ignore"):
            if bound:
                emit.bind(program, inputs, outs, emit.Scratch())(0.75, -1.0)
            else:
                emit.run(program, inputs, (0.75, -1.0), outs)
        results.append(bits(outs))
    assert results[0] == results[1]


@pytest.mark.parametrize("second", LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 5), (3, 4), (3, BLOCK + 1), (BLOCK + 7, 3), (0, 3)])
def test_bound_programs_in_every_layout(rng: np.random.Generator, second: str, shape: tuple[int, int]) -> None:
    x = rng.normal(size=shape).astype(np.float32)
    y = LAYOUTS[second](rng.normal(size=shape).astype(np.float32)) if x.size else x
    outs = [np.empty(shape, np.float32) for _ in range(2)]
    emit.run(MIX, [x, y], (), outs[:1])
    bound = emit.bind(MIX, [x, y], outs[1:], emit.Scratch())
    for _ in range(2):
        bound()
        assert bits(outs[:1]) == bits(outs[1:])


def test_bound_programs_read_their_arrays_when_they_are_called() -> None:
    x, out = np.ones(3), np.empty(3)
    double = emit.bind(trace(lambda x, s: s * x, 1, 1), [x], [out], emit.Scratch())
    x[1] = 5.0
    double(2.0)
    assert out.tolist() == [2.0, 10.0, 2.0]


def test_outputs_that_share_no_memory_with_later_inputs_need_no_copy() -> None:
    dtype, program = np.dtype(np.float64), trace(lambda a, b: (a + 1.0, b * 2.0), 2)
    sources = [compile_program(program, [dtype] * 2, [dtype] * 2, apart).source for apart in ((), [(0, 1)])]
    assert [source.count("copyto") for source in sources] == [1, 0]


@pytest.mark.parametrize(
    ("error", "inputs", "out"),
    [
        (ArgumentError, [np.ones(2)], np.empty(2)),
        (ShapeError, [np.ones(2), np.ones(3)], np.empty(2)),
        (DTypeError, [np.ones(2), np.ones(2, complex)], np.empty(2)),
    ],
)
def test_what_does_not_fit_is_refused(error: type[Exception], inputs: list[Array], out: Array) -> None:
    with pytest.raises(error):
        emit.bind(MIX, inputs, [out], emit.Scratch())
