"""Which kernel serves which product, and how it is cut.

The numbers here follow from counting blocks and bytes; none of them is measured yet.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from fcdense.cuda.geometry import blocks
from fcdense.cuda.tiling import MmaTiling, SimtTiling, Tiling

SIMT_LARGE = SimtTiling(128, 128, 8, 8, 8, 1)
SIMT_SMALL = SimtTiling(64, 64, 16, 4, 4, 2)
SIMT_DOUBLE = SimtTiling(64, 64, 8, 4, 4, 2)

OF_16_BITS = MmaTiling(128, 128, 32, 64, 32, 4, 2), MmaTiling(64, 64, 32, 32, 32, 4, 4)
MMA = {
    "bfloat16": OF_16_BITS,
    "float16": OF_16_BITS,
    "tf32": (MmaTiling(128, 128, 16, 64, 32, 4, 1), MmaTiling(64, 64, 16, 32, 32, 4, 3)),
    "split": (MmaTiling(128, 64, 16, 32, 32, 4, 1), MmaTiling(64, 64, 16, 32, 32, 4, 2)),
}
"""Large and small ones, by what operands are multiplied as."""

FIRST_ARCHITECTURE = {"float16": 75, "bfloat16": 80, "tf32": 80, "split": 80}
"""The oldest chips whose tensor cores multiply so."""

FULL = 96
"""Blocks from which on a GPU counts as full: the smallest that are in use have 40 multiprocessors, the largest 148."""
WANTED = 128
MOST_PARTS = 32
LEAST_DEPTH = 128
"""Of a part: below it, writing and adding the parts costs more than it gains."""
SPLIT_FROM = 64
"""Rows, columns and depth from which on float32 products are taken as three products of TF32."""


class Problem(NamedTuple):
    """C (rows, columns) = A (rows, depth) @ B (depth, columns), of operands of one dtype.

    `copy` is how many bytes of a line of A and B may be read at once; 0 where one of them has no lines, because
    neither of its axes is contiguous.
    """

    dtype: str
    rows: int
    columns: int
    depth: int
    copy: int


class Choice(NamedTuple):
    """A family of kernels, what its operands are multiplied as, its tiling, and the depth of a part."""

    family: str
    arithmetic: str
    tiling: Tiling
    part: int

    def __str__(self) -> str:
        cut = f"{self.tiling.rows} x {self.tiling.columns} x {self.tiling.depth}"
        return f"{self.family} {self.arithmetic}, {cut}"


def number(architecture: str) -> int:
    """Of a chip: 90 for "sm_90a". What is no chip can do all that the newest can."""
    found = re.fullmatch(r"sm_(\d+)[a-z]?", architecture)
    return int(found[1]) if found else 120


def choose(problem: Problem, architecture: str) -> Choice:
    """The kernel for a product on such a chip."""
    arithmetic = _arithmetic(problem, architecture)
    if arithmetic is None:
        tiling = _simt(problem)
        return Choice("simt", problem.dtype, tiling, _part(problem, tiling))
    large, small = MMA[arithmetic]
    fits = problem.rows >= large.rows and problem.columns >= large.columns and number(architecture) >= 80
    chosen = large if fits and _parts(problem, large) * _tiles(problem, large) >= FULL else small
    return Choice("mma", arithmetic, chosen, _part(problem, chosen))


def _arithmetic(problem: Problem, architecture: str) -> str | None:
    """What tensor cores multiply the operands as; None if they do not."""
    if not problem.copy:
        return None
    name = problem.dtype
    if name == "float32" and min(problem.rows, problem.columns, problem.depth) >= SPLIT_FROM:
        name = "split"
    return name if number(architecture) >= FIRST_ARCHITECTURE.get(name, 1000) else None


def _simt(problem: Problem) -> SimtTiling:
    if problem.dtype == "float64":
        return SIMT_DOUBLE
    return SIMT_LARGE if _tiles(problem, SIMT_LARGE) >= FULL else SIMT_SMALL


def _tiles(problem: Problem, tiling: Tiling) -> int:
    return blocks(problem.rows, tiling.rows) * blocks(problem.columns, tiling.columns)


def _parts(problem: Problem, tiling: Tiling) -> int:
    """In how many parts the depth is cut so that there is work for the whole GPU."""
    wanted = 1 if _tiles(problem, tiling) >= FULL else blocks(WANTED, max(_tiles(problem, tiling), 1))
    return max(1, min(wanted, problem.depth // LEAST_DEPTH, MOST_PARTS))


def _part(problem: Problem, tiling: Tiling) -> int:
    return max(1, blocks(blocks(problem.depth, _parts(problem, tiling)), tiling.depth)) * tiling.depth
