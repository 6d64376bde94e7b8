"""A lower bound: nothing but the matrix products of the case, with NumPy's BLAS, into arrays that are there already.

It is a bound for whoever calls that BLAS and stores weight gradients; fused kernels of one's own may go below it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cases import Arrays, Case, Run
from ..networks import Network

VERSIONS = {"numpy": np.__version__}

Product = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


def prepare(case: Case, data: Arrays) -> Run | None:
    """The products of a network's step."""
    if not isinstance(case, Network) or case.is_mixed:
        return None
    todo = products(case, data)

    def call() -> None:
        for a, b, out in todo:
            np.dot(a, b, out=out)

    return Run(call, dict)


def products(case: Network, data: Arrays) -> list[Product]:
    """(a, b, room for a @ b) of every product: forward, and for training the gradients, layer by layer.

    The first layer has no input gradient. What would be a transposed array is a transposed view.
    """
    normal = np.random.default_rng(0).standard_normal
    found: list[Product] = []
    x = data["x"]
    for index in range(len(case.widths) - 1):
        w = data[f"w{index}"]
        y = normal((case.batch, w.shape[1])).astype(w.dtype)
        found.append((x, w, np.empty_like(y)))
        if case.question == "train":
            found.append((x.T, y, np.empty_like(w)))
            if index:
                found.append((y, w.T, np.empty_like(x)))
        x = y
    return found
