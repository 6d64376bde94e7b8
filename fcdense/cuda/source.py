"""Translation units: which kernel, for which types and program, with which threads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from fcdense.cuda.functor import functor, stored
from fcdense.cuda.geometry import Vector
from fcdense.program import Program

DType = np.dtype[Any]
WORD = np.dtype(np.int64)
ADDRESS = np.dtype(np.uint64)


class Kernel(NamedTuple):
    """One kernel, ready to be compiled.

    Attributes
    ----------
    name : str
        For messages.
    text : str
        The translation unit. It includes files of `kernels/cuda` and defines one function, `kernel`, of one argument.
    arguments : dtype
        The struct that the function takes.
    threads : int
        Of a block.
    shared : int
        Bytes of dynamic shared memory.
    """

    name: str
    text: str
    arguments: DType
    threads: int
    shared: int = 0


def struct(**fields: Any) -> DType:
    """A C struct: the type of each field, with an array's shape where it has one."""
    return np.dtype([(name, *kind) if isinstance(kind, tuple) else (name, kind) for name, kind in fields.items()], True)


def operand(dims: int) -> DType:
    """`Operand<DIMS>` of operands.cuh."""
    return struct(data=ADDRESS, strides=(WORD, (dims,)))


@cache
def operands(dims: int, inputs: int, outputs: int, scalars: int) -> DType:
    """`Operands<DIMS, INPUTS, OUTPUTS, SCALARS>` of operands.cuh."""
    return struct(
        inputs=(operand(dims), (max(inputs, 1),)),
        outputs=(operand(dims), (outputs,)),
        live=ADDRESS,
        given=(np.float64, (max(scalars, 1),)),
    )


def operands_of(program: Program, dims: int) -> DType:
    """Those of a program."""
    return operands(dims, program.n_inputs, len(program.outputs), program.n_scalars)


def unit(header: str, functors: str, aliases: str, kind: str, threads: int, call: str, blocks: int = 1) -> str:
    """The text of a translation unit whose kernel calls `call(arguments)`, with arguments of type `kind`.

    It is compiled so that `blocks` of `threads` threads fit on a multiprocessor.
    """
    return (
        f'#include "{header}"\n\nnamespace fcdense {{\n\n{functors}\n{aliases}'
        f"using Arguments = {kind};\n"
        f"__device__ inline void called(const Arguments& arguments) {{ {call}(arguments); }}\n\n"
        f"}}  // namespace fcdense\n\nFCDENSE_KERNEL(fcdense::Arguments, {threads}, {blocks}, fcdense::called)\n"
    )


ELEMENTWISE_THREADS = 256


@cache
def elementwise(
    program: Program, inputs: tuple[DType, ...], outs: tuple[DType, ...], dims: int, vector: Vector
) -> Kernel:
    """`program` over arrays of `dims` axes."""
    text = unit(
        "elementwise.cuh",
        functor(program, inputs, outs, vector.repeated),
        "",
        f"Elementwise<{dims}, Program>",
        ELEMENTWISE_THREADS,
        f"elementwise<{dims}, {vector.width}, Program>",
    )
    arguments = struct(operands=operands_of(program, dims), when=ADDRESS, shape=(WORD, (dims,)), size=WORD)
    return Kernel(program.name, text, arguments, ELEMENTWISE_THREADS)


@cache
def scalar_work(program: Program) -> Kernel:
    """`program` of scalars alone, by one thread; its outputs are float64."""
    outs = (np.dtype(np.float64),) * len(program.outputs)
    text = unit("elementwise.cuh", functor(program, (), outs), "", "Elementwise<1, Program>", 1, "scalar_work<Program>")
    arguments = struct(operands=operands_of(program, 1), when=ADDRESS, shape=(WORD, (1,)), size=WORD)
    return Kernel(program.name, text, arguments, 1)


@cache
def cast(x: DType, out: DType, dims: int, width: int) -> Kernel:
    """Numbers of one dtype as those of another, `width` of the last axis at once."""
    call = f"copy<{stored(x)}, {stored(out)}, {dims}, {width}>"
    text = unit("elementwise.cuh", "", "", f"Copy<{dims}>", ELEMENTWISE_THREADS, call)
    shape = (WORD, (dims,))
    return Kernel("copy", text, struct(x=operand(dims), out=operand(dims), shape=shape, size=WORD), ELEMENTWISE_THREADS)


ROW_THREADS = 256
"""Of a block of the kernels that go row by row, and of those that sum."""


def _group(length: int) -> int:
    """Threads for a row of so many numbers."""
    return 32 if length <= 1024 else ROW_THREADS


@cache
def softmax(dtype: DType, classes: int, log: bool) -> Kernel:
    """Softmax of rows of so many numbers, or of a similar length."""
    return _rows("Softmax", f"softmax<{stored(dtype)}, {_group(classes)}, {ROW_THREADS}, {str(log).lower()}>", SOFTMAX)


@cache
def cross_entropy(dtype: DType, loss: DType, classes: int, by_class: bool) -> Kernel:
    """Cross entropy of such rows, a number of dtype `loss`; `by_class` where targets are class numbers."""
    call = f"cross_entropy<{stored(dtype)}, {stored(loss)}, {_group(classes)}, {ROW_THREADS}, {str(by_class).lower()}>"
    return _rows("CrossEntropy", call, CROSS_ENTROPY)


def rows_of_a_block(length: int) -> int:
    """How many rows of so many numbers a block takes."""
    return ROW_THREADS // _group(length)


SOFTMAX = struct(z=ADDRESS, z_row=WORD, z_column=WORD, out=ADDRESS, rows=WORD, classes=WORD)
CROSS_ENTROPY = struct(
    z=ADDRESS, z_row=WORD, z_column=WORD, target=ADDRESS, target_row=WORD, target_column=WORD,
    weight=ADDRESS, weight_stride=WORD, scale=np.float64, losses=ADDRESS, loss=ADDRESS,
    arrivals=ADDRESS, dz=ADDRESS, rows=WORD, classes=WORD,
)  # fmt: skip


def _rows(kind: str, call: str, arguments: DType) -> Kernel:
    return Kernel(call.partition("<")[0], unit("rows.cuh", "", "", kind, ROW_THREADS, call), arguments, ROW_THREADS, 64)


OPERATIONS = {"sum": "Sum", "max": "Maximum", "min": "Minimum"}


def reduction(dims: int) -> DType:
    """`Reduction<DIMS>` of reductions.cuh."""
    shape = (WORD, (dims,))
    return struct(
        x_kept=operand(dims), x_reduced=operand(dims), kept_shape=shape, reduced_shape=shape, kept=WORD, reduced=WORD,
        out=ADDRESS, part=WORD, parts=ADDRESS, arrivals=ADDRESS, adds="i4",
    )  # fmt: skip


@cache
def reduce(operation: str, function: str, x: DType, out: DType, within: str, dims: int, group: int) -> Kernel:
    """A reduction of numbers of dtype `x` in the type `within`, by `group` threads for each number of `out`."""
    kinds = stored(x), stored(out), within, OPERATIONS[operation], function, dims, group, ROW_THREADS
    call = f"reduce<{', '.join(map(str, kinds))}>"
    text = unit("reductions.cuh", "", "", f"Reduction<{dims}>", ROW_THREADS, call)
    return Kernel(operation, text, reduction(dims), ROW_THREADS, 64)


ROWS = struct(x=ADDRESS, index=ADDRESS, out=ADDRESS, count=WORD, columns=WORD)


@cache
def gather_rows(dtype: DType) -> Kernel:
    """Rows of numbers of this dtype."""
    text = unit("indexing.cuh", "", "", "Rows", ELEMENTWISE_THREADS, f"gather_rows<{stored(dtype)}>")
    return Kernel("gather_rows", text, ROWS, ELEMENTWISE_THREADS)


@cache
def scatter_add_rows(dtype: DType) -> Kernel:
    """Sums of rows of numbers of this dtype."""
    text = unit("indexing.cuh", "", "", "Scatter", ELEMENTWISE_THREADS, f"scatter_add_rows<{stored(dtype)}>")
    return Kernel("scatter_add_rows", text, struct(rows=ROWS, out_rows=WORD), ELEMENTWISE_THREADS)


@cache
def dropout(dtype: DType) -> Kernel:
    """Dropout of numbers of this dtype."""
    text = unit("random.cuh", "", "", "Dropout", ELEMENTWISE_THREADS, f"dropout<{stored(dtype)}>")
    arguments = struct(
        x=ADDRESS, stream=ADDRESS, stream_stride=WORD, out=ADDRESS, rate=np.float64, size=WORD, packed=WORD
    )
    return Kernel("dropout", text, arguments, ELEMENTWISE_THREADS)


@cache
def next_stream() -> Kernel:
    """The next stream of random numbers."""
    text = unit("random.cuh", "", "", "Stream", 1, "next_stream")
    return Kernel("next_stream", text, struct(state=ADDRESS, out=ADDRESS), 1)


PIECES = 8
"""Arrays that a launch takes rows for, or leaves results of."""
UNITS = (16, 4, 2, 1)
"""Bytes that are copied at once."""
ROUND = struct(number=WORD, made=WORD, running=np.float64)
PIECE = struct(x=ADDRESS, out=ADDRESS, order=ADDRESS, rows=WORD, units=WORD, bytes="i4")


TAKE_ROWS = struct(round=ADDRESS, pieces=(PIECE, (PIECES,)))


@cache
def take_rows() -> Kernel:
    """The rows of a round."""
    text = unit("rounds.cuh", "", "", "TakeRows", ELEMENTWISE_THREADS, "take_rows")
    return Kernel("take_rows", text, TAKE_ROWS, ELEMENTWISE_THREADS)


@cache
def convert_rows(x: DType, out: DType) -> Kernel:
    """The same of numbers of one dtype, as those of another."""
    call = f"convert_rows<{stored(x)}, {stored(out)}>"
    text = unit("rounds.cuh", "", "", "TakeRows", ELEMENTWISE_THREADS, call)
    return Kernel("convert_rows", text, TAKE_ROWS, ELEMENTWISE_THREADS)


@cache
def leave_results() -> Kernel:
    """The results of a round, and its end."""
    arguments = struct(round=ADDRESS, go_on=ADDRESS, arrivals=ADDRESS, pieces=(PIECE, (PIECES,)))
    text = unit("rounds.cuh", "", "", "LeaveResults", ELEMENTWISE_THREADS, "leave_results")
    return Kernel("leave_results", text, arguments, ELEMENTWISE_THREADS, 64)


def dtypes(arrays: Sequence[Any]) -> tuple[DType, ...]:
    """Of arrays."""
    return tuple([array.dtype for array in arrays])
