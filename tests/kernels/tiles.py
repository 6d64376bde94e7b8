"""Call compiled kernels on NumPy arrays. Tests that import this file skip where Numba is missing."""

from __future__ import annotations

import ctypes
import warnings
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

from fcdense import loops
from fcdense.kernels.numba import compiled, rows
from fcdense.program import Program


def call(source: str, *args: int) -> None:
    """Call the kernel of a source."""
    ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * len(args))(compiled.load(source).address)(*args)


def words(*values: Any) -> np.ndarray:
    """The argument words: addresses of arrays, integers, and the bits of floats."""
    return np.array([_word(value) for value in values], np.int64)


def _word(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return value.ctypes.data
    return int(np.float64(value).view(np.int64)) if isinstance(value, float) else value


def stride(array: np.ndarray) -> int:
    """Elements from one row to the next."""
    return array.strides[0] // array.itemsize


def tile(
    program: Program,
    z: np.ndarray,
    others: Sequence[np.ndarray] = (),
    scalars: Sequence[float] = (),
    outs: Sequence[np.ndarray | None] = (None,),
    patterns: str | None = None,
    sums: np.ndarray | None = None,
    ranges: Sequence[tuple[int, int, int, int]] | None = None,
) -> None:
    """Run a program on the matrix z, whole or in the tiles (r0, r1, c0, c1); an output of None is z itself."""
    patterns = "m" * len(others) if patterns is None else patterns
    source = loops.tile_source(program, z.dtype, patterns, sums is not None)
    values = np.array(scalars, np.float64)
    places = [p for a in (*others, *outs) for p in ((0, 0) if a is None else (a, stride(a) if a.ndim else 0))]
    args = words(*places, values, *([] if sums is None else [sums]))
    for r0, r1, c0, c1 in ranges or [(0, z.shape[0], 0, z.shape[1])]:
        start = z.ctypes.data + z.itemsize * (stride(z) * r0 + c0)
        call(source, args.ctypes.data, start, stride(z), r0, r1, c0, c1)


def apply(program: Program, x: np.ndarray) -> list[np.ndarray]:
    """All outputs of a program of one input."""
    outs = [np.empty_like(x) for _ in program.outputs]
    flat = [a.reshape(1, -1) for a in (x, *outs)]
    tile(program, flat[0], outs=flat[1:])
    return outs


def run(name: str, dtype: Any, args: np.ndarray, start: int, stop: int, thread: int = 0) -> None:
    """Run a kernel of `rows.py`."""
    call(compiled.call_source(rows.__name__, name, np.dtype(dtype)), args.ctypes.data, start, stop, thread)


def kernel_code(source: str) -> tuple[str, str]:
    """LLVM's code of a kernel, and its assembly."""
    library = compiled.library_of(source, f"looked_at_{zlib.crc32(source.encode())}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return library.get_llvm_str(), library.get_asm_str()
