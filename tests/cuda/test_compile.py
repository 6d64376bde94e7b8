"""Every kernel compiles for every chip with the compiler of the wheels, without spills, and is kept on disk."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cuda.pathfinder")

from fcdense import activations
from fcdense.backends.programs import epilogue
from fcdense.cuda import compile as compiling
from fcdense.cuda import plan, source
from fcdense.cuda.source import Kernel
from fcdense.errors import DeviceError

try:
    COMPILER = compiling.nvrtc()
except DeviceError as error:
    pytest.skip(str(error), allow_module_level=True)

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120")
F16, F32, F64, I64 = (np.dtype(t) for t in (np.float16, np.float32, np.float64, np.int64))
REGISTERS = 168
"""Of a thread; 65,536 of a multiprocessor serve one block of 256 threads with up to 255."""


def gemm(name: str, dtype: np.dtype[np.generic], tiling: source.Tiling, a: bool = True, b: bool = False) -> Kernel:
    program = epilogue(activations.get(name), True, True)
    return source.gemm_simt(dtype, tiling, a, b, program, (dtype, dtype), (dtype, dtype))


def loops() -> Iterator[Kernel]:
    for name in ("linear", "mish"):
        for dtype, tiling in ((F32, plan.LARGE), (F32, plan.SMALL), (F64, plan.DOUBLE), (F16, plan.SMALL)):
            yield gemm(name, dtype, tiling)
        yield gemm(name, F32, plan.SMALL, True, True)
        yield gemm(name, F32, plan.SMALL, False, False)


def others() -> Iterator[Kernel]:
    relu = activations.relu.forward_with_derivative
    for dtype in (F16, F32, F64):
        yield source.elementwise(relu, (dtype,), (dtype, dtype), 3)
        for length in (10, 5000):
            yield source.softmax(dtype, length, True)
            yield from (source.cross_entropy(dtype, length, by_class) for by_class in (False, True))
        yield source.reduce("sum", "Square", dtype, F64, "double", 2, 32)
        yield source.reduce("max", "Identity", dtype, dtype, "double" if dtype == F64 else "float", 2, 1)
        yield source.gather_rows(dtype)
        yield source.scatter_add_rows(dtype)
        yield source.dropout(dtype)
        yield source.cast(dtype, F32, 2)
    yield source.cast(I64, F32, 1)
    yield source.next_stream()


def compiled(kernel: Kernel, architecture: str) -> None:
    image = COMPILER.compile(kernel.text, architecture, kernel.name)
    assert image.code.startswith(b"\x7fELF")
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill", image.log)))
    registers = max(map(int, re.findall(r"Used (\d+) registers", image.log)))
    assert not spilled, image.log
    assert registers <= REGISTERS, image.log
    assert kernel.shared <= 48 * 1024


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kernel", list(loops()), ids=lambda kernel: kernel.name)
def test_products(kernel: Kernel, architecture: str) -> None:
    compiled(kernel, architecture)


@pytest.mark.parametrize("kernel", list(others()), ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("architecture", ["sm_75", "sm_90a", "sm_120"])
def test_other_kernels(kernel: Kernel, architecture: str) -> None:
    compiled(kernel, architecture)


@pytest.mark.parametrize("name", sorted(set(activations.names()) - {"softmax", "log_softmax"}))
def test_activations(name: str) -> None:
    compiled(gemm(name, F32, plan.SMALL), "sm_80")


def test_the_compiler_is_that_of_the_wheels() -> None:
    assert Path(compiling._library_path()).is_relative_to(sysconfig.get_paths()["purelib"])


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
