"""The loop over the columns of a row, whose iterations LLVM may run in any order and so vectorizes.

A Python loop leaves it to LLVM to prove that no iteration reads what another wrote: with four arrays and more it gives
up, and arrays updated in place are never vectorized. Here the loop makes that promise (`llvm.loop.parallel_accesses`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fcdense.kernels.numba.arithmetic import FLOATS, Value, where
from fcdense.kernels.numba.memory import pointer

INT64 = ir.IntType(64)
# Columns up to which a vector loop's remainder, done one by one, would cost more than masks in every iteration.
SHORT = 128


class _DistinctNode(ir.values.MDValue):
    """A metadata node that is equal to no other; `itself` makes it its own first operand, as loops are named."""

    def __init__(self, module: Any, operands: tuple[Any, ...] = (), itself: bool = False) -> None:
        super().__init__(module, operands, name=str(len(module.metadata)))
        self.itself = itself

    def descr(self, buf: Any) -> None:
        """Write the node's text, for the module's."""
        operands = [self, *self.operands] if self.itself else self.operands
        buf += (f"distinct !{{ {', '.join(op.get_reference() for op in operands)} }}", "\n")

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


class _Loop:
    """The body of a loop over columns, in the making."""

    def __init__(self, builder: Any, count: Any, masked: bool, start: Any = None) -> None:
        """`start` is the first value of what is carried from column to column, if anything is."""
        self.builder, self.count, module = builder, count, builder.module
        # LLVM prefers 256 bits on chips that once lowered their clock for 512.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        self.group = _DistinctNode(module)
        options = [module.add_metadata([ir.MetaDataString(module, "llvm.loop.parallel_accesses"), self.group])]
        if masked:
            name = ir.MetaDataString(module, "llvm.loop.vectorize.predicate.enable")
            options.append(module.add_metadata([name, ir.Constant(ir.IntType(1), 1)]))
        self.name = _DistinctNode(module, tuple(options), itself=True)
        self.before, self.body = builder.block, builder.append_basic_block("column")
        self.end = builder.append_basic_block("columns.end")
        zero = ir.Constant(INT64, 0)
        builder.cbranch(builder.icmp_signed(">", count, zero), self.body, self.end)
        builder.position_at_end(self.body)
        self.column = builder.phi(INT64)
        self.column.add_incoming(zero, self.before)
        if start is not None:
            self.start = start
            self.carried = builder.phi(start.type)
            self.carried.add_incoming(start, self.before)

    def load(self, array: Any) -> Any:
        """This column of an array."""
        return self._access(self.builder.load(self._place(array)), array)

    def store(self, value: Any, array: Any) -> None:
        """Write this column of an array."""
        self._access(self.builder.store(value, self._place(array)), array)

    def close(self, carried: Any = None) -> Any:
        """Go on with the next column. What the last one carried on, or `start`."""
        builder, last = self.builder, self.builder.block
        following = builder.add(self.column, ir.Constant(INT64, 1), flags=("nuw", "nsw"))
        self.column.add_incoming(following, last)
        if carried is not None:
            self.carried.add_incoming(carried, last)
        again = builder.cbranch(builder.icmp_signed("<", following, self.count), self.body, self.end)
        again.set_metadata("llvm.loop", self.name)
        builder.position_at_end(self.end)
        if carried is None:
            return None
        result = builder.phi(carried.type)
        result.add_incoming(self.start, self.before)
        result.add_incoming(carried, last)
        return result

    def _place(self, array: Any) -> Any:
        return self.builder.gep(array, [self.column], inbounds=True)

    def _access(self, instruction: Any, array: Any) -> Any:
        instruction.set_metadata("llvm.access.group", self.group)
        instruction.align = 8 if isinstance(array.type.pointee, ir.DoubleType) else 4
        return instruction


def _inline(context: Any, builder: Any, function: Any, signature: Any, args: Any) -> list[Any]:
    """The results of a jitted function that cannot raise. It is inlined: no loop with a call in it is vectorized."""
    compiled = function.dispatcher.overloads[signature.args]
    context.add_linking_libs([compiled.library])
    description = compiled.fndesc
    callee = context.declare_function(builder.module, description)
    types_ = description.restype, description.argtypes
    result = context.call_conv.call_function(builder, callee, *types_, args, attrs=("alwaysinline",))[1]
    return cgutils.unpack_tuple(builder, result) if isinstance(signature.return_type, types.BaseTuple) else [result]


def _arrays(builder: Any, kind: Any, addresses: Any) -> list[Any]:
    return [pointer(builder, a, FLOATS[kind]) for a in cgutils.unpack_tuple(builder, addresses)]


def _reduce(builder: Any, count: Any, start: Any, body: Callable[[_Loop], Any]) -> Any:
    """What `body` carries from column to column; short rows in vectors with a mask, long ones several at a time."""
    with builder.if_else(builder.icmp_signed("<=", count, ir.Constant(INT64, SHORT))) as (short, long):
        with short:
            loop = _Loop(builder, count, masked=True, start=start)
            few, after_few = loop.close(body(loop)), builder.block
        with long:
            loop = _Loop(builder, count, masked=False, start=start)
            many, after_many = loop.close(body(loop)), builder.block
    result = builder.phi(start.type)
    result.add_incoming(few, after_few)
    result.add_incoming(many, after_many)
    return result


@intrinsic
def map_columns(
    typing_context: Any, function: Any, dtype: Any, count: Any, reads: Any, values: Any, writes: Any, sums: Any
) -> Any:
    """For every column c below `count`: results = function(array[c] for each of reads, *values); store them.

    Parameters
    ----------
    function : jitted function
        Of numbers alone. Returns one number of `dtype`, or a tuple of them.
    dtype : np.float32 or np.float64
        Of all arrays.
    count : int64
    reads : tuple of int64
        Addresses of arrays.
    values : tuple
        Further arguments, the same for all columns.
    writes : tuple of int64
        An address for each result. An array may be one of `reads`, element for element; no other overlap.
    sums : tuple of int64
        Empty, or the address of an array to which the first result is added.
    """
    kind = dtype.dtype
    called = function.get_call_type(typing_context, (*[kind] * len(reads), *values), {})

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sources, targets, totals = (_arrays(builder, kind, args[i]) for i in (3, 5, 6))
        constants = cgutils.unpack_tuple(builder, args[4])
        loop = _Loop(builder, args[2], masked=False)
        results = _inline(context, builder, function, called, [*map(loop.load, sources), *constants])
        for target, result in zip(targets, results, strict=True):
            loop.store(result, target)
        for total in totals:
            loop.store(builder.fadd(loop.load(total), results[0]), total)
        loop.close()
        return context.get_dummy_value()

    return types.void(function, dtype, types.int64, reads, values, writes, sums), generate


@intrinsic
def sum_columns(
    typing_context: Any, function: Any, dtype: Any, count: Any, reads: Any, values: Any, writes: Any
) -> Any:
    """The sum over the columns of what `function` returns, in its dtype and in no particular order; see `map_columns`.

    With an address in `writes`, its values are stored as well.
    """
    kind = dtype.dtype
    called = function.get_call_type(typing_context, (*[kind] * len(reads), *values), {})

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sources, targets = (_arrays(builder, kind, args[i]) for i in (3, 5))
        constants = cgutils.unpack_tuple(builder, args[4])
        start = ir.Constant(FLOATS[signature.return_type], 0.0)

        def body(loop: _Loop) -> Any:
            (result,) = _inline(context, builder, function, called, [*map(loop.load, sources), *constants])
            for target in targets:
                loop.store(result, target)
            return builder.fadd(loop.carried, result, flags=("reassoc", "nsz"))

        return _reduce(builder, args[2], start, body)

    return called.return_type(function, dtype, types.int64, reads, values, writes), generate


@intrinsic
def max_columns(typing_context: Any, function: Any, dtype: Any, count: Any, reads: Any, values: Any) -> Any:
    """The largest of what `function` returns, of `dtype`, -inf without columns; see `map_columns`.

    NaN wins where its sign bit is 0, and loses where it is 1.
    """
    kind = dtype.dtype
    called = function.get_call_type(typing_context, (*[kind] * len(reads), *values), {})

    def ordered(bits: Value) -> Value:
        """Integers in the order of the numbers whose bits they are, and back: LLVM vectorizes their maximum."""
        width = bits.of(32, 64)
        sign = bits.new(bits.builder.ashr(bits.value, bits.constant(width - 1).value))
        return bits ^ (sign & ((1 << (width - 1)) - 1))

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sources, constants = _arrays(builder, kind, args[3]), cgutils.unpack_tuple(builder, args[4])
        lowest = ordered(Value(builder, ir.Constant(FLOATS[kind], float("-inf"))).bits())

        def body(loop: _Loop) -> Any:
            (result,) = _inline(context, builder, function, called, [*map(loop.load, sources), *constants])
            element, largest = ordered(Value(builder, result).bits()), Value(builder, loop.carried)
            return where(element > largest, element, largest).value

        return ordered(Value(builder, _reduce(builder, args[2], lowest.value, body))).number().value

    return kind(function, dtype, types.int64, reads, values), generate
