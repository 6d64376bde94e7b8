"""The CUDA C++ of a `Program`: a struct that loads operands, computes and stores, for the kernels that take one.

What `codegen.py` is to NumPy and `loops.py` to Numba, this is to CUDA. The functions are those of
`kernels/cuda/numbers.cuh`, named as the traced operations are: accurate ones, and approximate ones where all that they
lead to is rounded to bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from fcdense.errors import DTypeError
from fcdense.program import Program
from fcdense.symbol import Expr, topological

_INFIX = {
    "add": "{} + {}",
    "subtract": "{} - {}",
    "multiply": "{} * {}",
    "divide": "{} / {}",
    "negative": "-{}",
    "greater": "{} > {}",
    "greater_equal": "{} >= {}",
    "equal": "{} == {}",
    "not_equal": "{} != {}",
    "logical_and": "{} && {}",
    "logical_or": "{} || {}",
    "logical_not": "!{}",
}

STORED = {
    "float16": "Half",
    "bfloat16": "Bfloat16",
    "float32": "float",
    "float64": "double",
    "bool": "bool",
    "int8": "signed char",
    "int16": "short",
    "int32": "int",
    "int64": "long long",
    "uint8": "unsigned char",
    "uint16": "unsigned short",
    "uint32": "unsigned",
    "uint64": "unsigned long long",
}
"""How kernels name the type of stored numbers, by the name of the dtype."""

APPROXIMATE = ("exp", "tanh", "sigmoid", "softplus")
"""What the GPU approximates well enough for results of bfloat16, and much faster."""

_WIDTH = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


def stored(dtype: np.dtype[Any]) -> str:
    """The C++ name of a dtype.

    Raises
    ------
    DTypeError
        For complex numbers, text and objects.
    """
    try:
        return STORED[dtype.name]
    except KeyError:
        raise DTypeError(f"CUDA kernels have no numbers of {dtype}; expected one of {', '.join(STORED)}.") from None


def computed(inputs: Sequence[np.dtype[Any]], outs: Sequence[np.dtype[Any]]) -> str:
    """What a program with such operands computes in: "float", or "double" if its widest floating output is float64.

    Without a floating output it is the widest floating input, and double where there is none.
    """
    floats = [d.name for d in outs if d.name in _WIDTH] or [d.name for d in inputs if d.name in _WIDTH] or ["float64"]
    return "double" if "float64" in floats else "float"


def functor(
    program: Program,
    inputs: Sequence[np.dtype[Any]],
    outs: Sequence[np.dtype[Any]],
    repeated: Collection[int] = (),
) -> str:
    """The struct `Program` for operands of these dtypes.

    `repeated` are the numbers of the inputs that the last axis repeats; to be told where it takes several at once.
    """
    writer = _Writer(program, inputs, outs)
    n_inputs, n_outputs, n_scalars = program.n_inputs, len(program.outputs), program.n_scalars
    loads = [
        f"load{'_repeated' if k in repeated else ''}<C, {stored(dtype)}, N>(a.inputs[{k}], place)"
        for k, dtype in enumerate(inputs)
    ]
    first = loads[0] if loads else "{}"
    before = [f"const Numbers<C, N> x{k} = {load};" for k, load in enumerate(loads) if k]
    results = ", ".join(f"y{k}" for k in range(n_outputs))
    stores = [f"store<{stored(dtype)}>(a.outputs[{k}], place, y{k});" for k, dtype in enumerate(outs)]
    each = "\n            ".join(writer.lines())
    before_and_results = "\n        ".join([*before, f"Numbers<C, N> {results};"])
    after = "\n        ".join(stores)
    return f"""// {program.name}
struct Program {{
    using C = {writer.type};
    template <int DIMS>
    using Arguments = Operands<DIMS, {n_inputs}, {n_outputs}, {n_scalars}>;

    template <int N, int DIMS>
    static __device__ __forceinline__ void run(const Arguments<DIMS>& a, const Place<DIMS>& place) {{
        Numbers<C, N> x0 = {first};
        run(a, place, x0);
    }}

    // Input 0 is given in x0, which becomes output 0.
    template <int N, int DIMS>
    static __device__ __forceinline__ void run(const Arguments<DIMS>& a, const Place<DIMS>& place, Numbers<C, N>& x0) {{
        {before_and_results}
#pragma unroll
        for (int e = 0; e < N; e++) {{
            {each}
        }}
        {after}
        x0 = y0;
    }}
}};
"""


class _Writer:
    """One pass over the nodes. What depends on scalars alone is computed in double and rounded once."""

    def __init__(self, program: Program, inputs: Sequence[np.dtype[Any]], outs: Sequence[np.dtype[Any]]) -> None:
        self.program = program
        self._approximates = bool(outs) and all(dtype.name == "bfloat16" for dtype in outs)
        self.type = computed(inputs, outs)
        self._names: dict[Expr, str] = {}

    def lines(self) -> list[str]:
        """The statements, the last of which returns output 0."""
        lines: list[str] = []
        for e in topological(self.program.outputs):
            line = self._statement(e, len(lines))
            if line:
                lines.append(line)
        results = [f"C({self._operand(e, uniform=False)})" for e in self.program.outputs]
        return [*lines, *(f"y{k}.at[e] = {result};" for k, result in enumerate(results))]

    def _statement(self, e: Expr, number: int) -> str:
        """That which names the value of a node; "" if it has a name without one."""
        if e.op == "const":
            return ""
        if e.op == "array":
            self._names[e] = f"x{e.value}.at[e]"
            return ""
        kind = "bool" if e.is_bool else "double" if e.uniform else "C"
        self._names[e] = f"t{number}"
        return f"const {kind} t{number} = {self._value(e)};"

    def _value(self, e: Expr) -> str:
        if e.op == "scalar":
            return f"a.scalar({e.value})"
        # A condition compares in double where all that it compares is uniform.
        args = [self._operand(a, uniform=e.uniform) for a in e.args]
        if e.op == "where":
            return "{} ? {} : {}".format(*args)
        if e.op == "indicator":
            return f"{args[0]} ? {'1.0' if e.uniform else 'C(1)'} : {'0.0' if e.uniform else 'C(0)'}"
        if e.op in _INFIX:
            return _INFIX[e.op].format(*args)
        name = f"approximate::{e.op}" if self._approximates and e.op in APPROXIMATE and not e.uniform else e.op
        return f"{name}({', '.join(args)})"

    def _operand(self, e: Expr, uniform: bool) -> str:
        """A node as an operand of a uniform one, in double, or of another one."""
        if e.op == "const":
            return _literal(e.value, "double" if uniform else self.type)
        name = self._names[e]
        return name if e.is_bool or uniform or not e.uniform else f"C({name})"


def _literal(value: Any, kind: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if kind == "float":
        with np.errstate(over="ignore"):
            value = float(np.float32(value))
    if math.isnan(value):
        return f"not_a_number<{kind}>()"
    if math.isinf(value):
        return f"{'-' if value < 0 else ''}infinity<{kind}>()"
    text = f"{value!r}{'f' if kind == 'float' else ''}"
    return f"({text})" if value < 0 or text.startswith("-") else text
