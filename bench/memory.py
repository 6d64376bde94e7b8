"""Memory: what this process holds, and how much at most while something runs. Linux only."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

from fcdense.errors import ArgumentError

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident() -> int:
    """Bytes of physical memory that this process has now."""
    return _read("VmRSS")


def peak(work: Callable[[], object]) -> int:
    """Bytes of physical memory that this process has at most while `work` runs.

    What was freed before is given back to the system first, so that it does not count.
    """
    _read("VmHWM")  # an error where there is none, before anything is run
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc has it, musl has not
        libc.malloc_trim(0)
    RESET.write_text("5", encoding="ascii")
    work()
    return _read("VmHWM")


def _read(name: str) -> int:
    """A number of kB from /proc/self/status, in bytes."""
    if not STATUS.is_file():
        raise ArgumentError("Memory is read from /proc/self/status, which only Linux has; measure without --memory.")
    for line in STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise ArgumentError(f"/proc/self/status has no line {name}; measure without --memory.")
