"""The binding of cuBLASLt: what is refused and why, errors that leave nothing behind, and the numbers of the header."""

from __future__ import annotations

import ctypes
import re
import sys
import types
from typing import Any

import numpy as np
import pytest

from fcdense.cuda import cublaslt_types as lt
from fcdense.cuda.cublaslt import CublasLt, refusal, workspace_size
from fcdense.cuda.cublaslt_types import Epilogue, Operand, Product
from fcdense.cuda.library import library_path
from fcdense.errors import DeviceError
from tests.cuda.cublaslt_cases import SIZE, STREAM, WORKSPACE, Case
from tests.cuda.fake_cublaslt import PROTOTYPES, FakeCublasLt

# ---- what is refused -------------------------------------------------------------------------------------------------

VALID = Product(
    Operand(1 << 12, 4, 8, 8, 1, "float32"),
    Operand(1 << 13, 8, 16, 16, 1, "float32"),
    Operand(1 << 14, 4, 16, 16, 1, "float32"),
)
ROW = Operand(1 << 15, 1, 16, 16, 1, "float32")
BESIDE = Operand(1 << 16, 4, 16, 16, 1, "float32")
MASK = Operand(1 << 16, 4, 2, 16, 1, "uint8")


def changed(product: Product = VALID, **fields: Any) -> Product:
    """The product with other fields: `out__rows=3` is that of an operand."""
    for name, value in fields.items():
        outer, _, inner = name.partition("__")
        new = getattr(product, outer)._replace(**{inner: value}) if inner else value
        product = product._replace(**{outer: new})
    return product


REFUSED = [
    (changed(a__rows=5), "the shapes do not fit"),
    (changed(b__rows=7), "the shapes do not fit"),
    (changed(out__columns=15), "the shapes do not fit"),
    (changed(a__rows=0, out__rows=0), "nothing to multiply"),
    (changed(a__columns=0, b__rows=0), "nothing to multiply"),
    (changed(a__dtype="int32", b__dtype="int32", out__dtype="int32"), "no products of these dtypes"),
    (changed(b__dtype="float16"), "no products of these dtypes"),
    (changed(out__dtype="float64"), "no products of these dtypes"),
    (changed(a__dtype="float64", b__dtype="float64"), "no products of these dtypes"),
    (changed(a__dtype="float16", b__dtype="float16", out__dtype="bfloat16"), "no products of these dtypes"),
    (changed(a__dtype="float64", b__dtype="float64", out__dtype="float64", tf32=True), "TF32 is for float32"),
    (changed(a__row_stride=16, a__column_stride=2), "a lies neither row by row nor column by column"),
    (changed(b__column_stride=2), "b lies neither row by row nor column by column"),
    (changed(b__row_stride=15), "b lies neither"),
    (changed(a__row_stride=0), "a lies neither"),
    (changed(a__row_stride=-8), "a lies neither"),
    (changed(out__row_stride=1, out__column_stride=4), "out does not lie row by row"),
    (changed(out__column_stride=2), "out does not lie row by row"),
    (changed(a__row_stride=1 << 28), "too large"),
    (changed(epilogue=Epilogue.BIAS), "BIAS comes with bias$"),
    (changed(epilogue=Epilogue.RELU_AUX_BIAS, bias=ROW), "RELU_AUX_BIAS comes with bias and aux$"),
    (changed(epilogue=Epilogue.DRELU, bias=ROW, aux=MASK), "DRELU comes with aux$"),
    (changed(bias=ROW), "DEFAULT comes with neither"),
    (changed(epilogue=Epilogue.BIAS, bias=ROW._replace(columns=4)), "bias is not one row of 16 float32"),
    (changed(epilogue=Epilogue.BIAS, bias=ROW._replace(rows=16, columns=1)), "bias is not one row of 16 float32"),
    (changed(epilogue=Epilogue.BIAS, bias=ROW._replace(column_stride=2)), "bias is not one row of 16 float32"),
    (changed(epilogue=Epilogue.BIAS, bias=ROW._replace(dtype="float64")), "bias is not one row of 16 float32"),
    (changed(epilogue=Epilogue.GELU_AUX, aux=BESIDE._replace(row_stride=20)), "stride of aux is not a multiple of 8"),
    (changed(epilogue=Epilogue.GELU_AUX, aux=BESIDE._replace(row_stride=8)), "stride of aux is not a multiple of 8"),
    (changed(epilogue=Epilogue.GELU_AUX, aux=BESIDE._replace(dtype="float16")), r"aux is not a matrix \(4, 16\) of f"),
    (changed(epilogue=Epilogue.GELU_AUX, aux=BESIDE._replace(column_stride=2)), "aux is not .* with rows in one piece"),
    (changed(epilogue=Epilogue.DGELU, aux=BESIDE._replace(rows=3)), r"aux is not a matrix \(4, 16\) of float32"),
    (changed(epilogue=Epilogue.RELU_AUX, aux=MASK._replace(row_stride=8)), "stride of aux is not a multiple of 16"),
    (changed(epilogue=Epilogue.RELU_AUX, aux=MASK._replace(columns=1)), r"aux is not a matrix \(4, 2\) of uint8"),
    (changed(epilogue=Epilogue.RELU_AUX, aux=MASK, b__columns=17, b__row_stride=17,
             out__columns=17, out__row_stride=17), r"aux is not a matrix \(4, 3\) of uint8"),
    (changed(epilogue=Epilogue.DRELU, aux=BESIDE), r"aux is not a matrix \(4, 2\) of uint8"),
    (changed(epilogue=Epilogue.DRELU, aux=MASK, a__columns=1, b__rows=1), "no gradients at depth 1"),
    (changed(epilogue=Epilogue.BIAS, bias=ROW._replace(columns=1), b__columns=1, out__columns=1), "column with gaps"),
]  # fmt: skip


@pytest.mark.parametrize(("product", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_what_cannot_be_told_is_refused(product: Product, reason: str, binding: CublasLt, fake: FakeCublasLt) -> None:
    assert re.search(reason, refusal(product))
    assert binding.refusal(product) == refusal(product)
    with pytest.raises(DeviceError, match=reason.rstrip("$")):
        binding.run(product, STREAM)
    assert not fake.launches
    assert len(fake.live) == 1


def test_the_refused_ones_differ_from_one_that_is_not(binding: CublasLt) -> None:
    assert binding.refusal(VALID) == ""
    assert binding.refusal(changed(epilogue=Epilogue.RELU_AUX_BIAS, bias=ROW, aux=MASK)) == ""
    assert binding.refusal(changed(epilogue=Epilogue.DGELU_BGRAD, bias=ROW, aux=BESIDE)) == ""


@pytest.mark.parametrize("how", ["none named", "not supported"])
def test_a_product_without_an_algorithm_is_refused(
    how: str, binding: CublasLt, fake: FakeCublasLt, rng: np.random.Generator
) -> None:
    if how == "none named":
        fake.splits = []
    else:
        fake.failing["cublasLtMatmulAlgoGetHeuristic"] = 15
    case = Case(rng, Epilogue.RELU_BIAS, shape=(4, 5, 6))
    for call in (binding.run, binding.algorithms):
        with pytest.raises(
            DeviceError, match=r"out \(4, 6\) float32 = a \(4, 5\) float32 @ b .*, RELU_BIAS: .*algorithm"
        ):
            call(case.product, STREAM)
    assert "4,194,304 bytes of workspace" in binding.refusal(case.product)
    assert refusal(case.product) == ""
    assert fake.counts["cublasLtMatmulAlgoGetHeuristic"] == 1
    assert len(fake.live) == 1


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [name for name in PROTOTYPES if not name.endswith(("LtCreate", "Destroy"))])
def test_a_function_that_fails_leaves_nothing_behind(
    function: str, binding: CublasLt, fake: FakeCublasLt, rng: np.random.Generator
) -> None:
    case = Case(rng, Epilogue.RELU_AUX_BIAS)
    fake.failing[function] = 14
    with pytest.raises(DeviceError, match=r"cuBLASLt 13\.10\.0 .*: fake status 14 \(status 14\)"):
        binding.run(case.product, STREAM)
    assert len(fake.live) == (5 if function == "cublasLtMatmul" else 1)
    assert not fake.launches
    fake.failing.clear()
    binding.run(case.product, STREAM)
    case.check()


def test_a_failure_of_the_query_refuses_for_the_moment(
    binding: CublasLt, fake: FakeCublasLt, rng: np.random.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    case = Case(rng)
    fake.failing["cublasLtMatmulAlgoGetHeuristic"] = 14
    with caplog.at_level("WARNING"):
        assert "names no algorithm" in binding.refusal(case.product)
    assert "fake status 14 (status 14)" in caplog.text
    assert len(fake.live) == 1
    fake.failing.clear()
    assert binding.refusal(case.product) == ""


def test_every_call_finds_the_device_current(fake: FakeCublasLt, rng: np.random.Generator) -> None:
    depth: list[int] = []

    class Device:
        def __enter__(self) -> None:
            depth.append(1)

        def __exit__(self, *_: object) -> None:
            depth.pop()

    fake.is_current = lambda: depth
    binding, case = CublasLt(WORKSPACE, SIZE, fake, Device()), Case(rng)
    assert binding.refusal(case.product) == ""
    assert binding.algorithms(case.product, 2)
    binding.run(case.product, STREAM)
    case.check()
    binding.close()
    assert not depth


def test_what_is_not_supported_is_named(binding: CublasLt, fake: FakeCublasLt, rng: np.random.Generator) -> None:
    fake.failing["cublasLtMatmul"] = 15
    case = Case(rng, Epilogue.GELU, "bfloat16", "float32", shape=(4, 5, 6))
    named = r"out \(4, 6\) float32 = a \(4, 5\) bfloat16 @ b \(5, 6\) bfloat16, GELU: fake status 15 \(status 15\)"
    with pytest.raises(DeviceError, match=named):
        binding.run(case.product, STREAM)


def test_no_driver(fake: FakeCublasLt) -> None:
    fake.failing["cublasLtCreate"] = 1
    with pytest.raises(
        DeviceError, match=r"does not start: .* It needs an NVIDIA GPU and a driver for CUDA 13; nvidia-smi"
    ):
        CublasLt(WORKSPACE, SIZE, fake)


@pytest.mark.parametrize(("version", "shown"), [(111103, r"11\.11\.3"), (140000, r"14\.0\.0")])
def test_a_library_of_another_cuda(version: int, shown: str) -> None:
    with pytest.raises(DeviceError, match=f"{shown} was found; that of CUDA 12 or 13 is expected. pip install"):
        CublasLt(WORKSPACE, SIZE, FakeCublasLt(version))


def test_a_workspace_that_is_not_aligned(fake: FakeCublasLt) -> None:
    with pytest.raises(DeviceError, match=r"workspace lies at 0x100080; a multiple of 256 bytes is expected"):
        CublasLt(WORKSPACE + 128, SIZE, fake)
    assert not fake.live


def test_no_pathfinder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    with pytest.raises(DeviceError, match=r"cuda-pathfinder, which finds cuBLASLt, is not installed\. pip install"):
        CublasLt(WORKSPACE, SIZE)


def test_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> None:
        raise RuntimeError(f"no {name} anywhere")

    pathfinder = types.ModuleType("cuda.pathfinder")
    pathfinder.load_nvidia_dynamic_lib = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", pathfinder)
    with pytest.raises(DeviceError, match=r"cuBLASLt is not there: no cublasLt anywhere. pip install"):
        CublasLt(WORKSPACE, SIZE)


@pytest.mark.parametrize(
    ("architecture", "mebibytes"), [("sm_75", 4), ("sm_89", 4), ("sm_90a", 32), ("sm_100a", 32), ("sm_120", 32)]
)
def test_recommended_workspaces(architecture: str, mebibytes: int) -> None:
    assert workspace_size(architecture) == mebibytes * 1024 * 1024


# ---- the header ------------------------------------------------------------------------------------------------------

HEADER = {
    "EPILOGUE": {
        "DEFAULT": 1, "RELU": 2, "RELU_AUX": 130, "BIAS": 4, "RELU_BIAS": 6, "RELU_AUX_BIAS": 134, "DRELU": 136,
        "DRELU_BGRAD": 152, "GELU": 32, "GELU_AUX": 160, "GELU_BIAS": 36, "GELU_AUX_BIAS": 164, "DGELU": 192,
        "DGELU_BGRAD": 208, "BGRADA": 256, "BGRADB": 512,
    },
    "MATMUL_DESC": {
        "TRANSA": (3, 4), "TRANSB": (4, 4), "EPILOGUE": (7, 4), "BIAS_POINTER": (8, 8), "EPILOGUE_AUX_POINTER": (11, 8),
        "EPILOGUE_AUX_LD": (12, 8),
    },
    "MATMUL_PREF": {"MAX_WORKSPACE_BYTES": (1, 8), "REDUCTION_SCHEME_MASK": (3, 4)},
    "REDUCTION_SCHEME": {"COMPUTE_TYPE": 2},
    "MIN_ALIGNMENT_BYTES": [(5, 4), (6, 4), (7, 4), (8, 4)],
    "ALGO_CONFIG": {"SPLITK_NUM": (2, 4)},
    "CUDA_R": {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14},
    "COMPUTE": {"32F": 68, "32F_FAST_TF32": 77, "64F": 70},
    "OP": {"N": 0, "T": 1},
}  # fmt: skip
"""Numbers, and sizes in bytes, as a C compiler reads them from cublasLt.h, cublas_api.h and library_types.h of
cuBLAS 12.9.3 and 13.10.0."""


def test_numbers_are_those_of_the_header() -> None:
    ours = {"COLUMN_SUMS_OF_B": "BGRADA", "ROW_SUMS_OF_A": "BGRADB"}
    assert {ours.get(x.name, x.name): x.value for x in Epilogue} == HEADER["EPILOGUE"]
    for table in ("MATMUL_DESC", "MATMUL_PREF", "ALGO_CONFIG"):
        for name, told in HEADER[table].items():  # type: ignore[attr-defined]
            attribute = getattr(lt, name)
            assert (attribute.number, ctypes.sizeof(attribute.kind)) == told, name
    assert [(x.number, ctypes.sizeof(x.kind)) for x in lt.MIN_ALIGNMENTS] == HEADER["MIN_ALIGNMENT_BYTES"]
    assert HEADER["CUDA_R"] == lt.CUDA_TYPES
    computes = {name.removeprefix("COMPUTE_"): value for name, value in vars(lt).items() if name.startswith("COMPUTE_")}
    assert computes == HEADER["COMPUTE"]
    assert {"N": int(False), "T": int(True)} == HEADER["OP"]
    assert lt.NOT_SUPPORTED == 15
    assert HEADER["REDUCTION_SCHEME"]["COMPUTE_TYPE"] == lt.IN_COMPUTE_TYPE  # type: ignore[index]


def test_structs_are_those_of_the_header() -> None:
    places = {name: getattr(lt.Found, name).offset for name in ("workspace", "state", "waves")}
    assert (ctypes.sizeof(lt.Code), ctypes.sizeof(lt.Found)) == (64, 96)
    assert places == {"workspace": 64, "state": 72, "waves": 76}


def test_prototypes_are_those_that_the_fake_took_from_the_documentation() -> None:
    ours = {name: [ctypes.sizeof(x) for x in taken] for name, (_, *taken) in lt.FUNCTIONS.items() if name in PROTOTYPES}
    assert ours == {name: [ctypes.sizeof(x) for x in taken] for name, (_, taken) in PROTOTYPES.items()}
    assert lt.FUNCTIONS.keys() - PROTOTYPES.keys() == {"cublasLtGetVersion", "cublasLtGetStatusString"}


@pytest.fixture
def nvidias() -> Any:
    """NVIDIA's library. Its descriptors need no GPU."""
    try:
        return lt.declare(ctypes.CDLL(library_path("cublasLt", "cuBLASLt")))
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("kind", ["MatmulDesc", "MatmulPreference"])
def test_nvidias_library_takes_the_attributes(kind: str, nvidias: Any) -> None:
    """It checks the number of each attribute and its size."""
    of_operations = [getattr(lt, name) for name in HEADER["MATMUL_DESC"]]
    arguments, attributes = {
        "MatmulDesc": ((lt.COMPUTE_32F, lt.CUDA_TYPES["float32"]), of_operations),
        "MatmulPreference": ((), [lt.MAX_WORKSPACE_BYTES, *lt.MIN_ALIGNMENTS]),
    }[kind]
    verbs = "Create", "Destroy", "SetAttribute"
    create, destroy, set_ = (getattr(nvidias, f"cublasLt{kind}{verb}") for verb in verbs)
    descriptor = ctypes.c_void_p()
    assert create(ctypes.byref(descriptor), *arguments) == 0
    for attribute in attributes:
        held = (ctypes.c_char * 8)()
        taken = [size for size in range(1, 9) if not set_(descriptor, attribute.number, held, size)]
        assert taken == [ctypes.sizeof(attribute.kind)], attribute
    assert destroy(descriptor) == 0


def test_nvidias_library_is_told_the_transposed_product(nvidias: Any) -> None:
    """What it has noted, read back when it is asked for an algorithm. The handle and the answer are not its own."""
    noted = {}

    def read(kind: str, descriptor: int, number: int, form: type[Any]) -> int:
        value, written = form(), ctypes.c_size_t()
        get = getattr(nvidias, f"cublasLt{kind}GetAttribute")
        places = (ctypes.c_void_p(descriptor), number, ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value)))
        assert get(*places, ctypes.byref(written)) == 0
        return int(value.value or 0)

    class Library:
        def __getattr__(self, name: str) -> Any:
            return getattr(nvidias, name)

        cublasLtDestroy = cublasLtCreate = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(lambda handle: 0)  # noqa: N815

        @staticmethod
        @ctypes.CFUNCTYPE(ctypes.c_int, *PROTOTYPES["cublasLtMatmulAlgoGetHeuristic"][1])
        def cublasLtMatmulAlgoGetHeuristic(handle: int, operation: int, *others: int) -> int:  # noqa: N802
            layouts, preference = others[:4], others[4]
            forms = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64
            noted["layouts"] = [
                [read("MatrixLayout", x, k, form) for k, form in zip((0, 2, 3, 4), forms, strict=True)] for x in layouts
            ]
            attributes = [(0, ctypes.c_int), (1, ctypes.c_int), (5, ctypes.c_int)]
            attributes += [getattr(lt, name) for name in HEADER["MATMUL_DESC"]]
            noted["operation"] = [read("MatmulDesc", operation, *attribute) for attribute in attributes]
            wanted = [lt.MAX_WORKSPACE_BYTES, *lt.MIN_ALIGNMENTS]
            noted["preference"] = [read("MatmulPreference", preference, *attribute) for attribute in wanted]
            return lt.NOT_SUPPORTED

    product = Product(
        Operand(1 << 12 | 4, 4, 8, 1, 5, "bfloat16"),
        Operand(1 << 13 | 8, 8, 16, 20, 1, "bfloat16"),
        Operand(1 << 14, 4, 16, 24, 1, "float32"),
        Epilogue.DRELU_BGRAD,
        Operand(1 << 15 | 4, 1, 16, 16, 1, "float32"),
        Operand(1 << 16, 4, 2, 32, 1, "uint8"),
    )
    binding = CublasLt(WORKSPACE, SIZE, Library())
    assert "there is no algorithm" in binding.refusal(product)
    binding.close()
    out = [0, 16, 4, 24]
    assert noted["layouts"] == [[14, 16, 8, 20], [14, 4, 8, 5], out, out]
    assert noted["operation"] == [68, 0, 0, 0, 1, 152, 4, 16, 256]
    assert noted["preference"] == [SIZE, 8, 4, 16, 16]
