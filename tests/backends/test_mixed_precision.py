"""The contract in mixed precision: 16-bit operands, sums in float32, gradients of parameters and biases in float32.

And products of float32 operands that are rounded to TF32, whose sums are float32 too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from fcdense import activations
from fcdense.backends.base import Backend
from fcdense.backends.checked import CheckedBackend
from fcdense.backends.cpu import CpuBackend
from fcdense.backends.recording import recording
from fcdense.errors import ContractError, DTypeError
from fcdense.precision import dtype_of, use_precision
from fcdense.program import trace
from tests import emulation
from tests.backends import cases
from tests.backends.bounds import assert_within_bound, finfo
from tests.backends.calls import REFERENCE, Values, backend_of, draw, formula, pairs, run, shifted
from tests.backends.cases import Case
from tests.backends.formulas import DOUBLE, PROGRAMS

F32 = "float32"
needs_compiler = pytest.mark.skipif(not emulation.is_available(), reason="no g++ here")
on_both = pytest.mark.parametrize("on", ["reference", pytest.param("emu", marks=needs_compiler)])
in_16_bits = pytest.mark.parametrize("dtype", ["float16", "bfloat16"])

MIXED = (
    *(cases.dense(17, 127, 13, act, bias_dtype=F32) for act in (activations.linear, activations.relu)),
    cases.dense(17, 31, 13, activations.gelu, bias_dtype=F32),
    *(cases.dense_grad_input(17, 31, 13, DOUBLE, mode, bias_dtype=F32) for mode in ("overwrite", "accumulate")),
    cases.dense_grad_input(17, 31, 13, activations.tanh, bias_dtype=F32),
    *(cases.dense_grad_weight(129, 31, 13, mode, F32) for mode in ("overwrite", "accumulate")),
    *(cases.act_grad(129, 13, activations.relu, mode, bias_dtype=F32) for mode in ("overwrite", "accumulate")),
    cases.act_grad(17, 13, activations.linear, bias_dtype=F32),
    cases.act_grad(17, 13, activations.silu, bias_dtype=F32),
)
PLAIN = (
    cases.softmax(17, 13, False),
    cases.softmax(17, 13, True),
    cases.dropout((17, 13), 0.5),
    cases.reduce("sum", (300, 13), (0,)),
    cases.reduce("max", (17, 13), (1,)),
    cases.matmul((17, 31), (31, 13)),
    cases.copy((17, 13), (17, 13), F32),
    cases.fill(2.5, (17, 13)),
    cases.gather_rows(5, (50,), (13,)),
    cases.norm2(17, 13),
)
"""What networks do with activations in 16 bits; in float16 the contract suite has them already."""

IN_GROUPS = (
    cases.dense(16, 32, 24, activations.gelu, bias_dtype=F32),
    cases.dense_grad_input(16, 32, 24, activations.tanh, bias_dtype=F32),
    cases.act_grad(16, 24, activations.silu, bias_dtype=F32),
    cases.dropout((16, 24), 0.5),
    cases.copy((16, 24), (16, 24), F32),
)
"""With lines that are whole groups of numbers, as they are read and written at once where they lie well."""


def each(some: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [pytest.param(case, id=str(case)) for case in some])


def backend(on: str) -> Backend:
    return REFERENCE if on == "reference" else backend_of(on)


@on_both
@in_16_bits
@each(case for case in MIXED if case.exact)
def test_whole_numbers_are_exact(on: str, dtype: str, case: Case, rng: np.random.Generator) -> None:
    values = draw(case, dtype_of(dtype), rng, whole=True)
    got, exact = run(backend(on), case, values), formula(case, values, np.int64)
    for name, a, b in pairs(got, exact):
        np.testing.assert_array_equal(a, np.asarray(b).astype(a.dtype), err_msg=name, strict=True)


@on_both
@in_16_bits
@each(MIXED)
def test_random_data_within_bound(on: str, dtype: str, case: Case, rng: np.random.Generator) -> None:
    values = draw(case, dtype_of(dtype), rng)
    assert_within_bound(run(backend(on), case, values), case, values, dtype_of(dtype))


@on_both
@each(PLAIN)
def test_bfloat16_within_bound(on: str, case: Case, rng: np.random.Generator) -> None:
    values = draw(case, dtype_of("bfloat16"), rng)
    assert_within_bound(run(backend(on), case, values), case, values, dtype_of("bfloat16"))


@needs_compiler
@in_16_bits
@pytest.mark.parametrize("by", [1, 2, 4])
@each(IN_GROUPS)
def test_groups_that_begin_anywhere(by: int, dtype: str, case: Case, rng: np.random.Generator) -> None:
    values = draw(case, dtype_of(dtype), rng)
    got = run(backend_of("emu"), case, values, layout=partial(shifted, by=by))
    assert_within_bound(got, case, values, dtype_of(dtype))


def gamma(terms: int) -> float:
    u = float(np.finfo(np.float32).eps) / 2
    return terms * u / (1 - terms * u)


PRODUCTS: dict[Case, tuple[str, Callable[[Values], Any]]] = {
    MIXED[0]: ("out", lambda v: v["x_bi"] @ v["w_io"] + v["b_o"]),
    MIXED[3]: ("out", lambda v: 2.0 * (v["dz_bo"] @ v["w_io"].T)),
    MIXED[6]: ("out", lambda v: v["x_bi"].T @ v["dz_bo"]),
}


@on_both
@in_16_bits
@each(PRODUCTS)
def test_products_are_summed_in_float32_and_rounded_once(
    on: str, dtype: str, case: Case, rng: np.random.Generator
) -> None:
    values = draw(case, dtype_of(dtype), rng)
    name, product = PRODUCTS[case]
    wide = {k: v.astype(np.float64) for k, v in values.items() if isinstance(v, np.ndarray)}
    exact, terms = product(wide), product({k: np.abs(v) for k, v in wide.items()})
    got = run(backend(on), case, values)[name]
    last = 0.0 if got.dtype == np.float32 else float(finfo(got.dtype).eps) / 2
    bound = gamma(130) * terms * (1 + last) + last * np.abs(exact)
    assert (np.abs(got.astype(np.float64) - exact) <= bound).all()


# ---- TF32 ------------------------------------------------------------------------------------------------------------

MULTIPLIED = {
    "dense": ("x_bi", "w_io"),
    "dense_grad_input": ("dz_bo", "w_io"),
    "dense_grad_weight": ("x_bi", "dz_bo"),
    "matmul": ("a", "b"),
}
IN_TF32 = (
    cases.dense(17, 127, 13),
    cases.dense(17, 31, 13, activations.gelu),
    cases.dense_grad_input(17, 31, 13, activations.tanh),
    *(cases.dense_grad_input(70, 33, 66, DOUBLE, mode) for mode in ("overwrite", "accumulate")),
    *(cases.dense_grad_weight(129, 31, 13, mode) for mode in ("overwrite", "accumulate")),
    cases.matmul((70, 300), (300, 66)),
)


def rounded(case: Case, values: Values) -> Values:
    """The arguments with what is multiplied rounded to the 10 bits of TF32: to the nearest, ties away from zero."""

    def tf32(x: Any) -> Any:
        return ((x.view(np.uint32) + 0x1000) & 0xFFFFE000).view(np.float32)

    return {name: tf32(x) if name in MULTIPLIED[case.primitive] else x for name, x in values.items()}


@needs_compiler
@each(IN_TF32)
def test_tf32_within_the_bound_of_rounded_operands(case: Case, rng: np.random.Generator) -> None:
    values = draw(case, F32, rng)
    with use_precision("tf32"):
        got = run(backend_of("emu"), case, values)
    assert_within_bound(got, case, rounded(case, values), F32)
    with pytest.raises(AssertionError, match="above the bound"):
        assert_within_bound(got, case, values, F32)


@needs_compiler
@pytest.mark.parametrize("dtype", [np.dtype(np.float64), dtype_of("float16"), dtype_of("bfloat16")], ids=str)
def test_other_dtypes_are_not_rounded_to_tf32(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    case = cases.matmul((70, 300), (300, 66))
    values = draw(case, dtype, rng)
    with use_precision("tf32"):
        got = run(backend_of("emu"), case, values)
    assert_within_bound(got, case, values, dtype)


@needs_compiler
@each(case for case in IN_TF32 if case.exact)
def test_whole_numbers_are_exact_in_tf32(case: Case, rng: np.random.Generator) -> None:
    values = draw(case, F32, rng, whole=True)
    with use_precision("tf32"):
        got = run(backend_of("emu"), case, values)
    for name, a, b in pairs(got, formula(case, values, np.int64)):
        np.testing.assert_array_equal(a, np.asarray(b).astype(a.dtype), err_msg=name, strict=True)


# ---- parameters and their copy in one pass ---------------------------------------------------------------------------


def _updated(w: Any, g: Any, rate: Any) -> Any:
    new = w - rate * g
    return new, new


UPDATE = trace(_updated, 2, 1, name="update_and_copy")
PROGRAMS[UPDATE] = _updated


@on_both
@in_16_bits
def test_a_map_writes_a_copy_in_16_bits(on: str, dtype: str, rng: np.random.Generator) -> None:
    case = cases.map_(UPDATE, (40, 13), (40, 13), (40, 13), may_be=("inputs[0]", ""))
    narrow = replace(case.arguments["out"][1], dtype=dtype)
    case = replace(case, arguments={**case.arguments, "out": (case.arguments["out"][0], narrow)})
    values = draw(case, F32, rng)
    for in_place in (False, True):
        weights, copied = run(backend(on), case, values, in_place=in_place)["out"]
        exact = _updated(*(x.astype(np.float64) for x in values["inputs"]), values["scalars"][0])[0]
        np.testing.assert_allclose(weights, exact, rtol=1e-6, atol=1e-6)
        assert copied.dtype == dtype_of(dtype)
        if on == "emu":  # the reference rounds its float64 values into each of them
            np.testing.assert_array_equal(copied, weights.astype(copied.dtype))


# ---- who has it, and who does not ------------------------------------------------------------------------------------


@each((MIXED[0], MIXED[3], MIXED[6], MIXED[8]))
def test_others_are_held_to_one_dtype(case: Case, rng: np.random.Generator) -> None:
    values = draw(case, "float16", rng)
    with pytest.raises(ContractError, match="has dtype float32; expected float16"):
        run(CpuBackend(), case, values)


@pytest.mark.parametrize(("operands", "bias"), [("float16", "float64"), (F32, "float16"), ("float64", F32)])
def test_only_float32_may_stand_beside_16_bits(operands: str, bias: str, rng: np.random.Generator) -> None:
    case = cases.dense(3, 4, 5, bias_dtype=bias)
    with pytest.raises(ContractError, match=f"b_o has dtype {bias}; expected {operands}"):
        run(REFERENCE, case, draw(case, operands, rng))


def test_the_cpu_says_that_it_has_none(rng: np.random.Generator) -> None:
    x, dz = rng.normal(size=(2, 5, 3)).astype(np.float16)
    with pytest.raises(DTypeError, match=r"float32 gradient of float16 operands.*GPU"):
        CpuBackend().dense_grad_weight(x, dz, out=np.empty((3, 3), np.float32))


def test_wrapped_backends_have_what_the_inner_one_has() -> None:
    for inner in (CpuBackend(), REFERENCE):
        assert CheckedBackend(inner).mixed_precision is inner.mixed_precision
    with recording():
        for name in ("cpu", "reference"):
            recorder = backend_of(name)
            assert recorder.is_recording
            assert recorder.mixed_precision is recorder.unrecorded.mixed_precision is (name == "reference")
