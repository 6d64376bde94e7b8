"""Is there a GPU that fcdense can use? A chain of cheap probes, each with a sentence for the user when it fails."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from fcdense.errors import DeviceError

CUDA_ERROR_NO_DEVICE = 100
OLDEST_CUPY = 14


@dataclass(frozen=True)
class Probe:
    """One question and its answer: `passed` with what was found, or not, with the reason and the cure."""

    name: str
    passed: bool
    detail: str

    def __str__(self) -> str:
        return f"probe '{self.name}' {'passed' if self.passed else 'failed'}: {self.detail}"


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
    if int(cupy.__version__.partition(".")[0]) < OLDEST_CUPY:
        return False, (
            f"CuPy {cupy.__version__} is too old, expected {OLDEST_CUPY} or later. pip install 'fcdense[cuda13]' (or "
            "cuda12, as nvidia-smi names) in a fresh environment."
        )
    try:
        cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        return False, (
            f"CuPy {cupy.__version__} does not reach the GPU: {error}. If its CUDA is newer than the one that "
            "nvidia-smi names, update the driver or pip install 'fcdense[cuda12]' in a fresh environment."
        )
    return True, f"CuPy {cupy.__version__}"


def _compiler() -> tuple[bool, str]:
    from fcdense.cuda import compile as compiling

    if not compiling.headers():
        return False, (
            "the kernels' sources, kernels/cuda/*.cuh, are not in this installation of fcdense. pip install "
            "--force-reinstall fcdense brings them."
        )
    try:
        return True, f"NVRTC {compiling.nvrtc().version}"
    except DeviceError as error:
        return False, str(error)
    except Exception as error:
        return False, f"NVRTC does not load: {error}. pip install 'fcdense[cuda13]' brings it."


def _kernels() -> tuple[bool, str]:
    try:
        from fcdense.cuda.cupy_driver import CupyDriver

        driver = CupyDriver(0)
        driver.check()
    except DeviceError as error:
        return False, str(error)
    except Exception as error:
        return False, f"a kernel of fcdense does not run: {error!r}."
    library = f"cuBLASLt {driver.library.version}" if driver.library else f"without cuBLASLt: {driver.no_library}"
    return True, f"a kernel of fcdense runs ({driver.architecture}), {library}"


CHAIN: tuple[tuple[str, Callable[[], tuple[bool, str]]], ...] = (
    ("driver", _driver),
    ("cupy", _cupy),
    ("compiler", _compiler),
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
