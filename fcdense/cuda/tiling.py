"""How a matrix product is cut into blocks, warps and threads: the template arguments of `kernels/cuda/gemm_*.cuh`."""

from __future__ import annotations

from typing import NamedTuple


class SimtTiling(NamedTuple):
    """Rows, columns and depth of a block, rows and columns of a thread, and blocks that fit on a multiprocessor."""

    rows: int
    columns: int
    depth: int
    thread_rows: int
    thread_columns: int
    blocks: int

    @property
    def threads(self) -> int:
        """Of a block."""
        return self.rows // self.thread_rows * (self.columns // self.thread_columns)

    def shared(self, itemsize: int) -> int:
        """Bytes of shared memory, for sums of `itemsize` bytes."""
        return self.depth * (self.rows + 4 + self.columns + 4) * itemsize


class MmaTiling(NamedTuple):
    """Rows, columns and depth of a block, rows and columns of a warp, tiles that are under way or in use, and blocks
    that fit on a multiprocessor."""

    rows: int
    columns: int
    depth: int
    warp_rows: int
    warp_columns: int
    stages: int
    blocks: int

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * (self.rows // self.warp_rows) * (self.columns // self.warp_columns)

    def shared(self, itemsize: int) -> int:
        """Bytes of shared memory, for operands of `itemsize` bytes; the sums pass through it afterwards."""
        slab = 16 * (self.rows // self.warp_rows) * (self.columns + 8) * 4
        return max(self.stages * self.depth * (self.rows + self.columns) * itemsize, slab)


Tiling = SimtTiling | MmaTiling
