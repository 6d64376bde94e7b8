"""Translation units of matrix products."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from fcdense.cuda.functor import computed, functor, stored
from fcdense.cuda.geometry import Vector
from fcdense.cuda.source import ADDRESS, WORD, DType, Kernel, operands_of, struct, unit
from fcdense.cuda.tiling import MmaTiling, SimtTiling, Tiling
from fcdense.program import Program

PRODUCT = struct(
    a=ADDRESS, b=ADDRESS, a_row=WORD, a_column=WORD, b_row=WORD, b_column=WORD, rows="i4", columns="i4", depth="i4",
    part="i4",
)  # fmt: skip

ARITHMETIC = {
    "bfloat16": "Bfloat16Product",
    "float16": "HalfProduct",
    "tf32": "Tf32Product",
    "split": "SplitTf32Product",
}
"""How operands may be multiplied on tensor cores: the structs of fragments.cuh."""


class Epilogue(NamedTuple):
    """A program over the sums of a product, which are its input 0, and the dtypes of its operands."""

    program: Program
    inputs: tuple[DType, ...]
    outs: tuple[DType, ...]
    vector: Vector

    @property
    def text(self) -> str:
        """Its struct."""
        return functor(self.program, self.inputs, self.outs, self.vector.repeated)


@cache
def gemm_simt(
    dtype: DType, tiling: SimtTiling, a_along_depth: bool, b_along_depth: bool, epilogue: Epilogue, sums: DType
) -> Kernel:
    """A product of matrices of `dtype`, on any chip, with column sums that are stored as `sums`."""
    call = (
        f"gemm_simt<{stored(dtype)}, Tiling, {_word(a_along_depth)}, {_word(b_along_depth)}, "
        f"{epilogue.vector.width}, {stored(sums)}, Program>"
    )
    aliases = f"using Tiling = SimtTiling<{', '.join(map(str, tiling[:-1]))}>;\n"
    return _gemm("gemm_simt", aliases, call, tiling, tiling.shared(sum_type(dtype).itemsize), epilogue)


@cache
def gemm_mma(
    arithmetic: str,
    tiling: MmaTiling,
    a_along_depth: bool,
    b_along_depth: bool,
    copy: tuple[int, int],
    epilogue: Epilogue,
    sums: DType,
) -> Kernel:
    """A product on tensor cores, of operands of which `copy` bytes may be read at once, of A and of B."""
    call = (
        f"gemm_mma<{ARITHMETIC[arithmetic]}, Tiling, {_word(a_along_depth)}, {_word(b_along_depth)}, "
        f"{copy[0]}, {copy[1]}, {epilogue.vector.width}, {stored(sums)}, Program>"
    )
    aliases = f"using Tiling = MmaTiling<{', '.join(map(str, tiling[:-1]))}>;\n"
    itemsize = 4 if arithmetic in ("tf32", "split") else 2
    return _gemm("gemm_mma", aliases, call, tiling, tiling.shared(itemsize), epilogue)


def _gemm(name: str, aliases: str, call: str, tiling: Tiling, shared: int, epilogue: Epilogue) -> Kernel:
    text = unit(
        f"{name}.cuh", epilogue.text, aliases, "ProductAndProgram<Program>", tiling.threads, call, tiling.blocks
    )
    arguments = struct(
        product=PRODUCT, operands=operands_of(epilogue.program, 2), parts=ADDRESS, sums_of_tiles=ADDRESS, sums=ADDRESS,
        arrivals=ADDRESS, adds="i4",
    )  # fmt: skip
    return Kernel(f"{name} and {epilogue.program.name}", text, arguments, tiling.threads, shared)


def _word(value: bool) -> str:
    return str(value).lower()


def sum_type(dtype: DType) -> DType:
    """What products of this dtype are summed in."""
    return np.dtype(np.float64 if computed((dtype,), ()) == "double" else np.float32)
