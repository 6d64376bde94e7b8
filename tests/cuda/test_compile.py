"""Every kernel compiles for every chip with the compiler of the wheels, without spills, and is kept on disk."""

from __future__ import annotations

import re
import struct
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

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
from fcdense.cuda.plan import Choice, Plan, Problem
from fcdense.cuda.source import Kernel
from fcdense.cuda.tiling import SimtTiling
from fcdense.errors import DeviceError
from fcdense.optim.gate import decision

try:
    COMPILER = compiling.nvrtc()
except DeviceError as error:
    pytest.skip(str(error), allow_module_level=True)

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120")
F16, F32, F64, I64 = (np.dtype(t) for t in (np.float16, np.float32, np.float64, np.int64))
BF16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {"float64": F64, "float32": F32, "tf32": F32, "split": F32, "float16": F16, "bfloat16": BF16}
"""What is stored, by what operands are multiplied as."""
REGISTERS = {"simt": 168, "bfloat16": 128, "float16": 128, "tf32": 176, "split": 255}
"""Of a thread, by kind; 65,536 of a multiprocessor serve two blocks of 256 threads with up to 128."""
MOST_REGISTERS = 255
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
ALONG = {"forward": (True, False), "input gradient": (True, True), "weight gradient": (False, False)}
"""Whether lines of A and of B go along the depth."""
PROGRAMS = {"forward": ("linear", "mish"), "input gradient": ("linear", "mish"), "weight gradient": ("linear",)}
"""A short one and a long one; the gradient of weights is stored as it is."""
ONE, FOUR = Vector(1), Vector(4, frozenset({1}))


def epilogue_of(name: str, dtype: np.dtype[np.generic], vector: Vector = FOUR) -> Epilogue:
    """Bias, activation and derivative: what a layer does with its sums."""
    return Epilogue(epilogue(activations.get(name), True, True), (dtype, dtype), (dtype, dtype), vector)


def problem(dtype: str, rows: int, columns: int, depth: int, copy: int = 16) -> Problem:
    """A layer's, whose operands lie well unless told otherwise."""
    return Problem(dtype, rows, columns, depth, copy, True, False, True, dtype)


def choices(architecture: str, copy: int = 16) -> list[Choice]:
    """All that the plan has for layers on such a chip, in one part: on tensor cores alone where they multiply the
    dtype, but for float32."""
    found = []
    for dtype in ("float64", "float32", "tf32", "float16", "bfloat16"):
        able = Plan(architecture).candidates(problem(dtype, 4096, 4096, 64, copy))
        has_tensor_cores = dtype != "float32" and any(choice.family == "mma" for choice in able)
        found += [choice for choice in able if choice.family == "mma" or not has_tensor_cores]
    return found


def kind_of(choice: Choice) -> str:
    """What registers and instructions go by."""
    return choice.family if choice.family == "simt" else choice.arithmetic


def product(choice: Choice, along: tuple[bool, bool], copy: tuple[int, int], name: str, vector: Vector) -> Kernel:
    """The kernel of a choice, with an activation."""
    dtype = DTYPES[choice.arithmetic]
    layer = epilogue_of(name, dtype, vector)
    if isinstance(choice.tiling, SimtTiling):
        return gemm_source.gemm_simt(dtype, choice.tiling, *along, layer, gemm_source.sum_type(dtype))
    assert choice.tiling is not None
    return gemm_source.gemm_mma(choice.arithmetic, choice.tiling, *along, copy, layer, F32)


def products(architecture: str, kind: str) -> dict[Kernel, str]:
    """Each main loop of a kind, forward and back, with its programs; and what to call it."""
    return {
        product(choice, along, (16, 16), name, FOUR): f"{choice}, {role}, {name}"
        for choice in choices(architecture)
        if kind_of(choice) == kind
        for role, along in ALONG.items()
        for name in PROGRAMS[role]
    }


def odd(architecture: str) -> Iterator[tuple[str, Kernel]]:
    """Lines that are read number by number, or two at once, operands without lines, and a program that takes one number
    at a time."""
    for choice in choices(architecture):
        if choice.family == "mma":
            itemsize = DTYPES[choice.arithmetic].itemsize
            for copy in ((16, itemsize), (2 * itemsize, 16)):
                yield choice.arithmetic, product(choice, ALONG["forward"], copy, "gelu", ONE)
    for choice in choices(architecture, copy=0):
        yield choice.family, product(choice, ALONG["weight gradient"], (0, 0), "gelu", ONE)


PRODUCTS = [(chip, kind) for chip in ARCHITECTURES for kind in dict.fromkeys(kind_of(c) for c in choices(chip))]
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
        yield source.cast(dtype, F32, 2, 4)
    yield source.cast(I64, F32, 1, 1)
    yield source.next_stream()
    yield source.scalar_work(decision(1, 1))
    yield source.take_rows()
    yield from (source.convert_rows(F32, narrow) for narrow in (F16, BF16))
    yield source.leave_results()


def machine_code(image: bytes) -> bytes:
    """The instructions of the one kernel of an ELF file: its section ".text.kernel"."""
    (headers,) = struct.unpack_from("<Q", image, 0x28)
    size, count, of_names = struct.unpack_from("<3H", image, 0x3A)
    sections = [struct.unpack_from("<2I4Q", image, headers + size * number) for number in range(count)]
    names = sections[of_names][4]
    (found,) = (section for section in sections if image.startswith(b".text.kernel\0", names + section[0]))
    return image[found[4] : found[4] + found[5]]


def sass(images: Sequence[bytes], architecture: str) -> list[str]:
    """The machine code of each as text, by NVIDIA's disassembler of the wheels, which begins slowly: once for all."""
    tool = next(Path(sysconfig.get_paths()["purelib"]).glob("nvidia/*/bin/nvdisasm"), None)
    if tool is None:
        pytest.skip("nvidia-cuda-nvdisasm is not installed")
    codes = [machine_code(image) for image in images]
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(codes))
        file.flush()
        command = [tool, "--binary", architecture.replace("sm_", "SM"), "--no-dataflow", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    at = {int(line[1], 16): line.start() for line in re.finditer(r"/\*([0-9a-f]+)\*/", text)}
    ends = [0, *accumulate(map(len, codes))]
    assert len(at) == ends[-1] // 16, "an instruction has 16 bytes"
    at[ends[-1]] = len(text)
    return [text[at[start] : at[end]] for start, end in pairwise(ends)]


def compiled(kernel: Kernel, architecture: str, most_registers: int = MOST_REGISTERS, name: str = "") -> bytes:
    """Its code, which spills nothing and keeps to what a block may have."""
    image = compiling.image(kernel, architecture)
    said = f"{name} {image.log}"
    assert image.code.startswith(b"\x7fELF")
    assert not sum(map(int, re.findall(r"(\d+) bytes spill", image.log))), said
    assert max(map(int, re.findall(r"Used (\d+) registers", image.log))) <= most_registers, said
    assert kernel.shared <= SHARED[architecture], said
    return image.code


@pytest.mark.parametrize(("architecture", "kind"), PRODUCTS)
def test_products(kind: str, architecture: str) -> None:
    kernels = products(architecture, kind)
    images = [compiled(kernel, architecture, REGISTERS[kind], name) for kernel, name in kernels.items()]
    if kind == "simt":
        return
    for name, text in zip(kernels.values(), sass(images, architecture), strict=True):
        for instruction in INSTRUCTIONS[kind, plan.number(architecture) >= 80]:
            assert instruction in text, f"{name}: {instruction}"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_the_plan_chooses_is_compiled(architecture: str) -> None:
    """Where operands lie well, whatever their sizes."""
    loops = {choice._replace(parts=1) for choice in choices(architecture)}
    sizes = (1, 33, 64, 300, 5000, 100_000)
    problems = (problem(d, b, i, o) for d in DTYPES for b in sizes for i in sizes for o in sizes if d != "split")
    chosen = {Plan(architecture).choose(one)._replace(parts=1) for one in problems}
    assert chosen <= loops
    assert {choice.family for choice in chosen} == {"simt", "mma"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", NAMES)
def test_activations(name: str, architecture: str) -> None:
    compiled(bound(name), architecture)


@pytest.mark.parametrize("architecture", ["sm_75", "sm_90a", "sm_120"])
@pytest.mark.parametrize("kernel", list(others()), ids=lambda kernel: kernel.name)
def test_other_kernels(kernel: Kernel, architecture: str) -> None:
    compiled(kernel, architecture)


@pytest.mark.parametrize("architecture", ["sm_75", "sm_90a", "sm_120"])
def test_operands_that_do_not_lie_well(architecture: str) -> None:
    for kind, kernel in dict.fromkeys(odd(architecture)):
        compiled(kernel, architecture, REGISTERS[kind])


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
