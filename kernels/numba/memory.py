"""Memory by address, for functions that Numba compiles.

Addresses are int64 and count bytes, indices count elements. Nothing is checked.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


def pointer(builder: Any, address: Any, kind: Any) -> Any:
    """The LLVM pointer to values of LLVM type `kind` at an integer address."""
    return builder.inttoptr(address, kind.as_pointer())


@intrinsic
def load(typing_context: Any, dtype: Any, address: Any, index: Any) -> Any:
    """load(np.float32, address, index): element `index` of the array at `address`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = pointer(builder, args[1], context.get_data_type(signature.return_type))
        return builder.load(builder.gep(array, [args[2]]))

    return dtype.dtype(dtype, types.int64, types.int64), generate


@intrinsic
def store(typing_context: Any, dtype: Any, address: Any, index: Any, value: Any) -> Any:
    """store(np.float32, address, index, value): write element `index` of the array at `address`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = pointer(builder, args[1], context.get_data_type(signature.args[3]))
        builder.store(args[3], builder.gep(array, [args[2]]))
        return context.get_dummy_value()

    return types.void(dtype, types.int64, types.int64, dtype.dtype), generate


@intrinsic
def offset(typing_context: Any, dtype: Any, address: Any, count: Any) -> Any:
    """offset(np.float32, address, count): the address of element `count` of the array at `address`."""
    size = dtype.dtype.bitwidth // 8

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.add(args[1], builder.mul(args[2], ir.Constant(args[2].type, size)))

    return types.int64(dtype, types.int64, types.int64), generate


def _argument(kind: Any) -> Any:
    """What reads an argument of a kernel, of this type."""

    def typing(typing_context: Any, args: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            array = pointer(builder, values[0], context.get_data_type(kind))
            return builder.load(builder.gep(array, [values[1]]))

        return kind(types.int64, types.int64), generate

    return intrinsic(typing)


word = _argument(types.int64)
"""word(args, index): an integer or an address among the arguments."""

number = _argument(types.float64)
"""number(args, index): a float64 among the arguments."""
