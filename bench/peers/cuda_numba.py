"""Our products by the kernel in Python (`gpu_dense.py`), up to 100 GFLOP: it is there to be read, not to win."""

from __future__ import annotations

from importlib.metadata import version

from fcdense.backends import device

from ..cases import Arrays, Case, Run
from ..families import by_family

DEVICE = device("cuda")
VERSIONS = {"numba-cuda": version("numba-cuda")}
MOST_FLOPS = 10**11


def prepare(case: Case, data: Arrays) -> Run | None:
    """Products of float32 and float64."""
    return by_family(DEVICE, "numba", case, data) if case.flops <= MOST_FLOPS else None
