"""Our products by `mma.sync` (`gemm_mma.cuh`), by the tiling and parts with which they are the fastest here."""

from __future__ import annotations

from fcdense.backends import device

from ..cases import Arrays, Case, Run
from ..families import by_family
from ..questions.products import Product

DEVICE = device("cuda")
VERSIONS: dict[str, str] = {}
KINDS = (Product,)


def prepare(case: Case, data: Arrays) -> Run | None:
    """Products."""
    return by_family(DEVICE, "mma", case, data)
