"""The contract suite: every primitive on every device, against int64, against the reference, and against plain NumPy.

A primitive without an entry in cases.py, formulas.py and bounds.py fails here, and so does a backend whose signatures
are not those of the base class. Every call goes through `CheckedBackend`, with guards around its outputs.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from fcdense import activations
from fcdense.backends.base import Backend
from fcdense.backends.checked import SHAPES, CheckedBackend
from fcdense.backends.cpu import CpuBackend
from fcdense.backends.reference import ReferenceBackend
from tests.backends import bounds, cases, formulas
from tests.backends.bounds import assert_within_bound
from tests.backends.calls import (
    DEVICES,
    FAST,
    HOST_ONLY,
    LAYOUTS,
    Values,
    assert_same_bits,
    backend_of,
    contiguous,
    draw,
    first,
    formula,
    pairs,
    reference,
    run,
)
from tests.backends.cases import CASES, GENERATORS, LARGE, MIDDLE, Case
from tests.conftest import cuda_missing

DTYPES = ("float16", "float32", "float64")
CLASSES = (CpuBackend, ReferenceBackend, CheckedBackend)

CUDA = () if cuda_missing() else (pytest.param("cuda", marks=pytest.mark.gpu),)
on_every_device = pytest.mark.parametrize("on", [*DEVICES, *CUDA])
on_every_fast_device = pytest.mark.parametrize("on", [*FAST, *CUDA])
in_every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def each(some: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [pytest.param(case, id=str(case)) for case in some])


@pytest.fixture
def backend(on: str) -> Backend:
    return backend_of(on)


# ---- completeness ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("primitive", Backend.primitives())
def test_every_primitive_is_covered(primitive: str) -> None:
    assert primitive in GENERATORS, f"cases.py has no cases for '{primitive}'"
    assert any(case.primitive == primitive for case in LARGE), f"cases.py has no large case of '{primitive}'"
    assert hasattr(formulas, primitive), f"formulas.py has no plain program for '{primitive}'"
    assert hasattr(bounds, primitive), f"bounds.py has no error bound for '{primitive}'"
    assert primitive in SHAPES, f"checked.py has no shapes for '{primitive}'"


def test_nothing_is_covered_that_does_not_exist() -> None:
    assert set(GENERATORS) == set(SHAPES) == set(Backend.primitives())


def test_there_are_seventeen_primitives() -> None:
    assert len(Backend.primitives()) == 17


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("name", [*Backend.primitives(), "empty", "zeros", "from_host", "to_host"])
def test_signatures_are_those_of_the_base(kind: type[Backend], name: str) -> None:
    assert inspect.signature(getattr(kind, name)) == inspect.signature(getattr(Backend, name))


@pytest.mark.parametrize("primitive", Backend.primitives())
def test_shapes_name_every_array_of_the_signature(primitive: str) -> None:
    parameters = inspect.signature(getattr(Backend, primitive)).parameters.values()
    assert set(SHAPES[primitive]) == {p.name for p in parameters if "Array" in str(p.annotation)}


def test_every_primitive_is_documented() -> None:
    assert [name for name in Backend.primitives() if not getattr(Backend, name).__doc__] == []


# ---- values ----------------------------------------------------------------------------------------------------------


@on_every_device
@in_every_dtype
@each(case for case in CASES if case.exact)
def test_whole_numbers_are_exact(backend: Backend, case: Case, dtype: str, rng: np.random.Generator) -> None:
    values = draw(case, dtype, rng, whole=True)
    got, exact = run(backend, case, values), formula(case, values, np.int64)
    for name, a, b in pairs(got, exact):
        expected = np.asarray(b)
        assert np.abs(expected.astype(np.float64)).max(initial=0) < 2**24
        with np.errstate(over="ignore"):  # the whole number may be beyond the range of float16
            np.testing.assert_array_equal(a, expected.astype(a.dtype), err_msg=name, strict=True)


@on_every_device
@in_every_dtype
@each(CASES)
def test_random_data_within_bound(backend: Backend, case: Case, dtype: str, rng: np.random.Generator) -> None:
    values = draw(case, dtype, rng)
    assert_within_bound(run(backend, case, values), case, values, dtype)


def assert_no_worse_than_plain(got: Values, case: Case, values: Values, dtype: str) -> None:
    plain, exact = formula(case, values, dtype), formula(case, values, np.longdouble)
    for name, a, p, e in pairs(got, plain, exact):
        wide = np.asarray(e, np.longdouble)
        ours, theirs = (np.abs(np.asarray(v, np.longdouble) - wide).max(initial=0) for v in (a, p))
        last_place = np.finfo(dtype).eps * np.abs(wide).max(initial=0) + np.finfo(dtype).smallest_subnormal
        assert ours <= 2 * theirs + last_place, f"{name}: error {ours:.3g}, plain NumPy {theirs:.3g}"


@on_every_device
@in_every_dtype
@each(case for case in CASES if case.plain)
def test_no_worse_than_plain_numpy(backend: Backend, case: Case, dtype: str, rng: np.random.Generator) -> None:
    if dtype == "float64" and np.finfo(np.longdouble).eps == np.finfo(np.float64).eps:
        pytest.skip("long double is no wider than float64 here")
    values = draw(case, dtype, rng)
    assert_no_worse_than_plain(run(backend, case, values), case, values, dtype)


@on_every_fast_device
@each(LARGE)
def test_large(backend: Backend, case: Case, rng: np.random.Generator) -> None:
    values = draw(case, "float32", rng)
    assert_within_bound(run(backend, case, values), case, values, "float32")


# ---- layouts and aliasing --------------------------------------------------------------------------------------------


def typical(rows: int, inner: int, columns: int) -> tuple[Case, ...]:
    """Every primitive once or twice, at these sizes."""
    shape, sizes = (rows, columns), (rows, inner, columns)
    buffer = (300, 10 * columns - 3 * (columns % 2))
    return (
        cases.dense(*sizes, activations.gelu),
        cases.dense_grad_input(*sizes, activations.tanh, "accumulate"),
        cases.dense_grad_weight(*sizes, "accumulate"),
        cases.act_grad(*shape, activations.silu, "accumulate"),
        cases.softmax(*shape, False),
        cases.softmax(*shape, True),
        cases.softmax_xent(*shape, False),
        cases.softmax_xent(*shape, True),
        cases.elementwise_loss(shape, (rows, 1)),
        cases.map_(formulas.axpy, shape, shape, (columns,)),
        cases.map_(formulas.momentum, buffer, *[buffer] * 3, may_be=("inputs[0]", "inputs[1]")),
        cases.next_stream(),
        cases.dropout(shape, 0.5),
        cases.reduce("sum", shape, (0,)),
        cases.reduce("max", shape, (1,)),
        cases.matmul((3, rows, inner), (inner, columns)),
        cases.copy(shape, shape, "float64"),
        cases.fill(2.5, shape),
        cases.gather_rows(5, (50,), (columns,)),
        cases.scatter_add_rows(rows, (50,), (columns,)),
        cases.norm2(*shape),
    )


TYPICAL = typical(*MIDDLE)
IN_GROUPS = typical(16, 32, 24)
"""With lines that are whole groups of numbers, as they are read and written at once where they lie well."""


def equal_rows(values: Values) -> Values:
    """The same arguments with all rows of an array equal to its first, so that the array can repeat one row."""

    def one(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(one, value))
        repeatable = isinstance(value, np.ndarray) and value.ndim
        return np.ascontiguousarray(np.broadcast_to(value[:1], value.shape)) if repeatable else value

    return {name: one(value) for name, value in values.items()}


@on_every_device
@pytest.mark.parametrize("layout", LAYOUTS)
@each((*TYPICAL, *IN_GROUPS))
def test_inputs_in_any_layout(backend: Backend, case: Case, layout: str, rng: np.random.Generator) -> None:
    if layout in HOST_ONLY and not isinstance(backend.empty((), np.dtype("float32")), np.ndarray):
        pytest.skip("arrays of this device are never like that")
    values = draw(case, "float32", rng)
    if layout == "repeated":
        values = equal_rows(values)
    assert_within_bound(run(backend, case, values, layout=LAYOUTS[layout]), case, values, "float32")


@on_every_device
@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_copy_may_overlap(backend: Backend, offset: int) -> None:
    values = np.arange(60000.0).reshape(200, 300)
    array = contiguous(values, backend)
    x, out = array[1:-1], array[1 + offset : 199 + offset]
    CheckedBackend(backend).copy(x, out=out)
    np.testing.assert_array_equal(backend.to_host(out), values[1:-1])


@on_every_device
@pytest.mark.parametrize("layout", ["transposed", "strided", "padded_rows", "rows_one_apart", "reversed", "shifted"])
@each(case for case in (*TYPICAL, *IN_GROUPS) if case.primitive in {"map", "copy", "fill"})
def test_outputs_in_any_layout(backend: Backend, case: Case, layout: str, rng: np.random.Generator) -> None:
    values = draw(case, "float32", rng)
    assert_within_bound(run(backend, case, values, out_layout=LAYOUTS[layout]), case, values, "float32")


def may_be_in_place(case: Case) -> bool:
    outs = [w for value in case.arguments.values() for w in (value if isinstance(value, tuple) else (value,))]
    return any(isinstance(w, cases.Out) and w.may_be for w in outs)


@on_every_device
@in_every_dtype
@each(case for case in CASES if may_be_in_place(case))
def test_in_place_is_the_same(backend: Backend, case: Case, dtype: str, rng: np.random.Generator) -> None:
    values = draw(case, dtype, rng)
    assert_same_bits(run(backend, case, values), run(backend, case, values, in_place=True))


@on_every_device
@each(TYPICAL)
def test_same_call_same_bits(backend: Backend, case: Case, rng: np.random.Generator) -> None:
    values = draw(case, "float32", rng)
    assert_same_bits(run(backend, case, values), run(backend, case, values))


# ---- numbers that are none -------------------------------------------------------------------------------------------


def spoil(values: Values, name: str, number: float, rng: np.random.Generator) -> None:
    """Put `number` at one place in every array of argument `name`."""
    for array in values[name] if isinstance(values[name], tuple) else (values[name],):
        if array.size:
            array.reshape(-1)[rng.integers(array.size)] = number


def float_inputs(case: Case) -> list[str]:
    return [name for name, wanted in case.arguments.items() if isinstance(first(wanted), cases.Floats)]


SPOILED = [(case, name) for case in TYPICAL for name in float_inputs(case)]


@on_every_device
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("case", "name"), SPOILED, ids=[f"{case}-{name}" for case, name in SPOILED])
def test_nan_and_infinity_propagate(
    backend: Backend, case: Case, name: str, number: float, rng: np.random.Generator
) -> None:
    values = draw(case, "float32", rng)
    spoil(values, name, number, rng)
    with np.errstate(all="ignore"):
        got, expected = run(backend, case, values), reference(case, values)
    reached = False
    for output, a, b in pairs(got, expected):
        np.testing.assert_array_equal(np.isfinite(a), np.isfinite(b), err_msg=output)
        if name != "weight_b":  # an infinite weight has no meaning: NaN and infinity are equally right
            np.testing.assert_array_equal(np.isnan(a), np.isnan(b), err_msg=output)
            np.testing.assert_array_equal(np.where(np.isinf(a), a, 0), np.where(np.isinf(b), b, 0), err_msg=output)
        reached |= not np.isfinite(b).all()
    assert reached or not np.isnan(number), "a NaN went in, and none came out of the reference"
