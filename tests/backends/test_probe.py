"""Each probe's answer, with drivers and libraries of our own making."""

from __future__ import annotations

import ctypes
import importlib.machinery
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fcdense.backends import probe
from fcdense.backends.probe import Probe, cuda_probes, failed_probe, gpu_count
from fcdense.cuda import compile as compiling
from fcdense.errors import DeviceError
from tests import emulation
from tests.cuda import fake_cupy


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    cuda_probes.cache_clear()
    yield
    cuda_probes.cache_clear()


def module(name: str, **contents: Any) -> types.ModuleType:
    """A module that the import system takes for an installed one."""
    made = types.ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    made.__path__ = []
    vars(made).update(contents)
    return made


class Driver:
    """Stands for libcuda.so.1."""

    def __init__(self, count: int = 1, status: int = 0) -> None:
        self.count = count
        self.status = status

    def cuInit(self, flags: int) -> int:  # noqa: N802
        assert flags == 0
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        if self.status == 0:
            count._obj.value = self.count
        return self.status


def set_driver(monkeypatch: pytest.MonkeyPatch, driver: Driver | None) -> None:
    def load(name: str) -> Driver:
        assert name == "libcuda.so.1"
        if driver is None:
            raise OSError("libcuda.so.1: cannot open shared object file")
        return driver

    monkeypatch.setattr(ctypes, "CDLL", load)


class Compiler:
    """Stands for NVRTC; with an error it is not there."""

    version = "13.0"

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def __call__(self) -> Compiler:
        if self.error is not None:
            raise self.error
        return self


def set_libraries(
    monkeypatch: pytest.MonkeyPatch,
    compiler: Compiler | None = None,
    version: str = "14.1",
    count: Any = lambda: 2,
) -> None:
    cuda = types.SimpleNamespace(runtime=types.SimpleNamespace(getDeviceCount=count))
    monkeypatch.setitem(sys.modules, "cupy", module("cupy", __version__=version, cuda=cuda))
    monkeypatch.setattr(compiling, "nvrtc", compiler or Compiler())


def set_kernels(monkeypatch: pytest.MonkeyPatch, backend: Any, error: Exception | None = None) -> None:
    class CupyDriver(int):
        architecture = "sm_90a"
        library = types.SimpleNamespace(version="13.1.0")

        def check(self) -> None:
            if error is not None:
                raise error

    for name, contents in (
        ("fcdense.cuda.cupy_driver", {"CupyDriver": CupyDriver}),
        ("fcdense.backends.cuda", {"CudaBackend": backend}),
    ):
        monkeypatch.setitem(sys.modules, name, module(name, **contents))


def failure(name: str) -> str:
    """The detail of the probe that failed, which must be `name` and the last."""
    probes = cuda_probes()
    assert [p.name for p in probes if not p.passed] == [name]
    assert failed_probe() == probes[-1]
    assert all(p.detail for p in probes)
    return probes[-1].detail


def test_the_chain_ends_at_the_first_failure() -> None:
    names = [name for name, _ in probe.CHAIN]
    assert names == ["driver", "cupy", "compiler", "kernels"]
    found = [p.name for p in cuda_probes()]
    assert found == names[: len(found)]


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    set_driver(monkeypatch, None)
    assert "Install the NVIDIA driver; in Docker, run with --gpus all" in failure("driver")
    assert len(cuda_probes()) == 1
    with pytest.raises(OSError, match=r"libcuda\.so\.1"):
        gpu_count()


@pytest.mark.parametrize("driver", [Driver(count=0), Driver(status=probe.CUDA_ERROR_NO_DEVICE)])
def test_no_gpu(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    set_driver(monkeypatch, driver)
    assert "the driver sees no GPU. Check CUDA_VISIBLE_DEVICES" in failure("driver")
    assert gpu_count() == 0


def test_a_driver_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    set_driver(monkeypatch, Driver(status=803))
    assert "does not start (cuInit returned 803)" in failure("driver")


def test_no_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    set_driver(monkeypatch, Driver(count=2))
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "pip install 'fcdense[cuda13]'" in failure("cupy")
    assert cuda_probes()[0] == Probe("driver", True, "2 GPUs")


def test_a_cupy_that_does_not_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_driver(monkeypatch, Driver())
    (tmp_path / "cupy.py").write_text("raise ImportError('libcudart.so.13 is not there')")
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert failure("cupy") == "CuPy does not import: libcudart.so.13 is not there"
    assert cuda_probes()[0].detail == "1 GPU"


def test_a_cupy_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    set_driver(monkeypatch, Driver())
    set_libraries(monkeypatch, version="13.6.0")
    assert failure("cupy").startswith("CuPy 13.6.0 is too old, expected 14 or later. pip install 'fcdense[cuda13]'")


def test_a_cupy_that_is_too_new_for_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise RuntimeError("cudaErrorInsufficientDriver")

    set_driver(monkeypatch, Driver())
    set_libraries(monkeypatch, count=refuse)
    detail = failure("cupy")
    assert "CuPy 14.1 does not reach the GPU: cudaErrorInsufficientDriver. If its CUDA is newer" in detail
    assert "update the driver or pip install 'fcdense[cuda12]'" in detail


COMPILERS = {
    "NVRTC is not there: no file. pip install it.": DeviceError("NVRTC is not there: no file. pip install it."),
    "NVRTC does not load: libnvrtc.so.13. pip install 'fcdense[cuda13]' brings it.": OSError("libnvrtc.so.13"),
}


@pytest.mark.parametrize("detail", COMPILERS)
def test_a_compiler_that_is_not_there(detail: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_driver(monkeypatch, Driver())
    set_libraries(monkeypatch, compiler=Compiler(COMPILERS[detail]))
    assert failure("compiler") == detail


def test_sources_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    set_driver(monkeypatch, Driver())
    set_libraries(monkeypatch)
    monkeypatch.setattr(compiling, "headers", dict)
    assert "kernels/cuda/*.cuh, are not in this installation of fcdense. pip install --force" in failure("compiler")


FAILURES = {
    "cuda:0 is too old.": DeviceError("cuda:0 is too old."),
    "a kernel of fcdense does not run: RuntimeError('cudaErrorUnknown').": RuntimeError("cudaErrorUnknown"),
}


@pytest.mark.parametrize("detail", FAILURES)
def test_a_kernel_that_does_not_run(detail: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_driver(monkeypatch, Driver())
    set_libraries(monkeypatch)
    set_kernels(monkeypatch, object, FAILURES[detail])
    assert failure("kernels") == detail


@pytest.mark.skipif(not emulation.is_available(), reason="no g++ here")
def test_the_kernel_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = fake_cupy.install(monkeypatch, "86")
    assert probe._kernels() == (True, "a kernel of fcdense runs (sm_86), without cuBLASLt: cuBLASLt is not there.")
    machine.run = lambda *_: None
    passed, detail = probe._kernels()
    assert not passed
    assert detail.startswith("cuda:0 computes wrongly: 'next_stream' of")


def test_everything_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    set_driver(monkeypatch, Driver(count=2))
    set_libraries(monkeypatch)
    set_kernels(monkeypatch, object)
    assert failed_probe() is None
    details = [p.detail for p in cuda_probes()]
    kernels = "a kernel of fcdense runs (sm_90a), cuBLASLt 13.1.0"
    assert details == ["2 GPUs", "CuPy 14.1", "NVRTC 13.0", kernels]


def test_probes_are_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ask() -> tuple[bool, str]:
        asked.append("driver")
        return False, "no"

    monkeypatch.setattr(probe, "CHAIN", (("driver", ask),))
    for _ in range(3):
        assert failed_probe() == Probe("driver", False, "no")
    assert asked == ["driver"]
