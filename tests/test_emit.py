"""Emitted code against node-by-node evaluation, on every kind of memory."""

from __future__ import annotations

import threading
import tracemalloc
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from fcdense import emit
from fcdense.emit import BLOCK
from fcdense.errors import ArgumentError, DTypeError, ShapeError
from fcdense.expression import Expr, evaluate
from fcdense.program import Program, trace
from tests.programs import LAYOUTS, MIX, TREES, mix, operands

Array = np.ndarray[Any, Any]


def run(program: Program, inputs: list[Array], scalars: tuple[float, ...], outs: list[Array]) -> None:
    with np.errstate(all="ignore"):  # log(-1) and the like are wanted here
        emit.run(program, inputs, scalars, outs)


def same(given: Array, expected: Array) -> None:
    np.testing.assert_array_equal(given, expected)


@settings(max_examples=300)
@given(outputs=st.lists(TREES, min_size=1, max_size=3), scalar=st.sampled_from([0.0, -2.0, 0.75, np.nan]))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_random_expressions(dtype: type, outputs: list[Expr], scalar: float) -> None:
    program = Program("random", 3, 2, outputs)
    inputs = operands(dtype)
    outs = [np.empty_like(inputs[0]) for _ in outputs]
    run(program, inputs, (scalar, 1.5), outs)
    for out, expected in zip(outs, evaluate(outputs, inputs, (scalar, 1.5)), strict=True):
        same(out, expected)


@settings(max_examples=300)
@given(outputs=st.lists(TREES, min_size=1, max_size=3), order=st.permutations([0, 1, 2]))
def test_outputs_in_place_of_inputs(outputs: list[Expr], order: list[int]) -> None:
    program = Program("in_place", 3, 2, outputs)
    inputs = operands()
    expected = evaluate(outputs, inputs, (0.75, -1.0))
    run(program, inputs, (0.75, -1.0), [inputs[i] for i in order[: len(outputs)]])
    for i, values in zip(order, expected, strict=False):
        same(inputs[i], values)


def test_swap() -> None:
    a, b = np.arange(3.0), np.arange(3.0) + 10
    emit.run(trace(lambda a, b: (b, a), 2), [a, b], (), [a, b])
    same(a, [10.0, 11.0, 12.0])
    same(b, [0.0, 1.0, 2.0])


def test_update_of_several_arrays_in_place(rng: np.random.Generator) -> None:
    def adam(w: Any, g: Any, m: Any, v: Any, rate: Any, t: Any) -> Any:
        m = 0.9 * m + (1 - 0.9) * g
        v = 0.999 * v + (1 - 0.999) * g * g
        return w - rate / (1 - 0.9**t) * m / (np.sqrt(v / (1 - 0.999**t)) + 1e-8), m, v

    w, g, m, v = np.abs(rng.normal(size=(4, 2 * BLOCK + 5)))
    expected = adam(w, g, m, v, 1e-3, 7.0)
    emit.run(trace(adam, 4, 2), [w, g, m, v], (1e-3, 7.0), [w, m, v])
    for array, value in zip((w, m, v), expected, strict=True):
        np.testing.assert_allclose(array, value, rtol=1e-13)


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", LAYOUTS)
@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 4), (3, BLOCK + 1), (BLOCK + 7, 3)])
def test_layouts(rng: np.random.Generator, first: str, second: str, shape: tuple[int, int]) -> None:
    x, y = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    x, y = LAYOUTS[first](x), LAYOUTS[second](y)
    x.flags.writeable = y.flags.writeable = False
    expected = np.broadcast_to(mix(x, y), shape)
    for out in (
        np.empty(shape, np.float32),
        np.empty(shape[::-1], np.float32).T,
        np.empty((*shape, 2), np.float32)[..., 0],
    ):
        emit.run(MIX, [x, y], (), [out])
        np.testing.assert_allclose(out, expected, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_sizes(rng: np.random.Generator, size: int) -> None:
    x, y = rng.normal(size=(2, size))
    np.testing.assert_allclose(emit.apply(MIX, x, y), mix(x, y), rtol=1e-13)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3), (2, 0, 2)])
def test_empty(shape: tuple[int, ...]) -> None:
    assert emit.apply(MIX, np.zeros(shape), np.zeros(shape)).shape == shape


def test_no_axes() -> None:
    out = np.empty(())
    emit.run(MIX, [np.array(2.0), np.array(1.0)], (), [out])
    assert out == 2.25
    given = emit.apply(MIX, np.array(2.0), 1.0)
    assert isinstance(given, np.ndarray)
    assert given.shape == ()
    assert isinstance(emit.apply(MIX, 2.0, np.float32(1)), np.float32)


@pytest.mark.parametrize("shape", [(4 * BLOCK,), (4, BLOCK)])
def test_a_steady_state_allocates_no_array(rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    x, y, out = rng.normal(size=(3, *shape)).astype(np.float32)
    for _ in range(2):
        emit.run(MIX, [x, y], (), [out])
    tracemalloc.start()
    emit.run(MIX, [x, y], (), [out])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16_000  # a block has 65,536 bytes


def test_threads(rng: np.random.Generator) -> None:
    x = rng.normal(size=(8, 20 * BLOCK))
    outs = np.empty_like(x)
    threads = [threading.Thread(target=emit.run, args=(MIX, [x[i], x[i]], (), [outs[i]])) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose(outs, mix(x, x), rtol=1e-13)


# ---- dtypes ----------------------------------------------------------------------------------------------------------


def test_float16_is_rounded_once() -> None:
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    x = x[np.isfinite(x)]
    program = trace(lambda x: (x + 1) * (x - 1) + x * 0.001, 1)
    wide = x.astype(np.float32)
    with np.errstate(over="ignore"):
        expected = ((wide + 1) * (wide - 1) + wide * np.float32(0.001)).astype(np.float16)
    given = emit.apply(program, x)
    assert given.dtype == np.float16
    same(given, expected)
    emit.run(program, [x], (), [x])
    same(x, expected)


def test_other_inputs_are_converted() -> None:
    program = trace(lambda x, y: x * 2 - y, 2)
    flags, bytes_ = np.array([True, False]), np.array([200, 3], np.uint8)
    out = np.empty(2, np.float32)
    emit.run(program, [bytes_, flags], (), [out])
    same(out, [399.0, 6.0])
    emit.run(program, [np.array([0.5, 1.5]), bytes_], (), [out])
    same(out, [-199.0, 0.0])
    assert emit.apply(program, bytes_, flags).dtype == np.float64
    assert emit.apply(program, 2, np.float32(1)).dtype == np.float32
    assert emit.apply(program, np.ones(2, np.float32), np.ones(2)).dtype == np.float64


def test_conditions_give_bools() -> None:
    program = trace(lambda x: ((x > 0) & (x < 2), x), 1)
    flags, numbers = emit.apply(program, np.array([-1.0, 1.0, 3.0, np.nan]))
    assert flags.dtype == bool
    same(flags, [False, True, False, False])
    outs = [np.empty(4, np.float32), np.empty(4, np.float32)]
    emit.run(program, [numbers.astype(np.float32)], (), outs)
    same(outs[0], [0.0, 1.0, 0.0, 0.0])


def test_literals_take_the_dtype_of_the_arrays() -> None:
    program = trace(lambda x: x * 0.1 + 1e300, 1)
    x = np.ones(3, np.float32)
    assert np.isinf(emit.apply(program, x)).all()
    assert "inf" in emit.source(program, np.float32)
    assert "1e+300" in emit.source(program, np.float64)


@pytest.mark.parametrize("value", [1j, np.longdouble(1), "a", [None], np.datetime64(0, "s"), np.ones(2, ">f4")])
def test_refused_inputs(value: Any) -> None:
    with pytest.raises(DTypeError, match=r"expected float16, float32, float64, integer or bool"):
        emit.apply(trace(lambda x: x + 1, 1), value)
    with pytest.raises(DTypeError):
        emit.apply(trace(lambda x, y: x + y, 2), value, np.ones(1))


@pytest.mark.parametrize("dtype", [np.int64, np.complex64, bool])
def test_refused_outputs(dtype: type) -> None:
    with pytest.raises(DTypeError, match="an output is"):
        emit.run(trace(lambda x: x + 1, 1), [np.ones(2)], (), [np.empty(2, dtype)])


# ---- arguments -------------------------------------------------------------------------------------------------------


def test_shapes_that_do_not_fit() -> None:
    out = np.full((2, 3), 7.0)
    for bad in (np.ones(2), np.ones((3, 3)), np.ones((1, 2, 3)), np.ones((2, 0))):
        with pytest.raises(ShapeError, match=r"does not broadcast to \(2, 3\)"):
            emit.run(MIX, [np.ones((2, 3)), bad], (), [out])
    with pytest.raises(ShapeError, match="expected one shape"):
        emit.run(trace(lambda x: (x, x), 1), [np.ones(2)], (), [np.empty(2), np.empty((1, 2))])
    same(out, np.full((2, 3), 7.0))


def test_numbers_of_arguments() -> None:
    with pytest.raises(ArgumentError, match="takes 2 arrays"):
        emit.run(MIX, [np.ones(2)], (), [np.ones(2)])
    with pytest.raises(ArgumentError, match="takes 0 scalars, given 1"):
        emit.run(MIX, [np.ones(2)] * 2, (1.0,), [np.ones(2)])
    with pytest.raises(ArgumentError, match="writes 1"):
        emit.run(MIX, [np.ones(2)] * 2, (), [np.ones(2)] * 2)
    with pytest.raises(ArgumentError, match="takes 2 arrays, given 1"):
        emit.apply(MIX, 1.0)


# ---- scalars ---------------------------------------------------------------------------------------------------------


def test_scalars_are_combined_outside_of_the_loop() -> None:
    program = trace(lambda x, a, b: x * (a / (1 - b**3)) + np.where(a > b, a, np.tanh(b)), 1, 2)
    before, loop = emit.source(program).split("for ")
    assert "ieee.power(s1, 3.0)" in before or "s1 * s1" in before
    assert loop.count("(") == 2  # one product and one sum
    x = np.arange(3.0)
    np.testing.assert_allclose(emit.apply(program, x, scalars=(2.0, 0.5)), x * (2 / (1 - 0.125)) + 2)


def test_scalars_follow_ieee754() -> None:
    program = trace(lambda a, b: (a / b, np.sqrt(a), np.exp(b), np.log(b), a**0.3, np.maximum(a, b)), 0, 2)
    outs = [np.empty(1) for _ in program.outputs]
    emit.run(program, [], (-1.0, 0.0), outs)
    np.testing.assert_array_equal(np.ravel(outs), [-np.inf, np.nan, 1.0, -np.inf, np.nan, 0.0])
    emit.run(program, [], (np.nan, 1e4), outs)
    np.testing.assert_array_equal(np.ravel(outs), [np.nan, np.nan, np.inf, np.log(1e4), np.nan, np.nan])


def test_a_program_of_constants() -> None:
    out = np.empty(3, np.float32)
    emit.run(trace(lambda: 2, 0), [], (), [out])
    same(out, [2, 2, 2])
    assert emit.apply(trace(lambda x: 1.5, 1), np.zeros(2)).tolist() == [1.5, 1.5]


# ---- source ----------------------------------------------------------------------------------------------------------


def test_source_is_readable() -> None:
    assert emit.source(trace(lambda x: 1 / (1 + np.exp(-x)), 1, name="sigmoid")) == (
        "def sigmoid(blocks, k0=number(1.0)):\n"
        "    for x0, y0, t0 in blocks:\n"
        "        negative(x0, t0)\n"
        "        exp(t0, t0)\n"
        "        add(t0, k0, t0)\n"
        "        divide(k0, t0, y0)\n"
    )


def test_registers_are_reused() -> None:
    def chain(x: Any) -> Any:
        for _ in range(30):
            x = np.tanh(x) * 2
        return x

    assert "    for x0, y0, t0 in blocks:" in emit.source(trace(chain, 1)).splitlines()


def test_common_subexpressions_are_computed_once() -> None:
    both = trace(lambda x: (np.exp(x) * x, np.exp(x) + np.exp(x) * x), 1)
    assert emit.source(both).count("exp(") == 1


@pytest.mark.parametrize("name", ["lambda", "1st", "a b", "naïve", "", "x\0y", "def f(): pass"])
def test_any_name(name: str) -> None:
    assert emit.apply(trace(lambda x: x + 1, 1, name=name), 1.0) == 2.0


# ---- warnings --------------------------------------------------------------------------------------------------------


def test_overflow_is_no_warning() -> None:
    """Warnings are errors in this suite."""
    x = np.array([1e200, 1e3, -1e3])
    same(emit.apply(trace(lambda x: x * x, 1), x), [np.inf, 1e6, 1e6])
    same(emit.apply(trace(lambda x: 1 / (1 + np.exp(-x)), 1), x), [1.0, 1.0, 0.0])


def test_division_by_zero_warns_as_in_numpy() -> None:
    with pytest.warns(RuntimeWarning, match="divide by zero"):
        emit.apply(trace(np.log, 1), np.zeros(1))
    with pytest.warns(RuntimeWarning, match="invalid value"):
        emit.apply(trace(np.sqrt, 1), np.array([-1.0]))
