"""The binding of cuBLASLt over a library of host memory: results against NumPy, and what is kept of a product.

The oracle (`cublaslt_cases.py`) goes row by row; the library (`fake_cublaslt.py`) column by column, as documented.
"""

from __future__ import annotations

import itertools
import sys
import threading

import numpy as np
import pytest

from fcdense.cuda import cublaslt
from fcdense.cuda.cublaslt import CublasLt
from fcdense.cuda.cublaslt_types import Epilogue, Product
from fcdense.errors import DeviceError
from tests.cuda.cublaslt_cases import SIZE, STREAM, WORKSPACE, Case, Placed
from tests.cuda.fake_cublaslt import R_16BF, R_16F, FakeCublasLt, decode, encode

# ---- results ---------------------------------------------------------------------------------------------------------

ARITHMETIC = [
    ("float64", "", False), ("float32", "", False), ("float32", "", True), ("float16", "", False),
    ("float16", "float32", False), ("bfloat16", "", False), ("bfloat16", "float32", False),
]  # fmt: skip
BOTH = (False, True)


@pytest.mark.parametrize(("dtype", "out", "tf32"), ARITHMETIC)
@pytest.mark.parametrize("epilogue", Epilogue, ids=lambda epilogue: epilogue.name)
def test_products(epilogue: Epilogue, dtype: str, out: str, tf32: bool, binding: CublasLt) -> None:
    rng, ran = np.random.default_rng(epilogue), 0
    for a, b, accumulate in itertools.product(BOTH, BOTH, BOTH):
        case = Case(rng, epilogue, dtype, out, (a, b), gaps=a != accumulate, accumulate=accumulate, tf32=tf32)
        if (epilogue == Epilogue.COLUMN_SUMS_OF_B and b) or (epilogue == Epilogue.ROW_SUMS_OF_A and not a):
            assert "does not lie" in binding.refusal(case.product)
            continue
        binding.run(case.product, STREAM)
        case.check()
        ran += 1
    assert ran >= 4


def test_float32_is_not_rounded_to_tf32(binding: CublasLt, rng: np.random.Generator) -> None:
    errors = {}
    for tf32 in BOTH:
        case = Case(rng, shape=(20, 30, 20), tf32=tf32)
        binding.run(case.product, STREAM)
        errors[tf32] = np.abs(case.out.values - case.expected["out"]).max()
    assert errors[False] < 2e-5
    assert errors[True] > 1e-3


@pytest.mark.parametrize("shape", [(1, 5, 7), (6, 5, 1), (6, 1, 7), (1, 1, 1), (1, 8, 1)])
def test_strides_of_axes_of_length_1_do_not_matter(
    shape: tuple[int, int, int], binding: CublasLt, rng: np.random.Generator
) -> None:
    for transposed in itertools.product(BOTH, BOTH):
        case = Case(rng, shape=shape, transposed=transposed)
        operands = [
            x._replace(
                row_stride=12345 if x.rows == 1 else x.row_stride,
                column_stride=54321 if x.columns == 1 else x.column_stride,
            )
            for x in case.product[:3]
        ]
        binding.run(Product(*operands), STREAM)
        case.check()


def test_dtypes_may_be_numpys(binding: CublasLt, rng: np.random.Generator) -> None:
    case = Case(rng, dtype="float16", out="float32")
    half, single = np.dtype(np.float16), np.dtype(np.float32)
    a, b, out = case.product[:3]
    binding.run(Product(a._replace(dtype=half), b._replace(dtype=half), out._replace(dtype=single)), STREAM)
    case.check()


def test_bfloat16_may_be_that_of_ml_dtypes(binding: CublasLt, rng: np.random.Generator) -> None:
    dtype = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    case = Case(rng, dtype="bfloat16")
    binding.run(Product(*(x._replace(dtype=dtype) for x in case.product[:3])), STREAM)
    case.check()


def test_the_oracles_bfloat16() -> None:
    values = np.array([1.0, -2.5, 3.14159, 1.00390625, 1.01171875, 3.0e38])
    assert [hex(x) for x in encode(values, R_16BF)] == ["0x3f80", "0xc020", "0x4049", "0x3f80", "0x3f82", "0x7f62"]


def test_threads_do_not_mix_their_addresses(binding: CublasLt, fake: FakeCublasLt) -> None:
    shape = (3, 4, 5)
    cases = [[Case(np.random.default_rng((k, n)), Epilogue.BIAS, shape=shape) for n in range(25)] for k in range(4)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [
            threading.Thread(target=lambda mine=mine: [binding.run(case.product, STREAM) for case in mine])
            for mine in cases
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    for case in itertools.chain(*cases):
        case.check()
    assert fake.counts["cublasLtMatmulAlgoGetHeuristic"] == 1


# ---- what is kept ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epilogue", [Epilogue.DEFAULT, Epilogue.BIAS, Epilogue.RELU_AUX_BIAS])
def test_a_known_product_is_only_launched(
    epilogue: Epilogue, binding: CublasLt, fake: FakeCublasLt, rng: np.random.Generator
) -> None:
    first, second = (Case(rng, epilogue, shape=(4, 5, 6)) for _ in range(2))
    binding.run(first.product, STREAM)
    before = fake.counts.copy()
    binding.run(second.product, STREAM)
    addresses = sum(x is not None for x in second.product[4:6])
    assert fake.counts - before == {"cublasLtMatmul": 1} | (
        {"cublasLtMatmulDescSetAttribute": addresses} if addresses else {}
    )
    first.check()
    second.check()
    assert [stream for stream, *_ in fake.launches] == [STREAM] * 2


def test_a_capture_goes_on_when_the_product_was_asked_for(
    binding: CublasLt, fake: FakeCublasLt, rng: np.random.Generator
) -> None:
    known, unknown = Case(rng, shape=(4, 5, 6)), Case(rng, shape=(7, 5, 6))
    assert binding.refusal(known.product) == ""
    fake.capturing = True
    binding.run(known.product, STREAM)
    known.check()
    assert not fake.captures_broken
    with pytest.raises(DeviceError, match=r"names no algorithm for out \(7, 6\)"):
        binding.run(unknown.product, STREAM)
    assert fake.captures_broken == 1


def test_alignment_below_16_bytes_is_another_product(
    binding: CublasLt, fake: FakeCublasLt, rng: np.random.Generator
) -> None:
    for shift, queries in ((0, 1), (16, 1), (32, 1), (4, 2), (20, 2), (8, 3)):
        case = Case(rng, Epilogue.BIAS, shape=(4, 4, 4), shift=shift)
        binding.run(case.product, STREAM)
        case.check()
        assert fake.counts["cublasLtMatmulAlgoGetHeuristic"] == queries, shift


@pytest.mark.parametrize("name", ["a", "b", "out"])
def test_the_alignment_of_each_matrix_counts(
    name: str, binding: CublasLt, fake: FakeCublasLt, rng: np.random.Generator
) -> None:
    case = Case(rng, shape=(4, 4, 4))
    binding.run(case.product, STREAM)
    moved = Placed(getattr(case, name).values, "float32", shift=4)
    setattr(case, name, moved)
    binding.run(case.product._replace(**{name: moved.operand}), STREAM)
    case.check()
    assert fake.counts["cublasLtMatmulAlgoGetHeuristic"] == 2


def test_whatever_differs_is_another_product(binding: CublasLt, fake: FakeCublasLt, rng: np.random.Generator) -> None:
    cases = [
        Case(rng, shape=(4, 5, 6)),
        Case(rng, shape=(4, 6, 5)),
        Case(rng, shape=(4, 5, 6), tf32=True),
        Case(rng, shape=(4, 5, 6), accumulate=True),
        Case(rng, Epilogue.RELU, shape=(4, 5, 6)),
        Case(rng, dtype="float64", shape=(4, 5, 6)),
        Case(rng, shape=(4, 5, 6), transposed=(True, False)),
        Case(rng, shape=(4, 5, 6), gaps=True),
    ]
    for case in cases:
        binding.run(case.product, STREAM)
        case.check()
    assert fake.counts["cublasLtMatmulAlgoGetHeuristic"] == len(cases)


def test_the_oldest_products_are_forgotten(
    binding: CublasLt, fake: FakeCublasLt, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cublaslt, "PLANS", 3)
    cases = [Case(rng, shape=(rows, 5, 6)) for rows in (2, 3, 4, 5, 6, 2)]
    for case in cases:
        binding.run(case.product, STREAM)
        case.check()
    assert len(fake.live) == 1 + 3 * 4
    assert fake.counts["cublasLtMatmulAlgoGetHeuristic"] == len(cases)


# ---- algorithms ------------------------------------------------------------------------------------------------------


def test_each_algorithm_can_be_run_and_one_chosen(
    binding: CublasLt, fake: FakeCublasLt, rng: np.random.Generator
) -> None:
    case = Case(rng, Epilogue.GELU_AUX_BIAS)
    fake.most_workspace = 1 << 20
    found = binding.algorithms(case.product, 8)
    assert [len(x.code) for x in found] == [64] * 3
    assert [x.workspace for x in found] == [1 << 20, 0, 0]
    assert len(binding.algorithms(case.product, 2)) == 2
    for k in (2, 0, 1):
        binding.run(case.product, STREAM, found[k])
        case.check()
    binding.run(case.product, STREAM)
    binding.choose(case.product, found[2])
    binding.run(case.product, STREAM)
    case.check()
    assert fake.launches == [(STREAM, k, found[k].workspace) for k in (2, 0, 1, 0, 2)]


def test_algorithms_keep_within_the_workspace(binding: CublasLt, fake: FakeCublasLt, rng: np.random.Generator) -> None:
    fake.most_workspace = SIZE + 1
    case = Case(rng)
    binding.run(case.product, STREAM)
    assert fake.launches == [(STREAM, 1, 0)]


def test_algorithms_that_are_named_as_unusable_are_left_out(
    binding: CublasLt, fake: FakeCublasLt, rng: np.random.Generator
) -> None:
    fake.unusable = {0, 2}
    case = Case(rng)
    binding.run(case.product, STREAM)
    case.check()
    assert fake.launches == [(STREAM, 1, 0)]
    assert len(binding.algorithms(case.product, 8)) == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_parts_of_the_depth_are_not_rounded(
    dtype: str, binding: CublasLt, fake: FakeCublasLt, rng: np.random.Generator
) -> None:
    fake.splits = [8]
    case = Case(rng, dtype=dtype, shape=(16, 64, 16))
    binding.run(case.product, STREAM)
    exact = case.a.values @ case.b.values
    kind = R_16BF if dtype == "bfloat16" else R_16F
    np.testing.assert_array_equal(case.out.values, decode(encode(exact, kind), kind))


@pytest.mark.parametrize(
    ("version", "used"), [(120602, 0), (120603, 1), (120903, 1), (130700, 1), (130800, 0), (131000, 0)]
)
def test_splits_of_unequal_depth_are_left_out_where_they_fail(
    version: int, used: int, rng: np.random.Generator
) -> None:
    for whole in (1, 0):  # both say that there are no parts
        fake = FakeCublasLt(version)
        fake.splits = [3, whole, 2]
        binding = CublasLt(WORKSPACE, SIZE, fake)
        case = Case(rng, shape=(4, 8, 4))
        binding.run(case.product, STREAM)
        case.check()
        assert fake.launches == [(STREAM, used, 0)]


def test_each_lane_has_a_workspace(binding: CublasLt, fake: FakeCublasLt, rng: np.random.Generator) -> None:
    case = Case(rng)
    binding.run(case.product, STREAM)
    for lane in (1, 3):
        binding.run(case.product, STREAM, lane=lane)
    assert fake.workspaces == [WORKSPACE, WORKSPACE + SIZE, WORKSPACE + 3 * SIZE]
