"""Functions of numbers written as formulas and emitted as LLVM instructions, free of branches and of calls.

`Value` stands for a float32, float64, int32, int64 or a condition while such a formula is emitted. LLVM may join a
product and a sum into one rounding (`contract`), and may do nothing else that changes a result: NaN, infinities, signed
zeros and the order of operations are kept, as the tricks with rounding in these formulas need it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

FLOATS = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}
_CONTRACT = ("contract",)


class Value:
    """A number of LLVM type `float`, `double`, `i32` or `i64`, or a condition (`i1`), in the making.

    Operators and comparisons emit one instruction each; Python numbers take the type of the value they meet.
    """

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder = builder
        self.value = value
        self.type = value.type

    @property
    def is_float(self) -> bool:
        return isinstance(self.type, (ir.FloatType, ir.DoubleType))

    @property
    def is_wide(self) -> bool:
        return self.type in (ir.DoubleType(), ir.IntType(64))

    def new(self, value: Any) -> Value:
        """A value of the same builder."""
        return Value(self.builder, value)

    def of(self, float32: Any, float64: Any) -> Any:
        """What belongs to the width of this number."""
        return float64 if self.is_wide else float32

    def constant(self, number: Any) -> Value:
        """`number` in the type of this value."""
        if isinstance(number, Value):
            return number
        if self.is_float:
            with np.errstate(over="ignore"):
                number = float(number if self.is_wide else np.float32(number))
        return self.new(ir.Constant(self.type, number))

    def _emit(self, real: str, whole: str, a: Any, b: Any) -> Value:
        a, b = self.constant(a).value, self.constant(b).value
        if self.is_float:
            flags = _CONTRACT if real != "fdiv" else ()
            return self.new(getattr(self.builder, real)(a, b, flags=flags))
        return self.new(getattr(self.builder, whole)(a, b))

    def __add__(self, other: Any) -> Value:
        return self._emit("fadd", "add", self, other)

    def __radd__(self, other: Any) -> Value:
        return self._emit("fadd", "add", other, self)

    def __sub__(self, other: Any) -> Value:
        return self._emit("fsub", "sub", self, other)

    def __rsub__(self, other: Any) -> Value:
        return self._emit("fsub", "sub", other, self)

    def __mul__(self, other: Any) -> Value:
        return self._emit("fmul", "mul", self, other)

    def __rmul__(self, other: Any) -> Value:
        return self._emit("fmul", "mul", other, self)

    def __truediv__(self, other: Any) -> Value:
        return self._emit("fdiv", "sdiv", self, other)

    def __rtruediv__(self, other: Any) -> Value:
        return self._emit("fdiv", "sdiv", other, self)

    def __neg__(self) -> Value:
        return self.new(self.builder.fneg(self.value))

    def __abs__(self) -> Value:
        return (self.bits() & ~self.sign_bit).number()

    @property
    def sign_bit(self) -> int:
        """Of its bits. (LLVM has functions for fabs and copysign, which the compiler for GPUs refuses.)"""
        return int(self.of(1 << 31, 1 << 63))

    def __and__(self, other: Any) -> Value:
        return self.new(self.builder.and_(self.value, self.constant(other).value))

    def __or__(self, other: Any) -> Value:
        return self.new(self.builder.or_(self.value, self.constant(other).value))

    def __xor__(self, other: Any) -> Value:
        return self.new(self.builder.xor(self.value, self.constant(other).value))

    def __lshift__(self, count: int) -> Value:
        return self.new(self.builder.shl(self.value, self.constant(count).value))

    def __rshift__(self, count: int) -> Value:
        """The logical shift: zeros come in from the left."""
        return self.new(self.builder.lshr(self.value, self.constant(count).value))

    def compare(self, sign: str, other: Any) -> Value:
        """Numbers compared as in Python; every comparison with NaN is false, but for `!=`."""
        b = self.constant(other).value
        if not self.is_float:
            return self.new(self.builder.icmp_signed(sign, self.value, b))
        ordered = self.builder.fcmp_unordered if sign == "!=" else self.builder.fcmp_ordered
        return self.new(ordered(sign, self.value, b))

    def __gt__(self, other: Any) -> Value:
        return self.compare(">", other)

    def __lt__(self, other: Any) -> Value:
        return self.compare("<", other)

    def __ge__(self, other: Any) -> Value:
        return self.compare(">=", other)

    def __le__(self, other: Any) -> Value:
        return self.compare("<=", other)

    def intrinsic(self, name: str, *others: Value) -> Value:
        """LLVM's own function of this name."""
        args = [self.value, *(v.value for v in others)]
        form = ir.FunctionType(self.type, [self.type] * len(args))
        return self.new(self.builder.call(self.builder.module.declare_intrinsic(name, [self.type], form), args))

    def bits(self) -> Value:
        """The same bits as an integer."""
        return self.new(self.builder.bitcast(self.value, ir.IntType(self.of(32, 64))))

    def number(self) -> Value:
        """The same bits as a floating-point number."""
        return self.new(self.builder.bitcast(self.value, self.of(ir.FloatType(), ir.DoubleType())))


def where(condition: Value, a: Value, b: Any) -> Value:
    """a where the condition holds, else b; one of them is a `Value`."""
    a, b = (a, a.constant(b)) if isinstance(a, Value) else (b.constant(a), b)
    return a.new(a.builder.select(condition.value, a.value, b.value))


def sqrt(x: Value) -> Value:
    """The correctly rounded square root; NaN below 0."""
    return x.intrinsic("llvm.sqrt")


def copysign(size: Value, sign: Value) -> Value:
    """|size| with the sign of `sign`."""
    return ((size.bits() & ~size.sign_bit) | (sign.bits() & size.sign_bit)).number()


def horner(x: Value, coefficients: tuple[float, ...]) -> Value:
    """The polynomial with the highest power first."""
    total = x.constant(coefficients[0])
    for c in coefficients[1:]:
        total = total * x + c
    return total


def formula(function: Callable[..., Value]) -> Any:
    """A function that compiled code can call, from the formula that emits it: numbers of one type in, one out.

    The formula stays reachable, as `.formula`, for other formulas to use.
    """
    names = list(inspect.signature(function).parameters)

    def typing(typing_context: Any, *args: Any) -> Any:
        kind = args[0]

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return function(*(Value(builder, v) for v in values)).value

        return kind(*[kind] * len(names)), generate

    # Numba reads the parameters of an intrinsic off its signature.
    scope: dict[str, Any] = {"typing": typing}
    arguments = ", ".join(["typing_context", *names])
    exec(f"def {function.__name__}({arguments}): return typing({arguments})", scope)
    compiled = intrinsic(scope[function.__name__])
    compiled.__doc__ = function.__doc__
    return compiled
