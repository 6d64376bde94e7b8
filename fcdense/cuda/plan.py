"""Which kernel serves which product, and how it is cut: from a table of measurements, or else by counting.

`fcdense tune` writes the table. The numbers by which the others are chosen follow from counting blocks and bytes; none
of them is measured yet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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
LARGE_CHIPS = (80, 90, 100, 103)
"""Those of data centres. Their tensor cores take TF32 8 times as fast as the others take float32, and more than a third
of that is left for three products; on the others it is the same or twice as fast, and nothing is left (NVIDIA, white
papers of GA100, GA102, AD102, GH100, GB202). They have 160 KB of shared memory or more, the others 100."""

LIBRARY, NUMBA = "cuBLASLt", "numba"
"""Families with tilings of their own."""

FULL = 96
"""Blocks from which on a GPU counts as full: the smallest that are in use have 40 multiprocessors, the largest 148."""
WANTED = 256
MOST_PARTS = 16
"""The last block of a tile reads them all."""
LEAST_DEPTH = 128
"""Of a part: below it, writing and adding the parts costs more than it gains."""
SPLIT_FROM = 64
"""Rows, columns and depth from which on float32 products are taken as three products of TF32."""

LIBRARY_FROM = 2**27
"""Multiplications from which on the library's better use of Hopper's tensor cores pays for the pass that its product
needs for the program: mma.sync reaches 0.63 of their speed, the library 0.95."""
LIBRARY_DEPTH = 1720
"""The depth at which both are even: 2 d (1 / 0.63 - 1 / 0.95) / 230 operations a byte = 8 bytes for each sum."""


class Problem(NamedTuple):
    """C (rows, columns) = A (rows, depth) @ B (depth, columns), of operands of one dtype.

    Attributes
    ----------
    dtype : str
        Its name; "tf32" for float32 that may be rounded to it.
    copy : int
        How many bytes of a line of A and B may be read at once; 0 where one of them has no lines, because neither of
        its axes is contiguous.
    a_along_depth, b_along_depth : bool
        Whether those lines go along the depth.
    has_program : bool
        Whether more is computed than the product, or the product added to what is there.
    out : str
        The name of the dtype of what is stored.
    """

    dtype: str
    rows: int
    columns: int
    depth: int
    copy: int
    a_along_depth: bool
    b_along_depth: bool
    has_program: bool
    out: str

    @property
    def bucket(self) -> str:
        """What problems share a line of the table: sizes up to the same powers of two."""
        sizes = "x".join(str(1 << (size - 1).bit_length() if size else 0) for size in self[1:4])
        axes = "".join("dw"[not along] for along in (self.a_along_depth, self.b_along_depth))
        return f"{self.dtype} to {self.out} {sizes} {axes} {self.copy}{' program' if self.has_program else ''}"


class Choice(NamedTuple):
    """A family of kernels, what its operands are multiplied as, its tiling (the library has its own), and parts.

    The depth is cut in about `parts` parts.
    """

    family: str
    arithmetic: str
    tiling: Tiling | None = None
    parts: int = 1

    def __str__(self) -> str:
        if self.tiling is None:
            return f"{self.family} {self.arithmetic}"
        cut = f"{self.tiling.rows} x {self.tiling.columns} x {self.tiling.depth}"
        return f"{self.family} {self.arithmetic}, {cut}{f', {self.parts} parts' if self.parts > 1 else ''}"

    def part(self, depth: int) -> int:
        """The depth of a part: a multiple of the tiling's."""
        assert self.tiling is not None
        return max(1, blocks(blocks(depth, self.parts), self.tiling.depth)) * self.tiling.depth


def number(architecture: str) -> int:
    """Of a chip: 90 for "sm_90a", and for what is no chip."""
    found = re.fullmatch(r"sm_(\d+)[a-z]?", architecture)
    return int(found[1]) if found else 90


class Plan:
    """The choices for one GPU.

    Parameters
    ----------
    architecture : str
    has_library : bool
        Whether cuBLASLt may be chosen.
    has_numba : bool
        Whether the kernel in Python may be chosen, where it was measured to be the fastest.
    table : mapping of str to Choice
        What was measured, by `Problem.bucket`.
    """

    def __init__(
        self,
        architecture: str,
        has_library: bool = False,
        has_numba: bool = False,
        table: Mapping[str, Choice] | None = None,
    ) -> None:
        self._number = number(architecture)
        self._has = {LIBRARY: has_library, NUMBA: has_numba}
        self._table = dict(table or {})

    def learn(self, measured: Mapping[str, Choice]) -> None:
        """Choose from now on what was measured, by `Problem.bucket`."""
        self._table.update(measured)

    def choose(self, problem: Problem) -> Choice:
        """What serves a product."""
        measured = self._table.get(problem.bucket)
        if measured is not None and self._serves(measured, problem):
            return measured
        if self._has[LIBRARY] and self._prefers_library(problem):
            return Choice(LIBRARY, problem.dtype)
        return self.choose_own(problem)

    def why(self, problem: Problem, choice: Choice) -> str:
        """What a choice follows from, in a few words."""
        if choice == self._table.get(problem.bucket):
            return "as measured"
        families = {candidate.family for candidate in self.candidates(problem)}
        return "by rule" if len(families) > 1 else "as no other family takes these operands"

    def choose_own(self, problem: Problem) -> Choice:
        """Which of our kernels serves a product."""
        arithmetic = self._arithmetic(problem)
        if arithmetic is None or (arithmetic == "split" and self._number not in LARGE_CHIPS):
            simt = _simt(problem)
            return Choice("simt", problem.dtype, simt, _parts(problem, simt))
        *large, small = self._tilings(arithmetic)
        for tiling in large:
            if min(problem.rows // tiling.rows, problem.columns // tiling.columns) and _blocks(problem, tiling) >= FULL:
                return Choice("mma", arithmetic, tiling, _parts(problem, tiling))
        return Choice("mma", arithmetic, small, _parts(problem, small))

    def candidates(self, problem: Problem) -> list[Choice]:
        """All that can serve a product."""
        arithmetic = self._arithmetic(problem)
        tilings: list[Tiling] = [SIMT_DOUBLE] if problem.dtype == "float64" else [SIMT_LARGE, SIMT_SMALL]
        families = [("simt", problem.dtype, tiling) for tiling in tilings]
        if arithmetic is not None:
            families += [("mma", arithmetic, tiling) for tiling in self._tilings(arithmetic)]
        found = [Choice(LIBRARY, problem.dtype)] if self._has[LIBRARY] else []
        if self._has[NUMBA] and problem.dtype in ("float32", "float64"):
            found.append(Choice(NUMBA, problem.dtype))
        for family, name, tiling in families:
            enough = 8 * FULL // max(_tiles(problem, tiling), 1)
            most = max(1, min(problem.depth // LEAST_DEPTH, MOST_PARTS, enough))
            found += [Choice(family, name, tiling, 1 << k) for k in range(most.bit_length())]
        return found

    def _serves(self, choice: Choice, problem: Problem) -> bool:
        """Whether a choice for other problems of the same bucket is one for this."""
        if choice.tiling is None:
            return self._has[choice.family]
        return choice.arithmetic in (problem.dtype if choice.family == "simt" else None, self._arithmetic(problem))

    def _tilings(self, arithmetic: str) -> list[MmaTiling]:
        """Those for this chip, the smallest one last."""
        tilings = MMA[arithmetic] if self._number >= 80 else MMA[arithmetic][1:]
        if self._number in LARGE_CHIPS:
            return list(tilings)
        return [tiling._replace(stages=3) for tiling in tilings]  # so that as many blocks fit into shared memory

    def _prefers_library(self, problem: Problem) -> bool:
        size = problem.rows * problem.columns * problem.depth
        if size < LIBRARY_FROM or min(problem.rows, problem.columns) == 1:
            return False
        if problem.dtype == "float64":
            return self._number in (80, 90, 100)  # which have tensor cores for it
        wants = problem.depth >= LIBRARY_DEPTH if problem.has_program else True
        return problem.dtype in ("float16", "bfloat16", "tf32") and 90 <= self._number < 120 and wants

    def _arithmetic(self, problem: Problem) -> str | None:
        """What tensor cores multiply the operands as; None if they do not."""
        if not problem.copy:
            return None
        name = problem.dtype
        if name == "float32" and min(problem.rows, problem.columns, problem.depth) >= SPLIT_FROM:
            name = "split"
        return name if self._number >= FIRST_ARCHITECTURE.get(name, 1000) else None


def _simt(problem: Problem) -> SimtTiling:
    if problem.dtype == "float64":
        return SIMT_DOUBLE
    return SIMT_LARGE if _tiles(problem, SIMT_LARGE) >= FULL else SIMT_SMALL


def _tiles(problem: Problem, tiling: Tiling) -> int:
    return blocks(problem.rows, tiling.rows) * blocks(problem.columns, tiling.columns)


def _blocks(problem: Problem, tiling: Tiling) -> int:
    return _parts(problem, tiling) * _tiles(problem, tiling)


def _parts(problem: Problem, tiling: Tiling) -> int:
    """In how many parts the depth is cut so that there is work for the whole GPU."""
    wanted = 1 if _tiles(problem, tiling) >= FULL else blocks(WANTED, max(_tiles(problem, tiling), 1))
    return max(1, min(wanted, problem.depth // LEAST_DEPTH, MOST_PARTS))
