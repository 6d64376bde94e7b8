"""What threads tell each other: words that are read and written in one piece and in order. Addresses are int64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

I32, I64 = ir.IntType(32), ir.IntType(64)


def _word_pointer(builder: ir.IRBuilder, args: Sequence[Any]) -> Any:
    return builder.gep(builder.inttoptr(args[0], I64.as_pointer()), [args[1]])


@intrinsic
def acquire(typing: Any, address: Any, index: Any) -> Any:
    """The word at `address` + 8 `index`; what its writer wrote before is seen afterwards."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Sequence[Any]) -> Any:
        return builder.load_atomic(_word_pointer(builder, args), "acquire", 8)

    return types.int64(types.int64, types.int64), generate


@intrinsic
def release(typing: Any, address: Any, index: Any, value: Any) -> Any:
    """Write a word; who reads it by `acquire` sees all that was written before."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Sequence[Any]) -> Any:
        builder.store_atomic(args[2], _word_pointer(builder, args), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def fetch_add(typing: Any, address: Any, index: Any, value: Any) -> Any:
    """Add to a word; returns what it was."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Sequence[Any]) -> Any:
        return builder.atomic_rmw("add", _word_pointer(builder, args), args[2], "seq_cst")

    return types.int64(types.int64, types.int64, types.int64), generate


@intrinsic
def exchange(typing: Any, address: Any, index: Any, expected: Any, value: Any) -> Any:
    """Write `value` if the word is `expected`; returns whether it was."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Sequence[Any]) -> Any:
        result = builder.cmpxchg(_word_pointer(builder, args), args[2], args[3], "seq_cst", "seq_cst")
        return builder.extract_value(result, 1)

    return types.boolean(*[types.int64] * 4), generate


def _hint(module: ir.Module, name: str, *args: ir.Type) -> ir.Function:
    found = module.globals.get(name)
    return found if found is not None else ir.Function(module, ir.FunctionType(ir.VoidType(), args), name)


@intrinsic
def pause(typing: Any) -> Any:
    """Tell the core that this thread is waiting."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Sequence[Any]) -> Any:
        triple = llvm.get_process_triple()
        if triple.startswith("x86_64"):
            builder.call(_hint(builder.module, "llvm.x86.sse2.pause"), [])
        elif triple.startswith(("aarch64", "arm64")):
            builder.call(_hint(builder.module, "llvm.aarch64.hint", I32), [I32(1)])
        return context.get_dummy_value()

    return types.void(), generate
