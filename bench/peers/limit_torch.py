"""A lower bound as `limit_numpy`, with PyTorch's BLAS."""

from __future__ import annotations

import torch

from ..cases import Arrays, Case, Run
from ..networks import Network
from .limit_numpy import products
from .torch import VERSIONS as VERSIONS


def prepare(case: Case, data: Arrays) -> Run | None:
    """The products of a network's step."""
    if not isinstance(case, Network) or case.is_mixed:
        return None
    todo = [tuple(map(torch.from_numpy, product)) for product in products(case, data)]

    def call() -> None:
        for a, b, out in todo:
            torch.mm(a, b, out=out)

    return Run(call, dict)
