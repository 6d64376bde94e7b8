"""What can be done with expressions: differentiate, evaluate, substitute, and write as JSON data.

`Expr` and its variables are defined in `symbol.py` and offered here as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcdense import algebra
from fcdense.algebra import add, divide, multiply, negative
from fcdense.errors import FormatError
from fcdense.symbol import ARITY, BOOLEAN, Expr, array_var, const, is_const, node, scalar_var, topological

__all__ = [
    "Expr",
    "array_var",
    "const",
    "derive",
    "evaluate",
    "from_data",
    "scalar_var",
    "substitute",
    "to_data",
    "topological",
    "variables",
]

Array = NDArray[Any]


def variables(exprs: Iterable[Expr]) -> set[Expr]:
    """The array and scalar variables that occur in `exprs`."""
    return {e for e in topological(exprs) if e.op in ("array", "scalar")}


def substitute(exprs: Sequence[Expr], replacements: Mapping[Expr, Expr]) -> tuple[Expr, ...]:
    """`exprs` with each key of `replacements` replaced by its value."""
    new = dict(replacements)
    for e in topological(exprs):
        if e not in new:
            args = tuple(new[a] for a in e.args)
            new[e] = e if all(a is b for a, b in zip(args, e.args, strict=True)) else algebra.BUILD[e.op](*args)
    return tuple(new[e] for e in exprs)


# ---- derivatives -----------------------------------------------------------------------------------------------------

ZERO, ONE = const(0.0), const(1.0)


def _times(derivative: Expr, factor: object) -> Expr:
    """`derivative * factor`, where a derivative that is literally zero drops the factor."""
    return ZERO if derivative is ZERO else multiply(derivative, factor)


def _divide(y: Expr, a: Expr, b: Expr, da: Expr, db: Expr) -> Expr:
    # The usual (b da - a db) / b^2 overflows in b^2; the quotient y is at hand anyway.
    numerator = algebra.subtract(da, _times(db, y))
    return ZERO if numerator is ZERO else divide(numerator, b)


def _power(y: Expr, a: Expr, b: Expr, da: Expr, db: Expr) -> Expr:
    # Exponent 0 and base 0 are kept from 0 * inf: there the derivatives b a^(b-1) and a^b log(a) are 0.
    nonzero_b = b if b.op == "const" else algebra.where(algebra.compare("equal", b, 0.0), 1.0, b)
    nonzero_a = algebra.where(algebra.compare("equal", a, 0.0), 1.0, a)
    by_base = _times(da, multiply(b, algebra.power(a, algebra.subtract(nonzero_b, 1.0))))
    return add(by_base, _times(db, multiply(y, algebra.log(nonzero_a))))


def _extremum(wins: Callable[[Expr, Expr], Expr]) -> Callable[..., Expr]:
    """Derivative of maximum or minimum; `wins(a, b)` is the condition under which a is chosen.

    At a tie the derivative of a uniform operand wins, so that relu'(0) = 0; between two arrays it is the mean of both.
    """

    def rule(y: Expr, a: Expr, b: Expr, da: Expr, db: Expr) -> Expr:
        if b.uniform:
            return algebra.where(wins(a, b), da, db)
        if a.uniform:
            return algebra.where(wins(b, a), db, da)
        if is_const(da, 1.0) and db is ZERO:
            strict = wins(a, b)
            weak = algebra.compare("greater_equal", *strict.args)
            return multiply(add(algebra.indicator(strict), algebra.indicator(weak)), 0.5)
        if is_const(db, 1.0) and da is ZERO:
            return rule(y, b, a, db, da)
        return algebra.where(wins(a, b), da, algebra.where(wins(b, a), db, multiply(add(da, db), 0.5)))

    return rule


def _zero(*_: Expr) -> Expr:
    return ZERO


# name -> rule(y, *operands, *their derivatives) for y = name(*operands)
RULES: dict[str, Callable[..., Expr]] = {
    "add": lambda y, a, b, da, db: add(da, db),
    "subtract": lambda y, a, b, da, db: algebra.subtract(da, db),
    "multiply": lambda y, a, b, da, db: add(_times(da, b), _times(db, a)),
    "divide": _divide,
    "negative": lambda y, a, da: negative(da),
    "power": _power,
    "absolute": lambda y, a, da: _times(da, algebra.sign(a)),
    "sign": _zero,
    "exp": lambda y, a, da: _times(da, y),
    "expm1": lambda y, a, da: _times(da, algebra.exp(a)),
    "log": lambda y, a, da: divide(da, a),
    "log1p": lambda y, a, da: divide(da, add(a, 1.0)),
    "sqrt": lambda y, a, da: divide(multiply(da, 0.5), y),
    "tanh": lambda y, a, da: _times(da, algebra.subtract(1.0, multiply(y, y))),
    "sinh": lambda y, a, da: _times(da, algebra.cosh(a)),
    "cosh": lambda y, a, da: _times(da, algebra.sinh(a)),
    "sin": lambda y, a, da: _times(da, algebra.cos(a)),
    "cos": lambda y, a, da: negative(_times(da, algebra.sin(a))),
    "arctan": lambda y, a, da: divide(da, add(multiply(a, a), 1.0)),
    "hypot": lambda y, a, b, da, db: add(_times(da, divide(a, y)), _times(db, divide(b, y))),
    "erf": lambda y, a, da: _times(da, multiply(algebra.exp(negative(multiply(a, a))), 2.0 / math.sqrt(math.pi))),
    "ndtr": lambda y, a, da: _times(da, multiply(algebra.gaussian(a), 1.0 / math.sqrt(2.0 * math.pi))),
    "sigmoid": lambda y, a, da: _times(da, multiply(y, algebra.subtract(1.0, y))),
    "softplus": lambda y, a, da: _times(da, algebra.sigmoid(a)),
    "maximum": _extremum(lambda a, b: algebra.compare("greater", a, b)),
    "minimum": _extremum(lambda a, b: algebra.compare("greater", b, a)),
    "indicator": _zero,
    **dict.fromkeys(BOOLEAN, _zero),
}


def derive(expr: Expr, var: Expr) -> Expr:
    """The derivative of `expr` with respect to the variable `var`, simplified.

    Conventions where none exists: |x|' = 0 at 0; at a tie of maximum or minimum the derivative of a constant operand
    wins, and two array operands share it equally; comparisons and `sign` have derivative 0.
    """
    return _derive(expr, var, {})


def _derive(expr: Expr, var: Expr, assumed: dict[Expr, Expr]) -> Expr:
    known = {var: ONE, **assumed}
    stack = [expr]
    while stack:
        e = stack[-1]
        if e in known:
            stack.pop()
        elif e.op in ("const", "array", "scalar") or e.op in BOOLEAN:
            known[e] = ZERO
        elif e.op == "where":
            condition, a, b = e.args
            da = _derive(a, var, {**assumed, **_implied(condition, var, assumed, True)})
            db = _derive(b, var, {**assumed, **_implied(condition, var, assumed, False)})
            known[e] = algebra.where(condition, da, db)
        elif missing := [a for a in e.args if a not in known]:
            stack.extend(missing)
        else:
            known[e] = RULES[e.op](e, *e.args, *(known[a] for a in e.args))
    return known[expr]


def _implied(condition: Expr, var: Expr, assumed: dict[Expr, Expr], holds: bool) -> dict[Expr, Expr]:
    """Derivatives of maximum and minimum of the two sides of a comparison, in the branch where it holds or fails.

    Where x > 0 fails, minimum(x, 0) is x, at the tie as well: the guard of exp in ELU must not zero its slope at 0.
    """
    if condition.op not in ("greater", "greater_equal"):
        return {}
    larger, smaller = condition.args if holds else reversed(condition.args)
    d_larger, d_smaller = _derive(larger, var, assumed), _derive(smaller, var, assumed)
    return {
        algebra.maximum(larger, smaller): d_larger,
        algebra.maximum(smaller, larger): d_larger,
        algebra.minimum(larger, smaller): d_smaller,
        algebra.minimum(smaller, larger): d_smaller,
    }


# ---- values ----------------------------------------------------------------------------------------------------------


def _sigmoid(x: Array) -> Array:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0 / (1.0 + small), small / (1.0 + small))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{op: getattr(np, op) for op in ARITY if hasattr(np, op)},
    "erf": np.vectorize(math.erf, otypes=[float]),
    "ndtr": np.vectorize(lambda x: 0.5 * math.erfc(-x * math.sqrt(0.5)), otypes=[float]),
    "sigmoid": _sigmoid,
    "softplus": lambda x: np.logaddexp(0.0, x),
    "indicator": lambda c: np.where(c, 1.0, 0.0),
}


def evaluate(exprs: Sequence[Expr], arrays: Sequence[Any], scalars: Sequence[float] = ()) -> list[Array]:
    """The values of `exprs`, node by node in plain NumPy: the obvious way, which the emitted code is tested against.

    Returns
    -------
    list of ndarray
        One per expression, broadcast against all `arrays`, in their common floating-point dtype (bool for conditions).
    """
    inputs = [np.asarray(a) for a in arrays]
    shape = np.broadcast_shapes(*(a.shape for a in inputs))
    dtype = np.result_type(*inputs) if inputs else np.dtype(np.float64)
    if dtype.kind != "f":
        dtype = np.dtype(np.float64)
    inputs = [a.astype(dtype) for a in inputs]
    values: dict[Expr, Any] = {}
    with np.errstate(all="ignore"):
        for e in topological(exprs):
            if e.op == "const":
                values[e] = e.value
            elif e.op in ("array", "scalar"):
                values[e] = inputs[e.value] if e.op == "array" else float(scalars[e.value])
            else:
                value = _FUNCTIONS[e.op](*(values[a] for a in e.args))
                # Values that depend on scalars alone stay Python floats, which take the dtype of the arrays they meet.
                values[e] = value.item() if e.uniform else value.astype(bool if e.is_bool else dtype)
        return [np.array(np.broadcast_to(values[e], shape), bool if e.is_bool else dtype) for e in exprs]


# ---- data ------------------------------------------------------------------------------------------------------------


def to_data(exprs: Sequence[Expr]) -> dict[str, Any]:
    """`exprs` in what JSON can hold: {"nodes": [[op, operand numbers ...]], "outputs": [node number, ...]}."""
    order = topological(exprs)
    number = {e: i for i, e in enumerate(order)}
    nodes: list[list[Any]] = []
    for e in order:
        # JSON has no infinities and NaN; float() reads these strings back.
        plain = isinstance(e.value, (bool, int)) or (e.value is not None and math.isfinite(e.value))
        operands = [number[a] for a in e.args] if e.args else [e.value if plain else repr(e.value)]
        nodes.append([e.op, *operands])
    return {"nodes": nodes, "outputs": [number[e] for e in exprs]}


def from_data(data: Any) -> tuple[Expr, ...]:
    """The expressions that `to_data` wrote.

    Raises
    ------
    FormatError
        If `data` is not of that form.
    """
    built: list[Expr] = []
    try:
        for op, *operands in data["nodes"]:
            built.append(_node_from_data(op, operands, built))
        return tuple(built[_index(n, len(built))] for n in data["outputs"])
    except FormatError as error:
        raise FormatError(f"Expression node {len(built)}: {error}") from None
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise FormatError(f"Not an expression: {error!r}. Expected what to_data() returned.") from None


def _index(value: Any, stop: int) -> int:
    if type(value) is not int or not 0 <= value < stop:
        raise FormatError(f"refers to {value!r}, expected an index from 0 to {stop - 1}.")
    return value


def _node_from_data(op: Any, operands: list[Any], built: list[Expr]) -> Expr:
    if op not in ARITY:
        raise FormatError(f"unknown operation {op!r}; this file may come from a newer version.")
    if len(operands) != (ARITY[op] or 1):
        raise FormatError(f"{op} takes {ARITY[op] or 1} operands, given {len(operands)}.")
    if op == "const":
        if not isinstance(operands[0], (bool, int, float)) and operands[0] not in ("inf", "-inf", "nan"):
            raise FormatError(f"constant {operands[0]!r} is not a number.")
        return const(float(operands[0]) if isinstance(operands[0], str) else operands[0])
    if op in ("array", "scalar"):
        return node(op, value=_index(operands[0], 1 << 16))
    args = tuple(built[_index(n, len(built))] for n in operands)
    for i, a in enumerate(args):
        expected = op.startswith("logical") or op == "indicator" or (op == "where" and i == 0)
        if a.is_bool is not expected:
            raise FormatError(f"{op} expects a {'condition' if expected else 'number'}, given {a.op}.")
    return node(op, *args)
