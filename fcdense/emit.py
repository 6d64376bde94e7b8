"""Run a `Program` on NumPy arrays: blocks that stay in the cache, scratch that is allocated once per thread."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fcdense.codegen import BOOL, F64, INT, Kernel, compile_program
from fcdense.errors import ArgumentError, DTypeError, ShapeError
from fcdense.program import Program

Array = NDArray[Any]

# Elements per block: a few float32 buffers of 64 KiB fit in the L2 cache, and calls cost 1/10 of the work at most.
BLOCK = 16384


def run(program: Program, inputs: Sequence[Array], scalars: Sequence[float], outs: Sequence[Array]) -> None:
    """Write the program's outputs into `outs`.

    Parameters
    ----------
    program : Program
    inputs : sequence of ndarray
        Each broadcasts against the shape of the outputs. Other dtypes than the one computed in are converted block by
        block.
    scalars : sequence of float
        Python floats.
    outs : sequence of ndarray
        All of one shape. float16 is computed in float32 and rounded once. An output may be the very memory of an input,
        element for element (an update in place); any other overlap gives undefined values.

    Raises
    ------
    ArgumentError
        If the number of inputs, scalars or outputs is not that of the program.
    ShapeError
        If an input does not broadcast to the shape of the outputs.
    DTypeError
        If an input is not of float16, float32, float64, integer or bool, or an output not of float16, float32, float64
        (bool for conditions).
    """
    kernel = _kernel(program, tuple([a.dtype for a in inputs]), tuple([a.dtype for a in outs]))
    if len(scalars) != program.n_scalars:
        raise ArgumentError(f"Program {program.name!r} takes {program.n_scalars} scalars, given {len(scalars)}.")
    shape = outs[0].shape
    flat = _check_shapes(program, inputs, outs, shape)
    size = outs[0].size
    if size == 0:
        return
    arrays, scratch = (*inputs, *outs), _of_thread.scratch
    blocks: Iterable[tuple[Array, ...]]
    if size <= BLOCK:
        blocks = ((*arrays, *scratch.of(kernel, shape)),)
    elif flat and all(a.flags.c_contiguous for a in arrays):
        blocks = _flat_blocks(kernel, arrays, size, scratch)
    else:
        blocks = _tiles(kernel, arrays, shape, scratch)
    if kernel.overflows:
        with np.errstate(over="ignore", under="ignore"):
            kernel.function(blocks, *scalars)
    else:
        kernel.function(blocks, *scalars)


def bind(program: Program, inputs: Sequence[Array], outs: Sequence[Array], scratch: Scratch) -> Callable[..., None]:
    """`run` as a function of the scalars, for arrays that stay: the same bits, and everything looked up beforehand.

    The function works in `scratch`, so that one thread at a time may call it and others made with it, and it leaves
    floating-point warnings to the caller.
    """
    shape, size = outs[0].shape, outs[0].size
    _check_shapes(program, inputs, outs, shape)
    apart = frozenset((k, i) for k, y in enumerate(outs) for i, x in enumerate(inputs) if not np.may_share_memory(x, y))
    kernel = _kernel(program, tuple([a.dtype for a in inputs]), tuple([a.dtype for a in outs]), apart)
    arrays = (*inputs, *outs)
    if size == 0:
        blocks: Iterable[tuple[Array, ...]] = ()
    elif all(a.flags.c_contiguous and a.size in (1, size) for a in arrays):
        blocks = _flat_blocks(kernel, arrays, size, scratch)
    elif size <= BLOCK:
        blocks = ((*arrays, *scratch.of(kernel, shape)),)
    else:
        blocks = _tiles(kernel, arrays, shape, scratch)
    return partial(kernel.function, tuple(blocks))


def apply(program: Program, *arrays: Any, scalars: Sequence[float] = ()) -> Any:
    """The program's outputs as new arrays.

    The dtype follows NumPy's promotion of the arguments (Python numbers are weak): float16, float32 and float64 stay,
    integers and bools become float64. Conditions give bool arrays. Scalars in give a NumPy scalar out.

    Returns
    -------
    ndarray or NumPy scalar, or a tuple of them if the program has several outputs

    Raises
    ------
    ArgumentError
        If the number of arrays or scalars is not that of the program.
    DTypeError
        For complex, long double, object and text arguments.
    """
    if len(arrays) != program.n_inputs:
        raise ArgumentError(f"Program {program.name!r} takes {program.n_inputs} arrays, given {len(arrays)}.")
    weak = [a if isinstance(a, (bool, int, float)) else np.asarray(a) for a in arrays]
    try:
        dtype = np.result_type(*weak) if weak else F64
    except TypeError as error:
        raise DTypeError(f"Program {program.name!r}: arguments without a common dtype: {error}") from None
    if dtype.kind in "biu":
        dtype = F64
    inputs = [np.asarray(a, dtype) if isinstance(a, (bool, int, float)) else a for a in weak]
    shape = np.broadcast_shapes(*(a.shape for a in inputs))
    outs = [np.empty(shape, BOOL if e.is_bool else dtype) for e in program.outputs]
    run(program, inputs, scalars, outs)
    results = outs if shape or any(isinstance(a, np.ndarray) for a in arrays) else [out[()] for out in outs]
    return results[0] if len(results) == 1 else tuple(results)


def source(program: Program, dtype: DTypeLike = np.float32) -> str:
    """The Python source that computes `program` on arrays of `dtype`."""
    d = np.dtype(dtype)
    return _kernel(program, (d,) * program.n_inputs, tuple(BOOL if e.is_bool else d for e in program.outputs)).source


@cache
def _kernel(
    program: Program,
    inputs: tuple[np.dtype[Any], ...],
    outs: tuple[np.dtype[Any], ...],
    apart: frozenset[tuple[int, int]] = frozenset(),
) -> Kernel:
    if len(inputs) != program.n_inputs or len(outs) != len(program.outputs):
        raise ArgumentError(
            f"Program {program.name!r} takes {program.n_inputs} arrays and writes {len(program.outputs)}, "
            f"given {len(inputs)} and {len(outs)}."
        )
    return compile_program(program, inputs, outs, apart)


def _check_shapes(program: Program, inputs: Sequence[Array], outs: Sequence[Array], shape: tuple[int, ...]) -> bool:
    """True if every input has the shape of the outputs or a single element."""
    flat = True
    for out in outs:
        if out.shape != shape:
            raise ShapeError(
                f"Program {program.name!r}: outputs of shapes {[o.shape for o in outs]}; expected one shape."
            )
    for a in inputs:
        if a.shape != shape:
            flat = flat and a.size == 1
            aligned = shape[len(shape) - a.ndim :] if a.ndim <= len(shape) else ()
            if a.shape != aligned and (
                len(aligned) != a.ndim or any(n not in (1, m) for n, m in zip(a.shape, aligned, strict=True))
            ):
                raise ShapeError(
                    f"Program {program.name!r}: an input of shape {a.shape} does not broadcast to {shape}."
                )
    return flat


class Scratch:
    """Registers of BLOCK elements, and views of them in the shapes of recent blocks, for one thread at a time."""

    def __init__(self) -> None:
        self._registers: dict[tuple[np.dtype[Any], int], Array] = {}
        self._constants: dict[tuple[np.dtype[Any], float], Array] = {}
        self._views: dict[Any, tuple[Array, ...]] = {}

    def of(self, kernel: Kernel, shape: tuple[int, ...]) -> tuple[Array, ...]:
        """What a block of `kernel` needs after inputs and outputs, in `shape` (at most BLOCK elements)."""
        key = (kernel.dtype, kernel.n_float, kernel.n_bool, kernel.n_int, kernel.constants, shape)
        found = self._views.get(key)
        if found is None:
            if len(self._views) >= 1024:  # ever new shapes: views are cheap to rebuild, the buffers stay
                self._views.clear()
            size = math.prod(shape)
            found = self._views[key] = tuple(r[:size].reshape(shape) for r in self._whole(kernel))
        return found

    def _whole(self, kernel: Kernel) -> list[Array]:
        floats = [self._register(kernel.dtype, i) for i in range(kernel.n_float)]
        bools = [self._register(BOOL, i) for i in range(kernel.n_bool)]
        ints = [f.view(INT[kernel.dtype]) for f in floats[: kernel.n_int]]
        return floats + bools + ints + [self._constant(kernel.dtype, c) for c in kernel.constants]

    def _register(self, dtype: np.dtype[Any], number: int) -> Array:
        if (dtype, number) not in self._registers:
            self._registers[dtype, number] = np.empty(BLOCK, dtype)
        return self._registers[dtype, number]

    def _constant(self, dtype: np.dtype[Any], value: float) -> Array:
        if (dtype, value) not in self._constants:
            self._constants[dtype, value] = np.full(BLOCK, value, dtype)
        return self._constants[dtype, value]


class _OfThread(threading.local):
    """What `run` works in."""

    def __init__(self) -> None:
        self.scratch = Scratch()


_of_thread = _OfThread()


def _flat_blocks(kernel: Kernel, arrays: tuple[Array, ...], size: int, scratch: Scratch) -> Iterator[tuple[Array, ...]]:
    """Contiguous arrays of `size` elements, or of one element, in blocks."""
    flat = [(a.reshape(-1), True) if a.size == size else (a.reshape(()), False) for a in arrays]
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        yield *(a[start:stop] if whole else a for a, whole in flat), *scratch.of(kernel, (stop - start,))


def _tiles(
    kernel: Kernel, arrays: tuple[Array, ...], shape: tuple[int, ...], scratch: Scratch
) -> Iterator[tuple[Array, ...]]:
    """Arrays of any strides that broadcast to `shape`, in tiles of at most BLOCK elements over the last axes."""
    views = [a if a.shape == shape else np.broadcast_to(a, shape) for a in arrays]
    if views[-1].flags.f_contiguous:  # walk along memory
        views, shape = [v.T for v in views], shape[::-1]
    axis, inner = len(shape) - 1, 1
    while axis > 0 and inner * shape[axis] <= BLOCK:
        inner *= shape[axis]
        axis -= 1
    rows = max(1, BLOCK // inner)
    for lead in product(*(range(n) for n in shape[:axis])):
        for start in range(0, shape[axis], rows):
            index: Any = (*lead, slice(start, start + rows))
            tile = [v[index] for v in views]
            yield *tile, *scratch.of(kernel, tile[-1].shape)
