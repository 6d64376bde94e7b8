"""Numbers below the normal range, taken as zero: arithmetic on them is many times slower.

They come up in ordinary training: the moments of a unit that gets no gradient any more decay through that range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

INT32 = ir.IntType(32)
FLUSH = 0x8040
"""The bits "flush to zero" and "denormals are zero" of the x86 register MXCSR."""

_HAS_MXCSR = llvm.get_process_triple().startswith("x86_64")


def _call(builder: ir.IRBuilder, name: str, place: Any) -> None:
    pointer = ir.IntType(8).as_pointer()
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), [pointer]), name)
    builder.call(function, [builder.bitcast(place, pointer)])


@intrinsic
def flush_denormals(typing: Any) -> Any:
    """Take them as zero on this thread. Returns the setting before, for `restore`; 0 where there is none."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Sequence[Any]) -> Any:
        if not _HAS_MXCSR:
            return INT32(0)
        place = builder.alloca(INT32)
        _call(builder, "llvm.x86.sse.stmxcsr", place)
        before = builder.load(place)
        builder.store(builder.or_(before, INT32(FLUSH)), place)
        _call(builder, "llvm.x86.sse.ldmxcsr", place)
        return before

    return types.int32(), generate


@intrinsic
def restore(typing: Any, before: Any) -> Any:
    """The setting that `flush_denormals` returned."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Sequence[Any]) -> Any:
        if _HAS_MXCSR:
            place = builder.alloca(INT32)
            builder.store(args[0], place)
            _call(builder, "llvm.x86.sse.ldmxcsr", place)
        return context.get_dummy_value()

    return types.void(types.int32), generate
