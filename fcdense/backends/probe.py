"""Is there a GPU that fcdense can use? A chain of cheap probes, each with a sentence for the user when it fails."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

CUDA_ERROR_NO_DEVICE = 100


@dataclass(frozen=True)
class Probe:
    """One question and its answer: `passed` with what was found, or not, with the reason and the cure."""

    name: str
    passed: bool
    detail: str


def gpu_count() -> int:
    """GPUs that the driver shows to this process; asked of the driver itself, 0.2 ms, no CuPy needed.

    Raises OSError when there is no driver and RuntimeError when it does not start.
    """
    driver = ctypes.CDLL("libcuda.so.1")
    status = driver.cuInit(0)
    if status not in (0, CUDA_ERROR_NO_DEVICE):
        raise RuntimeError(f"cuInit returned {status}")
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    return count.value


def _driver() -> tuple[bool, str]:
    try:
        count = gpu_count()
    except OSError:
        return False, "libcuda.so.1 is not there. Install the NVIDIA driver; in Docker, run with --gpus all."
    except RuntimeError as error:
        return False, f"the NVIDIA driver does not start ({error}). Is it newer than the kernel module?"
    if count == 0:
        return False, "the driver sees no GPU. Check CUDA_VISIBLE_DEVICES and nvidia-smi."
    return True, f"{count} GPU{'s' if count > 1 else ''}"


def _cupy() -> tuple[bool, str]:
    if importlib.util.find_spec("cupy") is None:
        return False, "CuPy is not installed. pip install 'fcdense[cuda13]' (or cuda12, as nvidia-smi names)."
    try:
        import cupy
    except Exception as error:
        return False, f"CuPy does not import: {error}"
    return True, f"CuPy {cupy.__version__}"


def _compiler() -> tuple[bool, str]:
    import cupy

    try:
        cupy.RawKernel('extern "C" __global__ void probe(float* x) { x[0] = 1.0f; }', "probe").compile()
    except Exception as error:
        return False, f"NVRTC cannot compile a kernel: {error}. pip install 'fcdense[cuda13]' brings it."
    return True, "NVRTC compiles"


def _cublas() -> tuple[bool, str]:
    try:
        from cupy_backends.cuda.libs import cublas

        handle = cublas.create()
        version = cublas.getVersion(handle)
        cublas.destroy(handle)
    except Exception as error:
        return False, f"cuBLAS does not load: {error}. pip install 'fcdense[cuda13]' brings it."
    return True, f"cuBLAS {version}"


def _kernels() -> tuple[bool, str]:
    if importlib.util.find_spec("fcdense.cuda.cupy_driver") is None:
        return False, "this release of fcdense does not launch its CUDA kernels yet."
    return True, "fcdense's CUDA kernels"


CHAIN: tuple[tuple[str, Callable[[], tuple[bool, str]]], ...] = (
    ("driver", _driver),
    ("cupy", _cupy),
    ("compiler", _compiler),
    ("cublas", _cublas),
    ("kernels", _kernels),
)


@cache
def cuda_probes() -> tuple[Probe, ...]:
    """The probes' answers, asked once per process, up to and including the first that fails."""
    answers: list[Probe] = []
    for name, ask in CHAIN:
        passed, detail = ask()
        answers.append(Probe(name, passed, detail))
        if not passed:
            break
    return tuple(answers)


def failed_probe() -> Probe | None:
    """The probe that stands between this process and the GPU, or None."""
    last = cuda_probes()[-1]
    return None if last.passed else last
