"""Matrix products as launches: the kernel that `plan` chooses, with a program over the sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fcdense.arena import Array
from fcdense.cuda import gemm_source
from fcdense.cuda.gemm_source import SUM_ROWS, Epilogue, sum_type
from fcdense.cuda.geometry import Vector, blocks, strides_in
from fcdense.cuda.launcher import Launcher
from fcdense.cuda.plan import Choice, Problem, choose
from fcdense.cuda.source import Kernel, dtypes
from fcdense.cuda.tiling import MmaTiling, SimtTiling
from fcdense.program import Program, trace

SUM = trace(lambda z: z, 1, name="product")
ADDED = trace(lambda z, c: z + c, 2, name="added_product")


class Matrix:
    """An operand of a product: its address, its strides, and along which axis its numbers follow each other.

    Attributes
    ----------
    along_depth : bool
        Whether a line of contiguous numbers goes along the depth.
    copy : int
        Bytes of a line that may be read at once, up to 16; 0 if neither axis is contiguous.
    """

    def __init__(self, array: Array, address: int, depth_axis: int) -> None:
        itemsize = array.dtype.itemsize
        self.address = address
        self.row, self.column = (step // itemsize for step in array.strides)
        steps = [step if length > 1 else None for step, length in zip(array.strides, array.shape, strict=True)]
        depth, width = steps[depth_axis], steps[1 - depth_axis]
        self.along_depth = depth == itemsize or (depth is None and width != itemsize)
        along, line = (depth, width) if self.along_depth else (width, depth)
        self.copy = math.gcd(16, line or 0, address) if along in (None, itemsize) else 0


class Products:
    """Products by the kernels of one launcher."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher

    def run(
        self,
        a: Array,
        b: Array,
        program: Program,
        inputs: Sequence[Array],
        outs: Sequence[Array],
        sums: Array | None = None,
        adds: bool = False,
    ) -> None:
        """The outputs of `program`, whose input 0 is a @ b.

        `sums` receives the column sums of output 0, or has them added where it `adds`.
        """
        (rows, depth), columns, dtype = a.shape, b.shape[1], a.dtype
        if not rows or not columns:
            if sums is not None and not adds:
                self._launcher.reduce("sum", outs[0], (0,), sums)
            return
        address = self._launcher.driver.address
        left, right = Matrix(a, address(a), 1), Matrix(b, address(b), 0)
        copy = min(left.copy, right.copy)
        choice = choose(Problem(dtype.name, rows, columns, depth, copy), self._launcher.driver.architecture)
        parts = max(1, blocks(depth, choice.part))
        down = blocks(rows, choice.tiling.rows if parts == 1 else SUM_ROWS)
        partial = None if sums is None else self._launcher.empty((down, columns), sum_type(dtype))
        if parts == 1:
            self._gemm(choice, left, right, a, program, inputs, outs, partial)
        else:
            sized = self._launcher.empty((parts * rows, columns), sum_type(dtype))
            self._gemm(choice, left, right, a, SUM, (), (sized,), None)
            self._sum_parts(sized, parts, program, dtype, inputs, outs, partial)
        if sums is not None:
            self._launcher.reduce("sum", partial, (0,), sums, adds=adds)

    def _gemm(
        self,
        choice: Choice,
        left: Matrix,
        right: Matrix,
        a: Array,
        program: Program,
        inputs: Sequence[Array],
        outs: Sequence[Array],
        sums: Array | None,
    ) -> None:
        rows, depth = a.shape
        columns = outs[0].shape[-1]
        epilogue, operands = self._epilogue(program, a.dtype, inputs, outs, (rows, columns))
        kernel = self._kernel(choice, a.dtype, left, right, epilogue)
        product = {"a": left.address, "b": right.address, "a_row": left.row, "a_column": left.column}
        product |= {"b_row": right.row, "b_column": right.column, "rows": rows, "columns": columns}
        product |= {"depth": depth, "part": choice.part}
        tiles = blocks(rows, choice.tiling.rows) * blocks(columns, choice.tiling.columns)
        grid = tiles, 1, max(1, blocks(depth, choice.part))
        self._launcher.launch(kernel, grid, product=product, operands=operands, sums=self._address(sums))

    @staticmethod
    def _kernel(choice: Choice, dtype: np.dtype[Any], left: Matrix, right: Matrix, epilogue: Epilogue) -> Kernel:
        along = left.along_depth, right.along_depth
        if isinstance(choice.tiling, SimtTiling):
            return gemm_source.gemm_simt(dtype, choice.tiling, *along, epilogue)
        assert isinstance(choice.tiling, MmaTiling)
        copy = min(left.copy, right.copy)
        return gemm_source.gemm_mma(choice.arithmetic, choice.tiling, *along, copy, epilogue)

    def _sum_parts(
        self,
        sized: Array,
        parts: int,
        program: Program,
        dtype: np.dtype[Any],
        inputs: Sequence[Array],
        outs: Sequence[Array],
        sums: Array | None,
    ) -> None:
        rows, columns = outs[0].shape
        epilogue, operands = self._epilogue(program, dtype, inputs, outs, (rows, columns))
        kernel = gemm_source.sum_parts(epilogue)
        self._launcher.launch(
            kernel,
            (blocks(columns, 32 * epilogue.vector.width), blocks(rows, SUM_ROWS), 1),
            parts=self._address(sized),
            rows=rows,
            columns=columns,
            count=parts,
            operands=operands,
            sums=self._address(sums),
        )

    def _epilogue(
        self,
        program: Program,
        dtype: np.dtype[Any],
        inputs: Sequence[Array],
        outs: Sequence[Array],
        shape: tuple[int, int],
    ) -> tuple[Epilogue, dict[str, Any]]:
        """The program for these operands, and their fields; its input 0 is a sum, of which the kernel knows."""
        strides = [strides_in(array, shape) for array in (*inputs, *outs)]
        vector = self._launcher.vector(shape[1], inputs, outs, strides)
        vector = Vector(vector.width, frozenset(k + 1 for k in vector.repeated))
        fields = self._launcher.operands((None, *inputs), outs, [(0, 0), *strides], ())
        return Epilogue(program, (dtype, *dtypes(inputs)), dtypes(outs), vector), fields

    def _address(self, array: Array | None) -> int:
        return 0 if array is None else self._launcher.driver.address(array)
