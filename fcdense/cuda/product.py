"""Matrix products as launches: the kernel that `plan` chooses, with a program over the sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from fcdense import loops
from fcdense.arena import Array
from fcdense.cuda import gemm_source
from fcdense.cuda.cublaslt_types import Operand, Product
from fcdense.cuda.gemm_source import Epilogue, sum_type
from fcdense.cuda.geometry import Vector, blocks, strides_in
from fcdense.cuda.launcher import Launcher
from fcdense.cuda.plan import LIBRARY, NUMBA, Choice, Plan, Problem
from fcdense.cuda.source import Kernel, dtypes
from fcdense.cuda.tiling import MmaTiling, SimtTiling
from fcdense.errors import ShapeError
from fcdense.precision import TF32, current_precision
from fcdense.program import Program, trace

LONGEST = (1 << 31) - 128
"""An axis: kernels count in 32 bits, up to the end of a tile."""

SUM = trace(lambda z: z, 1, name="product")
ADDED = trace(lambda z, c: z + c, 2, name="added_product")


def multiplied_as(dtype: np.dtype[Any]) -> str:
    """What operands of a dtype are multiplied as here: "tf32" for float32 where that was chosen."""
    return TF32 if dtype == np.float32 and current_precision() == TF32 else dtype.name


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
        steps = [step if length > 1 else None for step, length in zip(array.strides, array.shape, strict=True)]
        self.row, self.column = ((step or 0) // itemsize for step in steps)  # so that lines beyond are aligned as well
        depth, width = steps[depth_axis], steps[1 - depth_axis]
        self.along_depth = depth == itemsize or (depth is None and width != itemsize)
        along, line = (depth, width) if self.along_depth else (width, depth)
        self.copy = math.gcd(16, line or 0, address) if along in (None, itemsize) else 0


class Products:
    """Products by what `plan` chooses, on the driver of one launcher.

    Attributes
    ----------
    plan : Plan
    served : str
        What served the last one.
    """

    def __init__(self, launcher: Launcher, plan: Plan) -> None:
        self._launcher = launcher
        self.plan = plan
        self.served = ""
        self._reason: Callable[[], str] = str

    @property
    def why(self) -> str:
        """Why that served the last one, in a few words."""
        return self._reason()

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
        rows, columns = outs[0].shape
        if not rows or not columns:
            if sums is not None and not adds:
                self._launcher.reduce("sum", outs[0], (0,), sums)
            return
        if max(*a.shape, columns) > LONGEST:
            raise ShapeError(
                f"A product of {a.shape} and {b.shape} is too large for a GPU: axes are at most {LONGEST:,} long here."
            )
        address = self._launcher.driver.address
        left, right = Matrix(a, address(a), 1), Matrix(b, address(b), 0)
        along, copy = (left.along_depth, right.along_depth), min(left.copy, right.copy)
        has_program = program not in (SUM, ADDED)
        stored = outs[0].dtype.name
        problem = Problem(multiplied_as(a.dtype), rows, columns, a.shape[1], copy, *along, has_program, stored)
        choice = self.plan.choose(problem)
        self._reason = partial(self.plan.why, problem, choice)
        others = {LIBRARY: self._by_library, NUMBA: self._by_numba}
        if choice.tiling is None and not others[choice.family](a, b, program, inputs, outs):
            refusal = f"as {choice.family} does not take it"
            self._reason = lambda: refusal
            choice = self.plan.choose_own(problem)
        self.served = str(choice)
        if choice.tiling is not None:
            self._by_kernels(choice, left, right, a, program, inputs, outs, sums, adds)
        elif sums is not None:
            self._launcher.reduce("sum", outs[0], (0,), sums, adds=adds)

    def _by_library(self, a: Array, b: Array, program: Program, inputs: Sequence[Array], outs: Sequence[Array]) -> bool:
        """The product by cuBLASLt, and the program in a pass of its own; False where the library refuses it."""
        driver = self._launcher.driver
        alone = program in (SUM, ADDED)
        target = outs[0] if alone else self._launcher.empty(outs[0].shape, sum_type(a.dtype))
        is_tf32 = multiplied_as(a.dtype) == TF32
        left, right, out = map(self._operand, (a, b, target))
        product = Product(left, right, out, accumulate=program is ADDED, tf32=is_tf32)
        if driver.library is None or driver.library.refusal(product):
            return False
        driver.enqueue(partial(driver.library.run, product, lane=self._launcher.lane))
        if not alone:
            self._launcher.elementwise(program, (target, *inputs), (), outs)
        return True

    def _by_numba(self, a: Array, b: Array, program: Program, inputs: Sequence[Array], outs: Sequence[Array]) -> bool:
        """The product and the program by the kernel in Python; False where it cannot take them."""
        if not loops.supports(program, a.dtype):  # all operands have this dtype, unless it has 16 bits
            return False
        from fcdense.kernels.numba import gpu_dense

        product = partial(gpu_dense.product, a, b, loops.element(program, a.dtype), inputs, outs=outs)
        self._launcher.driver.enqueue(lambda stream: product(stream=stream))
        return True

    def _operand(self, array: Array) -> Operand:
        (rows, columns), (row, column) = array.shape, (step // array.dtype.itemsize for step in array.strides)
        return Operand(self._launcher.driver.address(array), rows, columns, row, column, array.dtype)

    def _by_kernels(
        self,
        choice: Choice,
        left: Matrix,
        right: Matrix,
        a: Array,
        program: Program,
        inputs: Sequence[Array],
        outs: Sequence[Array],
        sums: Array | None,
        adds: bool,
    ) -> None:
        """The same by one of our kernels."""
        tiling, summed = choice.tiling, sum_type(a.dtype)
        assert tiling is not None
        (rows, depth), columns, part = a.shape, outs[0].shape[1], choice.part(a.shape[1])
        down, along, parts = blocks(rows, tiling.rows), blocks(columns, tiling.columns), max(1, blocks(depth, part))
        epilogue, operands = self._epilogue(program, a.dtype, inputs, outs, (rows, columns))
        kernel = self._kernel(choice, a.dtype, left, right, epilogue, summed if sums is None else sums.dtype)
        product = {"a": left.address, "b": right.address, "a_row": left.row, "a_column": left.column}
        product |= {"b_row": right.row, "b_column": right.column, "rows": rows, "columns": columns}
        fields: dict[str, Any] = {"product": product | {"depth": depth, "part": part}, "operands": operands}
        empty, address = self._launcher.empty, self._launcher.driver.address
        of_parts = empty((parts, down * along, tiling.rows * tiling.columns), summed) if parts > 1 else None
        of_tiles = empty((down, columns), summed) if sums is not None else None
        if of_parts is not None:
            fields["parts"] = address(of_parts)
        if sums is not None:
            fields |= {"sums_of_tiles": address(of_tiles), "sums": address(sums), "adds": int(adds)}
        if of_parts is not None or sums is not None:
            fields["arrivals"] = address(self._launcher.arrivals(down * along + along))
        self._launcher.launch(kernel, (down * along, 1, parts), **fields)

    @staticmethod
    def _kernel(
        choice: Choice, dtype: np.dtype[Any], left: Matrix, right: Matrix, epilogue: Epilogue, sums: np.dtype[Any]
    ) -> Kernel:
        along = left.along_depth, right.along_depth
        if isinstance(choice.tiling, SimtTiling):
            return gemm_source.gemm_simt(dtype, choice.tiling, *along, epilogue, sums)
        assert isinstance(choice.tiling, MmaTiling)
        copy = left.copy, right.copy
        return gemm_source.gemm_mma(choice.arithmetic, choice.tiling, *along, copy, epilogue, sums)

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
