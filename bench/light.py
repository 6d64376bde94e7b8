"""The speed of light: the time of a case on a GPU if each kernel reached the rates that this very run has measured.

A kernel takes as long as its operations at the rate of the fastest product of that dtype, or as its bytes at the rate
of the fastest copy, ours or another, or as a kernel of one thread in a graph, whichever is the longest. Bytes are
counted as if every matrix were read or written once, activations and their derivatives took part in the products, and
nothing else were moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from fcdense.activation import Aux

from .results import Results, Row

ONE_TILE = 256
"""Classes up to which a product's tile holds whole rows, so that the loss needs no pass of its own."""
COPIES = ("copy", "memcpy")
"""The passes over memory that set the rate for bytes."""


class Kernel(NamedTuple):
    """The least that one kernel has to do."""

    flops: int
    nbytes: int


def forward(rows: int, inner: int, outer: int, itemsize: int, aux: Aux) -> Kernel:
    """y = f(x @ w + b), and f' where the backward pass needs it."""
    kept = 2 if aux == "derivative" else 1
    return Kernel(2 * rows * inner * outer, itemsize * (rows * inner + inner * outer + kept * rows * outer))


def input_gradient(rows: int, inner: int, outer: int, itemsize: int, aux: Aux) -> Kernel:
    """(dz @ w.T) * f', where f' is read, or y in its place."""
    moved = 1 if aux == "none" else 2
    return Kernel(2 * rows * inner * outer, itemsize * (rows * outer + inner * outer + moved * rows * inner))


def weight_gradient(rows: int, inner: int, outer: int, itemsize: int) -> Kernel:
    """x.T @ dz, of float32 at least."""
    return Kernel(2 * rows * inner * outer, itemsize * rows * (inner + outer) + max(itemsize, 4) * inner * outer)


def update(count: int, slots: int, itemsize: int) -> Kernel:
    """An optimizer's pass: parameters and slots are read and written, gradients are read, and where products are of 16
    bits a copy of the parameters is written."""
    held = max(itemsize, 4)
    return Kernel(0, count * (held * (3 + 2 * slots) + (itemsize if itemsize < held else 0)))


def prediction(rows: int, widths: Sequence[int], itemsize: int) -> Iterator[Kernel]:
    """The products of a network, of which nothing is kept."""
    for inner, outer in pairwise(widths):
        yield forward(rows, inner, outer, itemsize, "none")


def training(rows: int, widths: Sequence[int], itemsize: int, aux: Aux, slots: int) -> Iterator[Kernel]:
    """A training step: products forward and back, the loss where it is a pass of its own, the update."""
    layers = list(pairwise(widths))
    for inner, outer in layers[:-1]:
        yield forward(rows, inner, outer, itemsize, aux)
    yield forward(rows, *layers[-1], itemsize, "none")
    if widths[-1] > ONE_TILE:
        yield Kernel(0, 2 * itemsize * rows * widths[-1])
    for index, (inner, outer) in enumerate(layers):
        yield weight_gradient(rows, inner, outer, itemsize)
        if index:
            yield input_gradient(rows, inner, outer, itemsize, aux)
    yield update(sum(inner * outer for inner, outer in layers), slots, itemsize)


@dataclass(frozen=True)
class Rates:
    """What a run has measured.

    Attributes
    ----------
    flops : dict of float
        Operations per second of the fastest product of each dtype.
    nbytes : float
        Bytes per second of the fastest copy, read and written; 0 where none was measured.
    kernel : float
        Seconds from one kernel of a graph to the next; 0 where they were not measured.
    """

    flops: dict[str, float]
    nbytes: float
    kernel: float

    def seconds(self, row: Row) -> float | None:
        """The speed of light of a row; None where a rate is missing, or nothing was counted."""
        product = self.flops.get(row.case.get("dtype", ""), 0.0)
        if not row.is_on_gpu or not row.work or not self.nbytes or (row.flops and not product):
            return None
        return sum(
            max(flops / product if flops else 0.0, nbytes / self.nbytes, self.kernel) for flops, nbytes in row.work
        )


def rates(results: Results) -> Rates:
    """The rates of a run's own products, copies and graphs."""
    products: dict[str, float] = {}
    rows = [row for row in results.rows if row.is_on_gpu]
    for row in rows:
        if row.question == "products":
            dtype = row.case["dtype"]
            products[dtype] = max(products.get(dtype, 0.0), row.flops / row.median_s)
    copies = [row.nbytes / row.median_s for row in rows if row.case.get("what") in COPIES]
    kernels = [row.median_s for row in rows if row.case.get("how") == "kernel in a graph"]
    return Rates(products, max(copies, default=0.0), min(kernels, default=0.0))
