"""LLVM that Numba has no words for: matrix products held in registers, dot products, transposes.

Every function here is a Numba intrinsic that writes its instructions with llvmlite. Addresses are int64. The argument
`real` is np.float32 or np.float64.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

I1, I8, I32, I64 = (ir.IntType(n) for n in (1, 8, 32, 64))


def _register_file() -> tuple[int, int, int]:
    """(bytes of a vector register, rows and vectors of the largest product that stays in registers)."""
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 64, 6, 4  # 24 sums, 4 vectors of B and one of A in 32 registers
    if features.get("avx2") and features.get("fma"):
        return 32, 6, 2  # 12 + 2 + 1 in 16
    return 16, 6, 2


VECTOR_BYTES, ROWS, VECTORS = _register_file()


def _intrinsic_function(module: ir.Module, name: str, result: ir.Type, *args: ir.Type) -> ir.Function:
    found = module.globals.get(name)
    return found if found is not None else ir.Function(module, ir.FunctionType(result, args), name)


class _VectorFunction:
    """A function of int64 arguments under construction, in vectors of one number type."""

    def __init__(self, module: ir.Module, name: str, number: Any, n_args: int) -> None:
        self.module = module
        self.size = number.bitwidth // 8
        self.lanes = VECTOR_BYTES // self.size
        self.scalar = ir.FloatType() if self.size == 4 else ir.DoubleType()
        self.vector = ir.VectorType(self.scalar, self.lanes)
        self.masks = ir.VectorType(I1, self.lanes)
        self.function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * n_args), name)
        self.function.linkage = "internal"
        self.function.attributes.add("noinline")
        self.function.attributes.add("nounwind")
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))
        self.zero = ir.Constant(self.vector, None)
        self.suffix = f"v{self.lanes}f{8 * self.size}"

    def bytes_of(self, count: Any) -> Any:
        return self.builder.mul(count, I64(self.size))

    def pointer(self, address: Any, kind: ir.Type, offset: Any = None) -> Any:
        base = self.builder.inttoptr(address, I8.as_pointer())
        if offset is not None:
            base = self.builder.gep(base, [offset])
        return self.builder.bitcast(base, kind.as_pointer())

    def splat(self, value: Any, kind: ir.VectorType | None = None) -> Any:
        """A vector of one value."""
        kind = kind or self.vector
        undefined = ir.Constant(kind, ir.Undefined)
        one = self.builder.insert_element(undefined, value, I32(0))
        return self.builder.shuffle_vector(
            one, undefined, ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes)
        )

    def first(self, count: Any) -> Any:
        """The mask of the first `count` lanes."""
        numbers = ir.VectorType(I64, self.lanes)
        return self.builder.icmp_signed("<", ir.Constant(numbers, list(range(self.lanes))), self.splat(count, numbers))

    def load(self, pointer: Any, mask: Any = None) -> Any:
        if mask is None:
            return self.builder.load(pointer, align=self.size)
        kinds = (self.vector.as_pointer(), I32, self.masks, self.vector)
        load = _intrinsic_function(self.module, f"llvm.masked.load.{self.suffix}.p0", self.vector, *kinds)
        return self.builder.call(load, [pointer, I32(self.size), mask, self.zero])

    def store(self, value: Any, pointer: Any, mask: Any = None) -> None:
        if mask is None:
            self.builder.store(value, pointer, align=self.size)
            return
        kinds = (self.vector, self.vector.as_pointer(), I32, self.masks)
        store = _intrinsic_function(self.module, f"llvm.masked.store.{self.suffix}.p0", ir.VoidType(), *kinds)
        self.builder.call(store, [value, pointer, I32(self.size), mask])

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        return self.builder.call(
            _intrinsic_function(self.module, f"llvm.fma.{self.suffix}", self.vector, *[self.vector] * 3), [a, b, c]
        )


def _product(module: ir.Module, number: Any, rows: int, vectors: int) -> ir.Function:
    """The product of `rows` rows of A and `vectors` vectors of columns of B, all sums in registers."""
    name = f"fcdense_product_{rows}x{vectors}_{number}"
    if name in module.globals:
        return module.globals[name]
    f = _VectorFunction(module, name, number, 10)
    b = f.builder
    a_start, a_row, a_column, b_start, b_row, c_start, c_row, depth, accumulate, tail = f.function.args
    a_row, a_column, b_row, c_row = map(f.bytes_of, (a_row, a_column, b_row, c_row))
    mask = f.first(tail)
    masks = [None] * (vectors - 1) + [mask]
    starts = [b.add(a_start, b.mul(a_row, I64(i))) for i in range(rows)]
    entry = b.block
    loop, done, add, put = map(f.function.append_basic_block, ("loop", "done", "add", "put"))
    b.branch(loop)

    b.position_at_end(loop)
    left, a_at, b_at = b.phi(I64), b.phi(I64), b.phi(I64)
    sums = [[b.phi(f.vector) for _ in range(vectors)] for _ in range(rows)]
    columns = [f.load(f.pointer(b_at, f.vector, I64(j * VECTOR_BYTES)), masks[j]) for j in range(vectors)]
    new = []
    for i in range(rows):
        value = f.splat(b.load(f.pointer(starts[i], f.scalar, a_at), align=f.size))
        new.append([f.fma(value, columns[j], sums[i][j]) for j in range(vectors)])
    advanced = (b.sub(left, I64(1)), b.add(a_at, a_column), b.add(b_at, b_row))
    for phi, first, following in zip((left, a_at, b_at), (depth, I64(0), b_start), advanced, strict=True):
        phi.add_incoming(first, entry)
        phi.add_incoming(following, loop)
    for i in range(rows):
        for j in range(vectors):
            sums[i][j].add_incoming(f.zero, entry)
            sums[i][j].add_incoming(new[i][j], loop)
    b.cbranch(b.icmp_signed(">", advanced[0], I64(0)), loop, done)

    b.position_at_end(done)
    places = []
    for i in range(rows):
        row = f.pointer(b.add(c_start, b.mul(c_row, I64(i))), f.vector)
        places.append([b.gep(row, [I64(j)]) for j in range(vectors)])
    b.cbranch(b.icmp_signed("!=", accumulate, I64(0)), add, put)
    for block in (add, put):
        b.position_at_end(block)
        for i in range(rows):
            for place, mask, value in zip(places[i], masks, new[i], strict=True):
                f.store(b.fadd(f.load(place, mask), value) if block is add else value, place, mask)
        b.ret_void()
    return f.function


def _choose(
    builder: ir.IRBuilder,
    sizes: Sequence[Any],
    first: Iterable[int],
    second: Collection[int],
    call: Callable[..., None],
) -> None:
    """Of the calls that `call(i, j)` writes, one for each pair, the one of the `sizes` at run time is made, or none."""
    end = builder.append_basic_block("chosen")
    stride = max(second) + 1
    switch = builder.switch(builder.add(builder.mul(sizes[0], I64(stride)), sizes[1]), end)
    for i in first:
        for j in second:
            block = builder.append_basic_block(f"choice_{i}x{j}")
            switch.add_case(I64(i * stride + j), block)
            with builder.goto_block(block):
                call(i, j)
                builder.branch(end)
    builder.position_at_end(end)


@intrinsic
def product(
    typing: Any,
    rows: Any,
    vectors: Any,
    a: Any,
    a_row: Any,
    a_column: Any,
    b: Any,
    b_row: Any,
    c: Any,
    c_row: Any,
    depth: Any,
    accumulate: Any,
    tail: Any,
    real: Any,
) -> Any:
    """c = a @ b or c += a @ b for up to ROWS rows and VECTORS vectors of columns.

    Element (i, k) of A lies at a + i a_row + k a_column, (k, j) of B at b + k b_row + j, and (i, j) of C at
    c + i c_row + j, in elements. `tail` lanes of the last vector exist; what lies beyond is neither read nor written.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Sequence[Any]) -> Any:
        def call(r: int, v: int) -> None:
            builder.call(_product(builder.module, real.dtype, r, v), args[2:-1])

        _choose(builder, args[:2], range(1, ROWS + 1), range(1, VECTORS + 1), call)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 12, real), generate


DOTS = 8
"""Columns whose dot products run side by side."""


def _dots(module: ir.Module, number: Any, rows: int, columns: int) -> ir.Function:
    """Dot products of `rows` rows of A with `columns` rows of B: each a sum by lanes, then over the lanes."""
    name = f"fcdense_dots_{rows}x{columns}_{number}"
    if name in module.globals:
        return module.globals[name]
    f = _VectorFunction(module, name, number, 8)
    b = f.builder
    a_start, a_row, b_start, b_row, c_start, c_row, depth, accumulate = f.function.args
    a_row, b_row, c_row = map(f.bytes_of, (a_row, b_row, c_row))
    lefts = [b.add(a_start, b.mul(a_row, I64(i))) for i in range(rows)]
    rights = [b.add(b_start, b.mul(b_row, I64(j))) for j in range(columns)]
    entry = b.block
    loop, end = f.function.append_basic_block("loop"), f.function.append_basic_block("end")
    b.branch(loop)

    b.position_at_end(loop)
    k = b.phi(I64)
    sums = [[b.phi(f.vector) for _ in range(columns)] for _ in range(rows)]
    mask = f.first(b.sub(depth, k))
    offset = f.bytes_of(k)
    left = [f.load(f.pointer(start, f.vector, offset), mask) for start in lefts]
    right = [f.load(f.pointer(start, f.vector, offset), mask) for start in rights]
    new = [[f.fma(left[i], right[j], sums[i][j]) for j in range(columns)] for i in range(rows)]
    following = b.add(k, I64(f.lanes))
    k.add_incoming(I64(0), entry)
    k.add_incoming(following, loop)
    for i in range(rows):
        for j in range(columns):
            sums[i][j].add_incoming(f.zero, entry)
            sums[i][j].add_incoming(new[i][j], loop)
    b.cbranch(b.icmp_signed("<", following, depth), loop, end)

    b.position_at_end(end)
    total = _intrinsic_function(module, f"llvm.vector.reduce.fadd.{f.suffix}", f.scalar, f.scalar, f.vector)
    for i in range(rows):
        for j in range(columns):
            place = f.pointer(b.add(c_start, b.mul(c_row, I64(i))), f.scalar, I64(j * f.size))
            value = b.call(total, [ir.Constant(f.scalar, -0.0), new[i][j]], fastmath=("reassoc",))
            before = b.load(place, align=f.size)
            added = b.icmp_signed("!=", accumulate, I64(0))
            b.store(b.select(added, b.fadd(before, value), value), place, align=f.size)
    b.ret_void()
    return f.function


@intrinsic
def dots(
    typing: Any,
    rows: Any,
    columns: Any,
    a: Any,
    a_row: Any,
    b: Any,
    b_row: Any,
    c: Any,
    c_row: Any,
    depth: Any,
    accumulate: Any,
    real: Any,
) -> Any:
    """c[i, j] = or += sum over k of a[i, k] b[j, k], for 1 or 2 rows and 1 or DOTS columns."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Sequence[Any]) -> Any:
        def call(r: int, n: int) -> None:
            builder.call(_dots(builder.module, real.dtype, r, n), args[2:-1])

        _choose(builder, args[:2], (1, 2), (1, DOTS), call)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 10, real), generate


def _transpose(module: ir.Module, number: Any) -> ir.Function:
    name = f"fcdense_transpose_{number}"
    if name in module.globals:
        return module.globals[name]
    f = _VectorFunction(module, name, number, 4)
    b = f.builder
    source, source_row, target, target_row = f.function.args
    source_row, target_row = f.bytes_of(source_row), f.bytes_of(target_row)
    n = f.lanes
    rows = [f.load(f.pointer(b.add(source, b.mul(source_row, I64(i))), f.vector)) for i in range(n)]
    indices = ir.VectorType(I32, n)
    step = n // 2
    while step:  # exchange the off-diagonal blocks of ever smaller squares
        low = ir.Constant(indices, [k if not k & step else n + k - step for k in range(n)])
        high = ir.Constant(indices, [k + step if not k & step else n + k for k in range(n)])
        for i in range(n):
            if not i & step:
                x, y = rows[i], rows[i + step]
                rows[i], rows[i + step] = b.shuffle_vector(x, y, low), b.shuffle_vector(x, y, high)
        step //= 2
    for i in range(n):
        f.store(rows[i], f.pointer(b.add(target, b.mul(target_row, I64(i))), f.vector))
    b.ret_void()
    return f.function


@intrinsic
def transpose(typing: Any, source: Any, source_row: Any, target: Any, target_row: Any, real: Any) -> Any:
    """target = source.T for a square of `lanes(real)` rows. Distances of rows in elements."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Sequence[Any]) -> Any:
        builder.call(_transpose(builder.module, real.dtype), args[:-1])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4, real), generate


@intrinsic
def lanes(typing: Any, real: Any) -> Any:
    """Numbers in a vector register."""
    count = VECTOR_BYTES * 8 // real.dtype.bitwidth
    return types.int64(real), lambda context, builder, signature, args: I64(count)


@intrinsic
def itemsize(typing: Any, real: Any) -> Any:
    """Bytes of a number."""
    count = real.dtype.bitwidth // 8
    return types.int64(real), lambda context, builder, signature, args: I64(count)
