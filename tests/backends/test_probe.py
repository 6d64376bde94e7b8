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


class Kernel:
    """CuPy's RawKernel; it compiles unless `error` is set."""

    error: Exception | None = None

    def __init__(self, source: str, name: str) -> None:
        assert f"void {name}(" in source

    def compile(self) -> None:
        if self.error is not None:
            raise self.error


class Cublas:
    """cupy_backends.cuda.libs.cublas, which counts its handles."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.handles = 0

    def create(self) -> int:
        if self.error is not None:
            raise self.error
        self.handles += 1
        return 17

    def getVersion(self, handle: int) -> int:  # noqa: N802
        assert handle == 17
        return 130000

    def destroy(self, handle: int) -> None:
        self.handles -= 1


def set_libraries(monkeypatch: pytest.MonkeyPatch, kernel: type[Kernel] = Kernel, cublas: Cublas | None = None) -> None:
    monkeypatch.setitem(sys.modules, "cupy", module("cupy", __version__="14.1", RawKernel=kernel))
    for name in ("cupy_backends", "cupy_backends.cuda"):
        monkeypatch.setitem(sys.modules, name, module(name))
    monkeypatch.setitem(
        sys.modules, "cupy_backends.cuda.libs", module("cupy_backends.cuda.libs", cublas=cublas or Cublas())
    )


def set_kernels(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    name, driver = "fcdense.backends.cuda", "fcdense.cuda.cupy_driver"
    monkeypatch.setitem(sys.modules, driver, None if backend is None else module(driver, CupyDriver=int))
    monkeypatch.setitem(sys.modules, name, module(name, CudaBackend=backend))


def failure(name: str) -> str:
    """The detail of the probe that failed, which must be `name` and the last."""
    probes = cuda_probes()
    assert [p.name for p in probes if not p.passed] == [name]
    assert failed_probe() == probes[-1]
    assert all(p.detail for p in probes)
    return probes[-1].detail


def test_the_chain_ends_at_the_first_failure() -> None:
    names = [name for name, _ in probe.CHAIN]
    assert names == ["driver", "cupy", "compiler", "cublas", "kernels"]
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


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Kernel):
        error = RuntimeError("libnvrtc.so.13 is not there")

    set_driver(monkeypatch, Driver())
    set_libraries(monkeypatch, kernel=Broken)
    assert "NVRTC cannot compile a kernel: libnvrtc.so.13 is not there" in failure("compiler")


@pytest.mark.parametrize("error", [ImportError("libcublas.so.13"), RuntimeError("CUBLAS_STATUS_NOT_INITIALIZED")])
def test_a_cublas_that_fails(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    set_driver(monkeypatch, Driver())
    set_libraries(monkeypatch, cublas=Cublas(error))
    assert f"cuBLAS does not load: {error}" in failure("cublas")


def test_no_cublas(monkeypatch: pytest.MonkeyPatch) -> None:
    set_driver(monkeypatch, Driver())
    set_libraries(monkeypatch)
    monkeypatch.setitem(sys.modules, "cupy_backends.cuda.libs", None)
    assert "cuBLAS does not load" in failure("cublas")


def test_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    set_driver(monkeypatch, Driver())
    set_libraries(monkeypatch)
    set_kernels(monkeypatch, None)
    assert failure("kernels") == "this release of fcdense does not launch its CUDA kernels yet."


def test_everything_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    cublas = Cublas()
    set_driver(monkeypatch, Driver(count=2))
    set_libraries(monkeypatch, cublas=cublas)
    set_kernels(monkeypatch, object)
    assert failed_probe() is None
    details = [p.detail for p in cuda_probes()]
    assert details == ["2 GPUs", "CuPy 14.1", "NVRTC compiles", "cuBLAS 130000", "fcdense's CUDA kernels"]
    assert cublas.handles == 0


def test_probes_are_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ask() -> tuple[bool, str]:
        asked.append("driver")
        return False, "no"

    monkeypatch.setattr(probe, "CHAIN", (("driver", ask),))
    for _ in range(3):
        assert failed_probe() == Probe("driver", False, "no")
    assert asked == ["driver"]
