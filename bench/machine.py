"""What a measurement was made on and with: processor, memory, BLAS, GPU, versions, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl

import fcdense
from fcdense import backends

CHECKOUT = Path(__file__).resolve().parent.parent


def machine() -> dict[str, Any]:
    """The machine, as data for the results; None where a fact cannot be had."""
    return {
        "cpu": cpu(),
        "cores": cores(),
        "ram_bytes": ram(),
        "os": platform.platform(),
        "peak_gflops": None,  # measured only where a table shows it
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "blas": blas(),
        "gpu": gpu(),
    }


def cores() -> int:
    """The processor's cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()


def ram() -> int | None:
    """Bytes of memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):
        return None


def blas() -> dict[str, Any]:
    """NumPy's BLAS: what it was built with, and what of it is at work."""
    built: Any = np.show_config(mode="dicts")
    facts = built["Build Dependencies"]["blas"]
    found = {"name": facts["name"], "version": facts.get("version"), "threads": None, "architecture": None}
    pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    if pools:
        found |= {"threads": pools[0]["num_threads"], "architecture": pools[0].get("architecture")}
    return found


def gpu() -> dict[str, Any] | None:
    """The first GPU, where fcdense can use it, and what it is programmed with."""
    if not backends.cuda_probes()[-1].passed:
        return None
    from cupy.cuda import runtime

    from fcdense.backends.cuda import CudaBackend
    from fcdense.cuda.compile import nvrtc

    facts = runtime.getDeviceProperties(0)
    backend = backends.device("cuda").backend
    library = backend.driver.library if isinstance(backend, CudaBackend) else None
    return {
        "name": facts["name"].decode(),
        "architecture": f"sm_{facts['major']}{facts['minor']}",
        "multiprocessors": facts["multiProcessorCount"],
        "memory_bytes": facts["totalGlobalMem"],
        "l2_bytes": facts["l2CacheSize"],
        "driver": _output("nvidia-smi", "--id=0", "--query-gpu=driver_version", "--format=csv,noheader") or None,
        "cuda": runtime.driverGetVersion(),
        "runtime": runtime.runtimeGetVersion(),
        "nvrtc": nvrtc().version,
        "cublaslt": library.version if library else None,
    }


def versions() -> dict[str, str]:
    """Versions of Python, NumPy, fcdense and, where it is installed, CuPy."""
    found = {"python": platform.python_version(), "numpy": np.__version__, "fcdense": fcdense.__version__}
    for name in ("cupy", "cupy-cuda12x", "cupy-cuda13x"):
        try:
            found["cupy"] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of the checkout these files are in, "-dirty" at its end when tracked files have changed; else None.

    Results do not count: writing some does not make the code another one.
    """
    # An installation may lie inside of another project's checkout, whose commit says nothing.
    if not (CHECKOUT / "pyproject.toml").is_file():
        return None
    git = ("git", "-C", str(CHECKOUT))
    found = _output(*git, "describe", "--always", "--abbrev=12", "--exclude=*")
    changed = _output(*git, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results")
    return f"{found}-dirty" if found and changed else found or None


def date() -> str:
    """Now, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _output(*command: str) -> str:
    """What a command prints, or "" if it fails or is not there."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
