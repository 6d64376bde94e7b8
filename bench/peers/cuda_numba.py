"""Our products by the kernel in Python (`gpu_dense.py`), up to 100 GFLOP: it is there to be read, not to win."""

from __future__ import annotations

from importlib.metadata import version

import numba.cuda.np.arrayobj  # noqa: F401  (what the compiler needs first, and some NumPys lack)

from fcdense.backends import device

from ..cases import Arrays, Case, Run
from ..families import by_family
from ..questions.products import Product

DEVICE = device("cuda")
VERSIONS = {"numba-cuda": version("numba-cuda")}
KINDS = (Product,)
MOST_FLOPS = 10**11


def prepare(case: Case, data: Arrays) -> Run | None:
    """Products of float32 and float64."""
    return by_family(DEVICE, "numba", case, data) if case.flops <= MOST_FLOPS else None
