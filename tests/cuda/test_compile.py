"""Every kernel compiles for every chip with the compiler of the wheels, without spills, and is kept on disk."""

from __future__ import annotations

import re
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.pathfinder")
pytest.importorskip("ml_dtypes")

import ml_dtypes

from fcdense import activations
from fcdense.backends.programs import epilogue
from fcdense.cuda import compile as compiling
from fcdense.cuda import gemm_source, plan, source
from fcdense.cuda.gemm_source import Epilogue
from fcdense.cuda.geometry import Vector
from fcdense.cuda.library import library_path
from fcdense.cuda.source import Kernel
from fcdense.errors import DeviceError

try:
    COMPILER = compiling.nvrtc()
except DeviceError as error:
    pytest.skip(str(error), allow_module_level=True)

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120")
F16, F32, F64, I64 = (np.dtype(t) for t in (np.float16, np.float32, np.float64, np.int64))
BF16 = np.dtype(ml_dtypes.bfloat16)
REGISTERS = {"simt": 168, "bfloat16": 128, "float16": 128, "tf32": 176, "split": 255}
"""Of a thread, by kind; 65,536 of a multiprocessor serve two blocks of 256 threads with up to 128."""
SHARED = {name: 64 * 1024 if name == "sm_75" else 99 * 1024 for name in ARCHITECTURES}
"""Bytes that a block may have; the least of the chips of an architecture."""
INSTRUCTIONS = {
    ("bfloat16", True): ("HMMA.16816.F32.BF16", "LDSM.16", "LDGSTS"),
    ("float16", True): ("HMMA.16816.F32", "LDSM.16", "LDGSTS"),
    ("float16", False): ("HMMA.1688.F32", "LDSM.16"),
    ("tf32", True): ("HMMA.1688.F32.TF32", "LDGSTS"),
    ("split", True): ("HMMA.1688.F32.TF32", "LDGSTS"),
}
"""What the machine code of a product has, by what it multiplies and whether the chip is at least an sm_80."""


ONE, FOUR = Vector(1), Vector(4, frozenset({1}))
KINDS = {"bfloat16": BF16, "float16": F16, "tf32": F32, "split": F32}


def epilogue_of(name: str, dtype: np.dtype[np.generic], vector: Vector = FOUR) -> Epilogue:
    """Bias, activation and derivative: what a layer does with its sums."""
    return Epilogue(epilogue(activations.get(name), True, True), (dtype, dtype), (dtype, dtype), vector)


def simt(name: str) -> Iterator[Kernel]:
    tilings = {F64: plan.SIMT_DOUBLE, F16: plan.SIMT_SMALL}
    for dtype, tiling in [(F32, plan.SIMT_LARGE), (F32, plan.SIMT_SMALL), *tilings.items()]:
        yield gemm_source.gemm_simt(dtype, tiling, True, False, epilogue_of(name, dtype), dtype)
    yield gemm_source.gemm_simt(F32, plan.SIMT_SMALL, True, True, epilogue_of(name, F32), F32)
    yield gemm_source.gemm_simt(F32, plan.SIMT_SMALL, False, False, epilogue_of(name, F32, ONE), F32)


def mma(name: str, arithmetic: str) -> Iterator[Kernel]:
    """Forward, gradient of the input, gradient of the weights; large and small."""
    for tiling in plan.MMA[arithmetic]:
        for along in ((True, False), (True, True), (False, False)):
            layer = epilogue_of(name, KINDS[arithmetic])
            yield gemm_source.gemm_mma(arithmetic, tiling, *along, (16, 16), layer, F32)


def odd(arithmetic: str) -> Iterator[Kernel]:
    """Lines that are read number by number, or two at once, and a program that takes one at a time."""
    dtype = KINDS[arithmetic]
    epilogue = epilogue_of("gelu", dtype, ONE)
    for copy in ((16, dtype.itemsize), (2 * dtype.itemsize, 16)):
        for tiling in plan.MMA[arithmetic]:
            yield gemm_source.gemm_mma(arithmetic, tiling, True, False, copy, epilogue, dtype)


LOOPS = [(kernel, "simt") for name in ("linear", "mish") for kernel in simt(name)]
LOOPS += [(kernel, arithmetic) for arithmetic in KINDS for kernel in mma("linear", arithmetic)]
LOOPS += [(next(mma("mish", arithmetic)), arithmetic) for arithmetic in KINDS]
ODD = [(kernel, arithmetic) for arithmetic in KINDS for kernel in odd(arithmetic)]
NAMES = sorted(set(activations.names()) - {"softmax", "log_softmax"})


def bound(name: str) -> Kernel:
    """The smallest product, with an activation."""
    return gemm_source.gemm_simt(F32, plan.SIMT_SMALL, True, False, epilogue_of(name, F32), F32)


def others() -> Iterator[Kernel]:
    relu = activations.relu.forward_with_derivative
    for dtype in (F16, F32, F64):
        yield source.elementwise(relu, (dtype,), (dtype, dtype), 3, ONE)
        yield source.elementwise(relu, (dtype,), (dtype, dtype), 1, Vector(4))
        for length in (10, 5000):
            yield source.softmax(dtype, length, True)
            yield from (source.cross_entropy(dtype, dtype, length, by_class) for by_class in (False, True))
        yield source.reduce("sum", "Square", dtype, F64, "double", 2, 32)
        yield source.reduce("max", "Identity", dtype, dtype, "double" if dtype == F64 else "float", 2, 1)
        yield source.gather_rows(dtype)
        yield source.scatter_add_rows(dtype)
        yield source.dropout(dtype)
        yield source.cast(dtype, F32, 2)
    yield source.cast(I64, F32, 1)
    yield source.next_stream()
    yield from (kernel for kernel, _ in ODD)


def sass(code: bytes) -> str:
    """The machine code as text, by NVIDIA's disassembler of the wheels."""
    tool = next(Path(sysconfig.get_paths()["purelib"]).glob("nvidia/*/bin/nvdisasm"), None)
    if tool is None:
        pytest.skip("nvidia-cuda-nvdisasm is not installed")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        return subprocess.run([tool, file.name], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def images(request: pytest.FixtureRequest) -> Iterator[dict[tuple[Kernel, str], Future[compiling.Image]]]:
    """What the tests that were chosen compile, on all cores."""
    specs = [
        item.callspec.params
        for item in request.session.items
        if getattr(item, "module", None) is request.module and hasattr(item, "callspec")
    ]
    wanted = [(spec["kernel"], spec["architecture"]) for spec in specs if "kernel" in spec]
    wanted = dict.fromkeys(key for key in wanted if exists(*key))
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        yield {key: pool.submit(compiling.image, *key) for key in wanted}
        pool.shutdown(cancel_futures=True)


KIND = {kernel.text: kind for kernel, kind in (*LOOPS, *ODD)}


def exists(kernel: Kernel, architecture: str) -> bool:
    """Whether the plan has this kernel for such chips."""
    kind = KIND.get(kernel.text, "simt")
    if kind == "simt":
        return True
    large = kernel.threads == 256
    return plan.number(architecture) >= (80 if large else plan.FIRST_ARCHITECTURE[kind])


def image_of(kernel: Kernel, architecture: str, images: Any) -> bytes:
    if not exists(kernel, architecture):
        pytest.skip(f"there is no such kernel for {architecture}")
    image = images[kernel, architecture].result()
    assert image.code.startswith(b"\x7fELF")
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill", image.log)))
    registers = max(map(int, re.findall(r"Used (\d+) registers", image.log)))
    assert not spilled, image.log
    assert registers <= REGISTERS.get(KIND.get(kernel.text, ""), 255), image.log
    assert kernel.shared <= SHARED[architecture]
    code: bytes = image.code
    return code


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("kernel", "kind"), LOOPS, ids=lambda value: value if isinstance(value, str) else value.name)
def test_products(kernel: Kernel, kind: str, architecture: str, images: Any) -> None:
    code = image_of(kernel, architecture, images)
    if kind != "simt" and architecture in ("sm_75", "sm_80", "sm_90a"):
        text = sass(code)
        for instruction in INSTRUCTIONS[kind, plan.number(architecture) >= 80]:
            assert instruction in text, instruction


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kernel", [bound(name) for name in NAMES], ids=NAMES)
def test_activations(kernel: Kernel, architecture: str, images: Any) -> None:
    image_of(kernel, architecture, images)


@pytest.mark.parametrize("kernel", list(others()), ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("architecture", ["sm_75", "sm_90a", "sm_120"])
def test_other_kernels(kernel: Kernel, architecture: str, images: Any) -> None:
    image_of(kernel, architecture, images)


def test_the_compiler_is_that_of_the_wheels() -> None:
    assert Path(library_path("nvrtc", "NVRTC")).is_relative_to(sysconfig.get_paths()["purelib"])


def test_no_header_of_a_toolkit_is_needed() -> None:
    for name, text in compiling.headers().items():
        included = set(re.findall(rb"#include [\"<](.*)[\">]", text)) - {b"instructions.h"}
        assert included <= {name.encode() for name in compiling.headers()}, name


# ---- the cache -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FCDENSE_CACHE", str(tmp_path))
    return tmp_path / "cuda"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was compiled."""
    names: list[str] = []
    compile_ = COMPILER.compile

    def noted(text: str, architecture: str, name: str) -> compiling.Image:
        names.append(f"{name} {architecture}")
        return compile_(text, architecture, name)

    monkeypatch.setattr(COMPILER, "compile", noted)
    return names


def test_code_is_compiled_once(folder: Path, made: list[str]) -> None:
    kernel = source.next_stream()
    codes = {compiling.code(kernel, "sm_80") for _ in range(3)}
    compiling.code(kernel, "sm_90a")
    assert len(codes) == 1
    assert made == ["next_stream sm_80", "next_stream sm_90a"]
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_file_is_made_anew(damage: str, folder: Path, made: list[str]) -> None:
    kernel = source.next_stream()
    whole = compiling.code(kernel, "sm_80")
    (path,) = folder.iterdir()
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-9], "changed": content[:-1] + b"\x7f", "empty": b""}[damage])
    assert compiling.code(kernel, "sm_80") == whole
    assert len(made) == 2
    assert path.read_bytes() == content


def test_a_folder_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FCDENSE_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        assert compiling.code(source.next_stream(), "sm_80").startswith(b"\x7fELF")
    assert caplog.text.count("cannot be kept") == 1


def test_what_does_not_compile_is_said() -> None:
    with pytest.raises(DeviceError, match=r"does not compile broken for sm_80:\n.*identifier \"nothing\" is undefined"):
        COMPILER.compile('extern "C" __global__ void kernel(int* x) { *x = nothing; }', "sm_80", "broken")
