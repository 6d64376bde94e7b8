"""Calls of compiled functions by their address."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

INT64 = ir.IntType(64)


@intrinsic
def call_tile(typing: Any, function: Any, args: Any, z: Any, ldz: Any, r0: Any, r1: Any, c0: Any, c1: Any) -> Any:
    """Call the tile kernel at an address."""
    return types.void(*[types.int64] * 8), _call


@intrinsic
def call_kernel(typing: Any, function: Any, args: Any, share: Any, shares: Any, thread: Any) -> Any:
    """Call the instruction kernel at an address."""
    return types.void(*[types.int64] * 5), _call


@intrinsic
def call_rows(typing: Any, function: Any, args: Any, r0: Any, r1: Any, chunk: Any) -> Any:
    """Call the row kernel at an address."""
    return types.void(*[types.int64] * 5), _call


def _call(context: Any, builder: ir.IRBuilder, signature: Any, args: Sequence[Any]) -> Any:
    kind = ir.FunctionType(ir.VoidType(), [INT64] * (len(args) - 1))
    builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
    return context.get_dummy_value()
