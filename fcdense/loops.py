"""The Python source of a `Program` as a compiled loop over a tile of a matrix, for Numba.

What `codegen.py` is to NumPy, this is to Numba: all nodes of an element in one pass, in registers of the processor.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fcdense.errors import ArgumentError, DTypeError
from fcdense.lowering import lower
from fcdense.program import Program
from fcdense.symbol import Expr, topological

PATTERNS = "mrcs"
_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))

_INFIX = {
    "add": "{} + {}",
    "subtract": "{} - {}",
    "multiply": "{} * {}",
    "divide": "{} / {}",
    "negative": "-{}",
    "absolute": "abs({})",
    "greater": "{} > {}",
    "greater_equal": "{} >= {}",
    "equal": "{} == {}",
    "not_equal": "{} != {}",
    "logical_and": "{} & {}",
    "logical_or": "{} | {}",
    "logical_not": "not {}",
    "where": "vector_math.select({}, {}, {})",
    "indicator": "vector_math.select({}, ONE, ZERO)",
}
# The vectorized sine and cosine hold for arguments of moderate size.
_CIRCULAR = {"sin": "math.sin", "cos": "math.cos"}
# Those that NumPy's path applies to scalars, so that both paths get the same numbers.
_C_LIBRARY = {
    **{op: f"math.{op}" for op in ("exp", "expm1", "log", "log1p", "sqrt", "tanh", "sinh", "cosh", "hypot")},
    **_CIRCULAR,
    "arctan": "math.atan",
    "power": "math.pow",
}


def supports(program: Program, dtype: np.dtype[Any]) -> bool:
    """True if `tile_source` can write this program: float32 or float64, and every output a number."""
    return dtype in _DTYPES and not any(e.is_bool for e in program.outputs)


@functools.cache
def element(program: Program, dtype: np.dtype[Any]) -> Callable[..., Any]:
    """The program for one number of each operand, a function for Numba; it returns a number for each output.

    `supports(program, dtype)` holds, and there are no scalars.
    """
    scope: dict[str, Any] = {"__name__": program.name}
    exec(tile_source(program, dtype, "m" * (program.n_inputs - 1)), scope)
    function: Callable[..., Any] = scope.get("anywhere", scope["element"]).py_func
    return function


def tile_source(program: Program, dtype: np.dtype[Any], patterns: str, sums: bool = False) -> str:
    """The source of `kernel(args, z, ldz, r0, r1, c0, c1)`, a C function of seven int64 that returns nothing.

    It computes the program on rows r0 .. r1 - 1 and columns c0 .. c1 - 1, in a pass that LLVM vectorizes along the
    columns. Operand 0 is the tile `z` itself: the address of its element (r0, c0), and its row stride `ldz`. All other
    operands, and the outputs, are addressed by absolute row and column. Strides count elements.

    `args` is the address of int64 words::

        for each operand 1 .. n-1   address, row stride
        for each output             address, row stride   (address 0 of output 0: written over z)
        address of the float64 scalars                    (any number, if there are none)
        address of the column sums                        (only with `sums`)

    Scalars, and what depends on them alone, are computed in float64 and rounded once. An output may be the very memory
    of an operand, element for element; any other overlap gives undefined values.

    Parameters
    ----------
    program : Program
        `supports(program, dtype)` holds.
    dtype : float32 or float64
        Of z, the other operands, the outputs and the sums.
    patterns : str
        A letter for each of the operands 1 .. n-1: "m" a matrix, "r" one row for all (its stride is not read), "c" a
        column, element r at r times its stride, "s" a single element.
    sums : bool
        Add output 0 to the column sums: sums[c] += out[r, c], by absolute column, in the order of the rows.

    Raises
    ------
    ArgumentError
        The patterns do not fit the program.
    DTypeError
        For other dtypes, and conditions as outputs.
    """
    if len(patterns) != max(0, program.n_inputs - 1) or set(patterns) - set(PATTERNS):
        raise ArgumentError(
            f"Program {program.name!r}: patterns {patterns!r}, expected {max(0, program.n_inputs - 1)} of {PATTERNS!r}."
        )
    if not supports(program, dtype):
        raise DTypeError(f"Program {program.name!r}: no compiled loop for {dtype}, or for a condition as its output.")
    return _Writer(program, dtype, patterns, sums).source()


class _Writer:
    """The statements of one element, and of the loops around it."""

    def __init__(self, program: Program, dtype: np.dtype[Any], patterns: str, sums: bool) -> None:
        self.program = program
        self.dtype = dtype
        self.patterns = "m" + patterns
        self.sums = sums
        self.outputs = lower(program.outputs, dtype)
        self.order = topological(self.outputs)
        self.names: dict[Expr, str] = {}
        self.constants: dict[str, str] = {}
        # The statements of an element, and the same for circular functions of any argument.
        self.element: list[str] = []
        self.anywhere: list[str] = []
        # What `map_columns` takes: addresses to read from and to write to, and values that no column changes.
        self.reads: list[str] = []
        self.writes: list[str] = []
        self.values: list[str] = []
        # Statements before the loop over rows, at the start of a row, and at its end.
        self.begin: list[str] = []
        self.row: list[str] = []
        self.advance: list[str] = []

    def source(self) -> str:
        operands = sorted(e.value for e in self.order if e.op == "array")
        arguments = [f"x{i}" for i in sorted(operands, key=lambda i: self.patterns[i] in "cs")]
        for i in operands:
            self._operand(i)
        word = 2 * max(0, self.program.n_inputs - 1)
        for k in range(len(self.outputs)):
            self._output(k, word + 2 * k)
        word += 2 * len(self.outputs)
        if self.program.n_scalars:
            self.begin.append(f"scalars = {_word(word)}")
        if self.sums:
            self.begin.append(f"sums = {_word(word + 1)} + {self.dtype.itemsize} * c0")
        arguments += self._uniforms()
        self.names |= {e: f"x{e.value}" for e in self.order if e.op == "array"}
        for e in self.order:
            if not e.uniform and e.op != "array":
                self._statement(e)
        return self._text(", ".join(arguments))

    def _operand(self, i: int) -> None:
        """Address `a`, row stride `d`, and value `v` where it is the same for all columns."""
        pattern, size, word = self.patterns[i], self.dtype.itemsize, 2 * (i - 1)
        if i == 0:
            self.begin.append("a0, d0 = z, ldz")
        else:
            self.begin.append(f"a{i}, d{i} = {_word(word)}, {_word(word + 1)}")
        if pattern == "s":
            self.begin.append(f"v{i} = load(real, a{i}, 0)")
        elif pattern == "c":
            self.row.append(f"v{i} = load(real, a{i}, r * d{i})")
        elif i > 0:
            self.begin.append(f"a{i} += {size} * " + (f"(r0 * d{i} + c0)" if pattern == "m" else "c0"))
        if pattern == "m":
            self.advance.append(f"a{i} += {size} * d{i}")
        if pattern in "mr":
            self.reads.append(f"a{i}")
        else:
            self.values.append(f"v{i}")

    def _output(self, k: int, word: int) -> None:
        """Address `b` and row stride `e`."""
        size = self.dtype.itemsize
        self.begin.append(f"b{k}, e{k} = {_word(word)}, {_word(word + 1)}")
        start = f"b{k} + {size} * (r0 * e{k} + c0)"
        self.begin.append(f"b0, e0 = (z, ldz) if b0 == 0 else ({start}, e0)" if k == 0 else f"b{k} = {start}")
        self.writes.append(f"b{k}")
        self.advance.append(f"b{k} += {size} * e{k}")

    def _uniforms(self) -> list[str]:
        """Compute what depends on scalars alone, in float64, pass what elements read of it; the names it has there."""
        read = set(self.outputs).union(a for e in self.order if not e.uniform for a in e.args)
        passed = []
        for e in self.order:
            if e.op == "const":
                self.names[e] = repr(e.value) if e.is_bool else f"({_literal(e.value)})"
            elif e.uniform:
                self.names[e] = f"s{len(self.names)}"
                self.begin.append(f"{self.names[e]} = {self._uniform(e)}")
                if e in read:
                    self.values.append(self.names[e] if e.is_bool else f"real({self.names[e]})")
                    passed.append(e)
        self.names |= {e: f"u{i}" for i, e in enumerate(passed)}
        self.names |= {e: self._constant(e) for e in self.order if e.op == "const" and e in read}
        return [self.names[e] for e in passed]

    def _uniform(self, e: Expr) -> str:
        args = [self.names[a] for a in e.args]
        if e.op == "scalar":
            return f"load(np.float64, scalars, {e.value})"
        if e.op == "indicator":
            return f"vector_math.select({args[0]}, 1.0, 0.0)"
        if e.op in _INFIX:
            return _INFIX[e.op].format(*args)
        return f"{_C_LIBRARY.get(e.op, f'vector_math.{e.op}')}({', '.join(args)})"

    def _constant(self, e: Expr) -> str:
        """The name of a literal of the computed dtype; infinity where it has none so large."""
        if e.is_bool:
            return repr(e.value)
        with np.errstate(over="ignore"):
            value = float(self.dtype.type(e.value))
        return self.constants.setdefault(_literal(value), f"k{len(self.constants)}")

    def _statement(self, e: Expr) -> None:
        args = [self.names[a] for a in e.args]
        # No vectorized function: the C library's, one element after another.
        name = _C_LIBRARY[e.op] if e.op == "power" else f"vector_math.{e.op}"
        if e.op in ("maximum", "minimum") and e.args[1].op == "const" and not math.isnan(e.args[1].value):
            name = f"vector_math.{'at_least' if e.op == 'maximum' else 'at_most'}"
        self.names[e] = f"t{len(self.element)}"
        call = _INFIX[e.op].format(*args) if e.op in _INFIX else f"{name}({', '.join(args)})"
        self.element.append(f"{self.names[e]} = {call}")
        self.anywhere.append(
            f"{self.names[e]} = {_CIRCULAR[e.op]}({args[0]})" if e.op in _CIRCULAR else self.element[-1]
        )

    def _text(self, arguments: str) -> str:
        plain = re.fullmatch(r"\w+", self.program.name, re.ASCII)
        reads, values, writes = (
            f"({', '.join(items)}{',' * (len(items) == 1)})" for items in (self.reads, self.values, self.writes)
        )
        results = ", ".join(self.names[e] for e in self.outputs)
        functions = _function("element", arguments, self.element, results)
        rest = f"real, c1 - c0, {reads}, {values}"
        columns = f"map_columns(element, {rest}, {writes}, {'(sums,)' if self.sums else '()'})"
        angles = [f"abs({self.names[e.args[0]]})" for e in self.order if e.op in _CIRCULAR and not e.uniform]
        if angles:
            largest = functools.reduce("vector_math.maximum({}, {})".format, angles)
            functions += _function("largest_angle", arguments, self.element, largest)
            functions += _function("anywhere", arguments, self.anywhere, results)
            columns = (
                f"if vector_math.within_reach(max_columns(largest_angle, {rest})):\n"
                f"            {columns}\n        else:\n            {columns.replace('element', 'anywhere', 1)}"
            )
        return _TEMPLATE.format(
            name=self.program.name if plain else "function",
            dtype=self.dtype,
            patterns=self.patterns,
            constants="".join(f"\n{name} = real({text})" for text, name in self.constants.items()),
            functions=functions,
            begin="".join(f"\n    {line}" for line in self.begin),
            row="".join(f"\n        {line}" for line in self.row),
            columns=columns,
            advance="".join(f"\n        {line}" for line in self.advance),
        )


def _function(name: str, arguments: str, statements: Sequence[str], result: str) -> str:
    lines = "".join(f"    {line}\n" for line in (*statements, f"return {result}"))
    # Fusing products and sums is left to `vector_math`: of a sum of two products either may be fused, and then the bits
    # would depend on where an element lies.
    return f"@jitted()\ndef {name}({arguments}):\n{lines}\n\n"


def _word(index: int) -> str:
    return f"load(np.int64, args, {index})"


def _literal(value: float) -> str:
    """A number as Python and Numba read it."""
    return repr(value) if math.isfinite(value) else "math.nan" if math.isnan(value) else f"{value:+}"[0] + "math.inf"


_TEMPLATE = '''"""{name} on tiles of {dtype}, operands {patterns}."""

import math

import numpy as np

from fcdense.kernels.numba import vector_math
from fcdense.kernels.numba.columns import map_columns, max_columns
from fcdense.kernels.numba.compiled import jitted
from fcdense.kernels.numba.memory import load

real = np.{dtype}
ZERO, ONE = real(0.0), real(1.0){constants}


{functions}@jitted()
def kernel(args, z, ldz, r0, r1, c0, c1):{begin}
    for r in range(r0, r1):{row}
        {columns}{advance}


constants = ()
'''
