"""y = f(x w + b) on a GPU in one kernel, written in Python: f is a Python function of a number, compiled into it.

One kernel serves the three products of a dense layer. It computes C = A B, and a function of numbers takes each sum
while it is in a register, with the numbers of other matrices at its place:

    y, slope = f(sum + bias), f'(sum + bias)     A = x, B = w       forward
    dx = sum * slope                             A = dz, B = w^T    input gradient
    dw = sum, or dw + sum                        A = x^T, B = dz    weight gradient

A block of threads computes a tile of C, and each thread a few rows and columns of it. Tiles of A and B go through
shared memory. Sums run in the order of k and nothing is added atomically: the same operands give the same bits.

Bytes: A (N / tile columns) times, B (M / tile rows) times, less what the L2 cache keeps; of C only what the function
makes of it. Operations: 2 M N K.

The functions are plain Python over `math`, on numbers of the dtype:

- Numba's rules of types hold: 0.5 and 1 make float64 of a float32, and a slow kernel of a fast one. `np.float32(0.5)`
  does not.
- `max(z, 0)` drops NaN on a GPU; `zero if z < 0 else z` keeps it.
- A kernel is compiled for each function object. Define a function once, not at each call.

It needs the package numba-cuda. Numba's simulator runs the same code without a GPU (NUMBA_ENABLE_CUDASIM=1). No module
in this folder may be named cuda...: numba-cuda takes all modules with "numba.cuda" in their names for its own.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import config, cuda

from fcdense.kernels.numba.gpu_compiler import MISSING, refusal

MOST_BLOCKS = 65_535
"""Along the second axis of a grid (CUDA C++ Programming Guide, Compute Capabilities)."""
DTYPES = (np.dtype(np.float32), np.dtype(np.float64))

Function = Callable[..., Any]


class Tiling(NamedTuple):
    """How a product is cut: rows, columns and depth of a block's tiles, and rows and columns of a thread."""

    rows: int = 64
    columns: int = 64
    depth: int = 16
    thread_rows: int = 4
    thread_columns: int = 4

    @property
    def threads(self) -> int:
        """Of a block."""
        return self.rows // self.thread_rows * (self.columns // self.thread_columns)


TILING = Tiling()


# ---- functions of the sums -------------------------------------------------------------------------------------------


def inlined(function: Function) -> Any:
    """A Python function as part of a kernel: of one that Numba has compiled its source, and `math.tanh` as it is."""
    function = getattr(function, "py_func", function)
    return cuda.jit(device=True, inline="always")(function) if inspect.isfunction(function) else function


@functools.cache
def layer(activation: Function, derivative: Function | None = None, has_bias: bool = True) -> Function:
    """(sum, bias) -> f(sum + bias), and f'(sum + bias) with a derivative; without a bias, of the sum alone."""
    f = inlined(activation)
    if derivative is not None:
        value, slope = f, inlined(derivative)
        f = inlined(lambda z: (value(z), slope(z)))
    return (lambda total, bias: f(total + bias)) if has_bias else f


def identity(total: Any) -> Any:
    """The sum."""
    return total


def multiply(total: Any, factor: Any) -> Any:
    """The sum times a number: a gradient times f'."""
    return total * factor


def add(total: Any, number: Any) -> Any:
    """The sum and a number: gradients that accumulate."""
    return total + number


# ---- the kernel ------------------------------------------------------------------------------------------------------


@functools.cache
def kernel(
    function: Function,
    n_operands: int,
    n_outs: int,
    dtype: np.dtype[Any],
    tiling: Tiling = TILING,
    left_along_depth: bool = True,
    right_along_depth: bool = False,
) -> Any:
    """The kernel `product(left_ik, right_jk, operands, outs)`.

    Parameters
    ----------
    function : function
        Of a sum and one number of each operand: one number for each of `outs`.
    n_operands, n_outs : int
        Of matrices of the shape (rows of left, rows of right): 0 to 2, and 1 or 2.
    dtype : np.dtype
        Of all matrices, and of the sums.
    tiling : Tiling
    left_along_depth, right_along_depth : bool
        Numbers that follow each other in k are neighbours in memory, and are read by neighbouring threads.

    Raises
    ------
    ValueError
        The tiling does not come out even.
    """
    rows, columns, depth, thread_rows, thread_columns = tiling
    threads, real = tiling.threads, dtype.type
    down, across = rows // thread_rows, columns // thread_columns
    if rows % thread_rows or columns % thread_columns or rows * depth % threads or columns * depth % threads:
        raise ValueError(f"{tiling}: its {threads} threads do not share the tiles of both operands evenly.")
    compute = inlined(function)

    def mover(width: int, along_depth: bool) -> Any:
        @inlined
        def move(matrix: Any, start: Any, k0: Any, tile: Any) -> None:
            for n in range(width * depth // threads):
                at = n * threads + np.uint32(cuda.threadIdx.x)
                if along_depth:
                    i, k = at // depth, at % depth
                else:
                    i, k = at % width, at // width
                inside = start + i < matrix.shape[0] and k0 + k < matrix.shape[1]
                tile[k, i] = matrix[start + i, k0 + k] if inside else real(0)

        return move

    @inlined
    def store(total: Any, place: Any, operands: Any, outs: Any) -> None:
        if n_operands == 0:
            results = compute(total)
        elif n_operands == 1:
            results = compute(total, operands[0][place])
        else:
            results = compute(total, operands[0][place], operands[1][place])
        if n_outs == 1:
            outs[0][place] = results
        else:
            outs[0][place], outs[1][place] = results

    move_left, move_right = mover(rows, left_along_depth), mover(columns, right_along_depth)
    # An odd length spreads a column of a tile over all banks of shared memory, as a row is.
    left_shape, right_shape = (depth, rows + 1), (depth, columns + 1)

    @cuda.jit
    def product(left: Any, right: Any, operands: Any, outs: Any) -> None:
        # A line each: the simulator knows shared arrays by their lines, and two on one line are the same array to it.
        left_tile = cuda.shared.array(left_shape, real)
        right_tile = cuda.shared.array(right_shape, real)
        sums = cuda.local.array((thread_rows, thread_columns), real)
        # An index without a sign cannot count from the end, and Numba leaves out what looks for that: 120 registers
        # instead of 188 for 8 x 8 sums of a thread on sm_80.
        thread = np.uint32(cuda.threadIdx.x)
        i0 = np.uint32(cuda.blockIdx.x) * rows
        j0 = np.uint32(cuda.blockIdx.y) * columns
        ti, tj = thread // across, thread % across
        for i in range(thread_rows):
            for j in range(thread_columns):
                sums[i, j] = 0
        for k0 in range(0, left.shape[1], depth):
            move_left(left, i0, k0, left_tile)
            move_right(right, j0, k0, right_tile)
            cuda.syncthreads()
            for k in range(depth):
                # Rows and columns of a thread lie apart, so that its neighbours read neighbouring numbers.
                for i in range(thread_rows):
                    for j in range(thread_columns):
                        sums[i, j] += left_tile[k, ti + i * down] * right_tile[k, tj + j * across]
            cuda.syncthreads()
        for i in range(thread_rows):
            for j in range(thread_columns):
                place = i0 + ti + i * down, j0 + tj + j * across
                if place[0] < left.shape[0] and place[1] < right.shape[0]:
                    store(sums[i, j], place, operands, outs)

    return product


# ---- launches --------------------------------------------------------------------------------------------------------


class Matrix(NamedTuple):
    """Where a matrix lies in the memory of a GPU, with strides in bytes and the object that owns the memory.

    `name` is what messages call it.
    """

    name: str
    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: Any

    @property
    def transposed(self) -> Matrix:
        """The transposed matrix, in the same memory."""
        return self._replace(name=f"{self.name}^T", shape=self.shape[::-1], strides=self.strides[::-1])

    @property
    def along_columns(self) -> bool:
        """The numbers of a row are neighbours in memory, or nearer to each other than those of a column."""
        return abs(self.strides[1]) <= abs(self.strides[0])

    def broadcast(self, shape: tuple[int, int]) -> Matrix:
        """The same as a matrix of this shape, as NumPy broadcasts."""
        lead = 2 - len(self.shape)
        lengths, steps = (1,) * lead + self.shape, (0,) * lead + self.strides
        if lead < 0 or any(n not in (1, whole) for n, whole in zip(lengths, shape, strict=True)):
            raise ValueError(f"{self.name}: shape {self.shape}, expected one that broadcasts to {shape}.")
        strides = (step if n == whole else 0 for n, step, whole in zip(lengths, steps, shape, strict=True))
        return self._replace(shape=shape, strides=tuple(strides))

    def on_device(self) -> Any:
        """As an array that kernels take. No stream is waited for."""
        keys: dict[str, Any] = {"data": (self.address, False), "shape": self.shape, "strides": self.strides}
        keys |= {"typestr": self.dtype.str, "version": 3}
        return cuda.from_cuda_array_interface(keys, owner=self.owner, sync=False)


def matrix(name: str, array: Any, written: bool = False) -> Matrix:
    """Where an array lies, by its __cuda_array_interface__; a `Matrix` as it is.

    Raises
    ------
    TypeError
        For arrays that do not lie on a GPU, and other dtypes.
    ValueError
        For arrays that cannot be written to, where one is `written`.
    """
    if isinstance(array, Matrix):
        return array
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None:
        raise TypeError(f"{name}: {type(array).__name__}, expected an array on a GPU, such as cuda.to_device(array).")
    dtype, shape = np.dtype(interface["typestr"]), tuple(interface["shape"])
    if dtype not in DTYPES:
        raise TypeError(f"{name}: dtype {dtype}, expected float32 or float64.")
    address, read_only = interface["data"]
    if written and read_only:
        raise ValueError(f"{name}: read-only, expected an array that can be written to.")
    steps = interface.get("strides")
    if steps is None:
        steps = [dtype.itemsize * int(np.prod(shape[d + 1 :])) for d in range(len(shape))]
    return Matrix(name, address, shape, tuple(steps), dtype, array)


def product(
    a: Any,
    b: Any,
    function: Function = identity,
    operands: Sequence[Any] = (),
    *,
    outs: Sequence[Any],
    tiling: Tiling = TILING,
    stream: int = 0,
) -> None:
    """outs = function(a @ b, *operands), number by number, in one kernel.

    Parameters
    ----------
    a, b : (M, K), (K, N) arrays with __cuda_array_interface__, float32 or float64
        With any strides: a transposed view is not copied.
    function : function
        Of numbers: a sum, and one of each operand. Returns a number, or one for each of `outs`.
    operands : sequence of arrays
        At most two, of a shape that broadcasts to (M, N).
    outs : sequence of (M, N) arrays
        One or two. One may be the very memory of an operand, number for number; they overlap nothing else.
    tiling : Tiling
    stream : int
        The handle of the CUDA stream (`stream.ptr` in CuPy); 0 is the default stream. The call does not wait for it,
        nor for the streams on which the arrays were made.

    Raises
    ------
    ImportError
        Without numba-cuda, or with a NumPy that it does not know.
    TypeError, ValueError
        For other arrays. Nothing was launched then.
    """
    left, right = matrix("a", a), matrix("b", b)
    if len(left.shape) != 2 or len(right.shape) != 2 or left.shape[1] != right.shape[0]:
        raise ValueError(
            f"{left.name} @ {right.name}: shapes {left.shape} and {right.shape}, expected (M, K) and (K, N)."
        )
    shape, dtype = (left.shape[0], right.shape[1]), left.dtype
    if shape[1] > MOST_BLOCKS * tiling.columns:
        raise ValueError(f"{right.name}: {shape[1]:,} columns, expected at most {MOST_BLOCKS * tiling.columns:,}.")
    if len(operands) > 2 or len(outs) not in (1, 2):
        raise ValueError(f"{len(operands)} operands and {len(outs)} outs, expected at most 2, and 1 or 2.")
    reads = [matrix(f"operands[{n}]", item).broadcast(shape) for n, item in enumerate(operands)]
    writes = [matrix(f"outs[{n}]", item, written=True) for n, item in enumerate(outs)]
    for given in (right, *reads, *writes):
        if given.dtype != dtype:
            raise TypeError(f"{given.name}: dtype {given.dtype}, expected {dtype}, that of {left.name}.")
    for given in writes:
        if given.shape != shape:
            raise ValueError(f"{given.name}: shape {given.shape}, expected {shape}.")
    _need_numba_cuda()
    if not shape[0] or not shape[1]:
        return
    along = left.along_columns, right.transposed.along_columns
    compiled = kernel(function, len(reads), len(writes), dtype, tiling, *along)
    grid = -(-shape[0] // tiling.rows), -(-shape[1] // tiling.columns)
    with warnings.catch_warnings():
        # Small layers have few blocks, as they should, and numba-cuda warns of that.
        warnings.filterwarnings("ignore", "Grid size")
        launch = compiled[grid, tiling.threads, cuda.external_stream(stream) if stream else 0]
    tuples = (tuple(m.on_device() for m in group) for group in (reads, writes))
    launch(left.on_device(), right.transposed.on_device(), *tuples)


def dense(
    x_bi: Any,
    w_io: Any,
    b_o: Any | None,
    activation: Function,
    derivative: Function | None = None,
    *,
    out: Any,
    slope: Any | None = None,
    tiling: Tiling = TILING,
    stream: int = 0,
) -> None:
    """out = f(x w + b), and slope = f'(x w + b) where a derivative is given; see `product`.

    Parameters
    ----------
    x_bi, w_io : (B, I), (I, O) arrays
    b_o : (O,) array or None
    activation, derivative : function
        f and f', of one number.
    out, slope : (B, O) arrays
    """
    if (derivative is None) != (slope is None):
        raise TypeError("dense: a derivative and the array `slope` that receives it are given together or not at all.")
    x, w, outs = matrix("x_bi", x_bi), matrix("w_io", w_io), [matrix("out", out, written=True)]
    if slope is not None:
        outs.append(matrix("slope", slope, written=True))
    operands = () if b_o is None else (matrix("b_o", b_o),)
    function = layer(activation, derivative, b_o is not None)
    product(x, w, function, operands, outs=outs, tiling=tiling, stream=stream)


def dense_grad_input(
    dz_bo: Any, w_io: Any, slope_bi: Any | None, *, out: Any, tiling: Tiling = TILING, stream: int = 0
) -> None:
    """out = (dz w^T) * slope: the gradient before the activation f of the layer below, slope = f'; None is 1."""
    dz, w, outs = matrix("dz_bo", dz_bo), matrix("w_io", w_io), [matrix("out", out, written=True)]
    function, operands = (identity, ()) if slope_bi is None else (multiply, (matrix("slope_bi", slope_bi),))
    product(dz, w.transposed, function, operands, outs=outs, tiling=tiling, stream=stream)


def dense_grad_weight(
    x_bi: Any,
    dz_bo: Any,
    *,
    out: Any,
    accumulate: bool = False,
    tiling: Tiling = TILING,
    stream: int = 0,
) -> None:
    """out = x^T dz, or out + x^T dz."""
    x, dz, outs = matrix("x_bi", x_bi), matrix("dz_bo", dz_bo), [matrix("out", out, written=True)]
    function, operands = (add, outs) if accumulate else (identity, [])
    product(x.transposed, dz, function, operands, outs=outs, tiling=tiling, stream=stream)


def _need_numba_cuda() -> None:
    why = MISSING if cuda.implementation == "Built-in" else refusal()
    if why and not config.ENABLE_CUDASIM:
        raise ImportError(why)
