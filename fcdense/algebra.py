"""The algebra of expressions: one constructor for each operation, which simplifies what it is given.

Rewrites that protect accuracy happen here, before anything is differentiated: `1/(1 + exp(-v))` becomes `sigmoid(v)`
and `log(1 + exp(v))` becomes `softplus(v)`, whose derivatives stay finite where those of the quotients are inf/inf.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from fcdense.symbol import FUNCTIONS, UFUNCS, Expr, const, is_const, lift, node


def as_float(value: object) -> Expr:
    """`value` as a number: conditions become 1 and 0."""
    expr = lift(value)
    return indicator(expr) if expr.is_bool else expr


def as_bool(value: object) -> Expr:
    """`value` as a condition: numbers are compared with 0."""
    expr = lift(value)
    return expr if expr.is_bool else compare("not_equal", expr, 0.0)


def _power_of_two(expr: Expr) -> bool:
    """True for a literal by which numbers can be multiplied and divided exactly."""
    return expr.op == "const" and _moderate(expr.value) and abs(math.frexp(expr.value)[0]) == 0.5


def _moderate(value: float) -> bool:
    """True if products of a few such numbers stay in the range of float32."""
    return 2.0**-40 < abs(value) < 2.0**40


def _fold(op: str, *args: Expr) -> Expr:
    """`node(op, *args)`, or its value where all operands are literals and it is a finite number."""
    if all(a.op == "const" for a in args):
        with np.errstate(all="ignore"):
            value = float(getattr(np, op)(*(float(a.value) for a in args)))
        if math.isfinite(value):
            return const(value)
    return node(op, *args)


def add(a: object, b: object) -> Expr:
    """a + b."""
    x, y = as_float(a), as_float(b)
    if x.op == "const":
        x, y = y, x
    if is_const(y, 0.0):
        return x
    if y.op == "negative":
        return subtract(x, y.args[0])
    if x.op == "negative":
        return subtract(y, x.args[0])
    if x is y:
        return multiply(x, 2.0)
    for u, v in ((x, y), (y, x)):  # |v| + v is exactly 2 max(v, 0); rewritten, its derivative at 0 follows the tie rule
        if u.op == "absolute" and u.args[0] is v:
            return multiply(maximum(v, 0.0), 2.0)
    return _fold("add", x, y)


def subtract(a: object, b: object) -> Expr:
    """a - b."""
    x, y = as_float(a), as_float(b)
    if is_const(y, 0.0):
        return x
    if is_const(x, 0.0):
        return negative(y)
    if y.op == "negative":
        return add(x, y.args[0])
    if y.op == "subtract" and x.op == "const" and y.args[0] is x:
        return y.args[1]
    return _fold("subtract", x, y)


def multiply(a: object, b: object) -> Expr:
    """a b. A product with 0 stays, since x may be infinite or NaN."""
    x, y = as_float(a), as_float(b)
    if x.op == "const":
        x, y = y, x
    if is_const(y, 1.0):
        return x
    if is_const(y, -1.0):
        return negative(x)
    if x.op == "negative":
        return negative(multiply(x.args[0], y))
    if y.op == "negative":
        return negative(multiply(x, y.args[0]))
    if y.op == "const" and x.op == "multiply" and x.args[1].op == "const":
        inner = x.args[1]
        if _moderate(y.value) and _moderate(inner.value) and (_power_of_two(y) or _power_of_two(inner)):
            return multiply(x.args[0], y.value * inner.value)
    for u, v in ((x, y), (y, x)):
        if u.op == "divide" and is_const(u.args[0], 1.0):
            return divide(v, u.args[1])
        if u.op == "indicator" and u.args[0].op == "greater_equal":  # v [v >= 0] and v [v > 0] agree
            left, right = u.args[0].args
            if (left is v and is_const(right, 0.0)) or (right is v and is_const(left, 0.0)):
                return multiply(indicator(compare("greater", left, right)), v)
    return _fold("multiply", x, y)


def divide(a: object, b: object) -> Expr:
    """a / b."""
    x, y = as_float(a), as_float(b)
    if is_const(y, 1.0):
        return x
    if _power_of_two(y):
        return multiply(x, 1.0 / y.value)
    exponent = _one_plus_exp(y)
    if exponent is not None:
        if x.op == "exp" and x.args[0] is exponent:
            return sigmoid(exponent)
        return multiply(x, sigmoid(negative(exponent)))
    if x.op == "negative":
        return negative(divide(x.args[0], y))
    return _fold("divide", x, y)


def _one_plus_exp(expr: Expr) -> Expr | None:
    """`v` if `expr` is 1 + exp(v)."""
    if expr.op == "add" and expr.args[0].op == "exp" and is_const(expr.args[1], 1.0):
        return expr.args[0].args[0]
    return None


def negative(a: object) -> Expr:
    """-a."""
    x = as_float(a)
    if x.op == "negative":
        return x.args[0]
    if x.op == "subtract":
        return subtract(x.args[1], x.args[0])
    if x.op == "multiply" and x.args[1].op == "const":
        return multiply(x.args[0], -x.args[1].value)
    return _fold("negative", x)


def power(a: object, b: object) -> Expr:
    """a to the power of b; small whole exponents become products."""
    x, y = as_float(a), as_float(b)
    if y.op == "const":  # np.power costs ten times a multiplication
        if y.value == 0.0:
            return const(1.0)
        if y.value in (1.0, 2.0, 3.0, 4.0):
            square = multiply(x, x)
            return (x, square, multiply(square, x), multiply(square, square))[int(y.value) - 1]
        if y.value == -1.0:
            return divide(1.0, x)
        if y.value == 0.5:
            return sqrt(x)
    return _fold("power", x, y)


def absolute(a: object) -> Expr:
    """|a|."""
    x = as_float(a)
    if x.op == "absolute":
        return x
    return _fold("absolute", x.args[0] if x.op == "negative" else x)


def log(a: object) -> Expr:
    """Natural logarithm."""
    x = as_float(a)
    exponent = _one_plus_exp(x)
    if exponent is not None:
        return softplus(exponent)
    if x.op == "sigmoid":
        return negative(softplus(negative(x.args[0])))
    return _fold("log", x)


def log1p(a: object) -> Expr:
    """log(1 + a)."""
    x = as_float(a)
    return softplus(x.args[0]) if x.op == "exp" else _fold("log1p", x)


def _unary(op: str) -> Callable[[object], Expr]:
    return lambda a: _fold(op, as_float(a))


sign, exp, expm1, sqrt = _unary("sign"), _unary("exp"), _unary("expm1"), _unary("sqrt")
tanh, sinh, cosh, sin, cos = _unary("tanh"), _unary("sinh"), _unary("cosh"), _unary("sin"), _unary("cos")
arctan = _unary("arctan")


def hypot(a: object, b: object) -> Expr:
    """sqrt(a^2 + b^2) without overflow of the squares."""
    return _fold("hypot", as_float(a), as_float(b))


def erf(a: object) -> Expr:
    """Error function."""
    return node("erf", as_float(a))


def gaussian(a: object) -> Expr:
    """exp(-a^2 / 2)."""
    a = as_float(a)
    return exp(multiply(multiply(a, a), -0.5))


def ndtr(a: object) -> Expr:
    """Standard normal distribution function."""
    return node("ndtr", as_float(a))


def sigmoid(a: object) -> Expr:
    """1 / (1 + exp(-a))."""
    return node("sigmoid", as_float(a))


def softplus(a: object) -> Expr:
    """log(1 + exp(a))."""
    return node("softplus", as_float(a))


def _extremum(op: str, a: object, b: object) -> Expr:
    x, y = as_float(a), as_float(b)
    if x.op == "const":
        x, y = y, x
    if x is y or is_const(y, -math.inf if op == "maximum" else math.inf):
        return x
    return _fold(op, x, y)


def maximum(a: object, b: object) -> Expr:
    """The larger of a and b; NaN wins."""
    return _extremum("maximum", a, b)


def minimum(a: object, b: object) -> Expr:
    """The smaller of a and b; NaN wins."""
    return _extremum("minimum", a, b)


def compare(op: str, a: object, b: object) -> Expr:
    """A comparison; less and less_equal are built by exchanging the operands."""
    x, y = as_float(a), as_float(b)
    if x.op == y.op == "const":
        return const(bool(getattr(np, op)(x.value, y.value)))
    return node(op, x, y)


def logical(op: str, a: object, b: object) -> Expr:
    """`logical_and` or `logical_or` of two conditions."""
    x, y = as_bool(a), as_bool(b)
    absorbing = op == "logical_or"
    for u, v in ((x, y), (y, x)):
        if u.op == "const":
            return u if u.value is absorbing else v
    return x if x is y else node(op, x, y)


def logical_not(a: object) -> Expr:
    """True where the condition is not."""
    x = as_bool(a)
    if x.op == "const":
        return const(not x.value)
    return x.args[0] if x.op == "logical_not" else node("logical_not", x)


def indicator(condition: object) -> Expr:
    """1 where the condition holds, else 0."""
    c = as_bool(condition)
    return const(float(c.value)) if c.op == "const" else node("indicator", c)


def step(a: object, b: object) -> Expr:
    """1 where a > b, else 0."""
    return indicator(compare("greater", a, b))


def where(condition: object, a: object, b: object) -> Expr:
    """a where the condition holds, else b."""
    c, x, y = as_bool(condition), as_float(a), as_float(b)
    if c.op == "const":
        return x if c.value else y
    if x.op == "where" and x.args[0] is c:
        x = x.args[1]
    if y.op == "where" and y.args[0] is c:
        y = y.args[2]
    if x is y:
        return x
    if is_const(x, 1.0) and is_const(y, 0.0):
        return indicator(c)
    if is_const(x, 0.0) and is_const(y, 1.0):
        return indicator(logical_not(c))
    if c.op in ("greater", "greater_equal"):
        if c.args[0] is x and c.args[1] is y:
            # At a tie with a constant both branches are equal; the strict form makes the constant's derivative win.
            if x.uniform and not y.uniform:
                return maximum(y, x)
            if y.uniform:
                c = compare("greater", x, y)
        elif c.args[0] is y and c.args[1] is x:
            if x.uniform and not y.uniform:
                return minimum(y, x)
            if y.uniform:
                c = compare("greater", y, x)
    return node("where", c, x, y)


def clip(a: object, a_min: object = None, a_max: object = None, **bounds: object) -> Expr:
    """np.clip: bounds that are None do not bound."""
    low, high = bounds.get("min", a_min), bounds.get("max", a_max)
    x = as_float(a)
    x = x if low is None else maximum(x, low)
    return x if high is None else minimum(x, high)


# Every operation that has operands, by its name in `ARITY`.
BUILD: dict[str, Callable[..., Expr]] = {
    "add": add,
    "subtract": subtract,
    "multiply": multiply,
    "divide": divide,
    "power": power,
    "negative": negative,
    "absolute": absolute,
    "sign": sign,
    "exp": exp,
    "expm1": expm1,
    "log": log,
    "log1p": log1p,
    "sqrt": sqrt,
    "tanh": tanh,
    "sinh": sinh,
    "cosh": cosh,
    "sin": sin,
    "cos": cos,
    "arctan": arctan,
    "hypot": hypot,
    "erf": erf,
    "ndtr": ndtr,
    "sigmoid": sigmoid,
    "softplus": softplus,
    "maximum": maximum,
    "minimum": minimum,
    "greater": partial(compare, "greater"),
    "greater_equal": partial(compare, "greater_equal"),
    "equal": partial(compare, "equal"),
    "not_equal": partial(compare, "not_equal"),
    "logical_and": partial(logical, "logical_and"),
    "logical_or": partial(logical, "logical_or"),
    "logical_not": logical_not,
    "indicator": indicator,
    "where": where,
}

UFUNCS.update({op: build for op, build in BUILD.items() if isinstance(getattr(np, op, None), np.ufunc)})
UFUNCS.update(
    {
        "positive": as_float,
        "fabs": absolute,
        "square": lambda a: power(a, 2.0),
        "reciprocal": lambda a: divide(1.0, a),
        "logaddexp": lambda a, b: add(a, softplus(subtract(b, a))),
        "less": lambda a, b: compare("greater", b, a),
        "less_equal": lambda a, b: compare("greater_equal", b, a),
        "isnan": lambda a: compare("not_equal", a, a),
        "isinf": lambda a: compare("equal", absolute(a), math.inf),
        "isfinite": lambda a: compare("greater", math.inf, absolute(a)),
        "bitwise_and": BUILD["logical_and"],
        "bitwise_or": BUILD["logical_or"],
        "invert": logical_not,
    }
)
FUNCTIONS.update(
    {
        "where": where,
        "clip": clip,
        "zeros_like": lambda a: const(0.0),
        "ones_like": lambda a: const(1.0),
        "full_like": lambda a, value: as_float(value),
    }
)
