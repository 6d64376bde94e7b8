"""`Expr`: what stands for `x` while a function is traced.

Nodes are interned: two expressions of the same structure are one object, so common subexpressions are found for nothing
and `is` compares structure. Operators and NumPy functions on symbols are looked up in `UFUNCS` and `FUNCTIONS`, which
`algebra.py` fills with constructors that simplify.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import numpy as np

from fcdense.errors import TraceError

# Names are those of the NumPy function of the same meaning, where there is one.
ARITY: dict[str, int] = {
    **dict.fromkeys(("const", "array", "scalar"), 0),
    **dict.fromkeys(("negative", "absolute", "sign", "exp", "expm1", "log", "log1p", "sqrt"), 1),
    **dict.fromkeys(("tanh", "sinh", "cosh", "sin", "cos", "arctan", "erf", "ndtr", "sigmoid", "softplus"), 1),
    **dict.fromkeys(("add", "subtract", "multiply", "divide", "power", "hypot", "maximum", "minimum"), 2),
    **dict.fromkeys(("greater", "greater_equal", "equal", "not_equal", "logical_and", "logical_or"), 2),
    "logical_not": 1,
    "indicator": 1,
    "where": 3,
}
COMPARISONS = frozenset(("greater", "greater_equal", "equal", "not_equal"))
BOOLEAN = COMPARISONS | {"logical_and", "logical_or", "logical_not"}

UFUNCS: dict[str, Callable[..., Expr]] = {}
FUNCTIONS: dict[str, Callable[..., Expr]] = {}

_nodes: weakref.WeakValueDictionary[tuple[Any, ...], Expr] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def node(op: str, *args: Expr, value: float | None = None) -> Expr:
    """The interned node of exactly this operation, with no simplification."""
    key = (op, repr(value), *map(id, args))
    with _lock:
        found = _nodes.get(key)
        if found is None:
            found = _nodes[key] = Expr._create(op, args, value)
    return found


class Expr:
    """An elementwise expression over array variables (one value per element) and scalar variables (one value per call).

    Attributes
    ----------
    op : str
        A key of `ARITY`.
    args : tuple of Expr
        Operands.
    value : float, bool, int or None
        The number of a `const`, the index of an `array` or `scalar` variable.
    is_bool : bool
        True for comparisons and logical operations; arithmetic on them counts True as 1.
    uniform : bool
        True if no array variable occurs, so that one value serves a whole array.
    """

    __slots__ = ("__weakref__", "args", "is_bool", "op", "uniform", "value")
    op: str
    args: tuple[Expr, ...]
    value: Any
    is_bool: bool
    uniform: bool

    @classmethod
    def _create(cls, op: str, args: tuple[Expr, ...], value: float | None) -> Expr:
        self = object.__new__(cls)
        is_bool = op in BOOLEAN or isinstance(value, bool)
        uniform = op != "array" and all(a.uniform for a in args)
        for name, item in (("op", op), ("args", args), ("value", value), ("is_bool", is_bool), ("uniform", uniform)):
            object.__setattr__(self, name, item)
        return self

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"Expr is immutable; cannot set {name!r}.")

    def __reduce__(self) -> tuple[Callable[..., Expr], tuple[Any, ...]]:
        return _rebuild, (self.op, self.args, self.value)

    def __copy__(self) -> Expr:
        return self

    def __deepcopy__(self, memo: object) -> Expr:
        return self

    def __repr__(self) -> str:
        uses = Counter(a for e in topological([self]) for a in e.args)
        text: dict[Expr, str] = {}
        shared: list[str] = []
        for e in topological([self]):
            if e.op == "const":
                text[e] = repr(e.value)
            elif e.op in ("array", "scalar"):
                text[e] = f"{'x' if e.op == 'array' else 's'}{e.value}"
            else:
                text[e] = f"{e.op}({', '.join(text[a] for a in e.args)})"
                if uses[e] > 1:  # written once: the length stays that of the graph
                    shared.append(f"t{len(shared)} = {text[e]}; ")
                    text[e] = f"t{len(shared) - 1}"
        return "".join(shared) + text[self]

    # Operators. `==` builds an expression, so identity is the only comparison used on expressions themselves.
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> Expr:  # type: ignore[override]
        return UFUNCS["equal"](self, other)

    def __ne__(self, other: object) -> Expr:  # type: ignore[override]
        return UFUNCS["not_equal"](self, other)

    def __gt__(self, other: object) -> Expr:
        return UFUNCS["greater"](self, other)

    def __ge__(self, other: object) -> Expr:
        return UFUNCS["greater_equal"](self, other)

    def __lt__(self, other: object) -> Expr:
        return UFUNCS["greater"](other, self)

    def __le__(self, other: object) -> Expr:
        return UFUNCS["greater_equal"](other, self)

    def __add__(self, other: object) -> Expr:
        return UFUNCS["add"](self, other)

    def __radd__(self, other: object) -> Expr:
        return UFUNCS["add"](other, self)

    def __sub__(self, other: object) -> Expr:
        return UFUNCS["subtract"](self, other)

    def __rsub__(self, other: object) -> Expr:
        return UFUNCS["subtract"](other, self)

    def __mul__(self, other: object) -> Expr:
        return UFUNCS["multiply"](self, other)

    def __rmul__(self, other: object) -> Expr:
        return UFUNCS["multiply"](other, self)

    def __truediv__(self, other: object) -> Expr:
        return UFUNCS["divide"](self, other)

    def __rtruediv__(self, other: object) -> Expr:
        return UFUNCS["divide"](other, self)

    def __pow__(self, other: object) -> Expr:
        return UFUNCS["power"](self, other)

    def __rpow__(self, other: object) -> Expr:
        return UFUNCS["power"](other, self)

    def __neg__(self) -> Expr:
        return UFUNCS["negative"](self)

    def __pos__(self) -> Expr:
        return UFUNCS["positive"](self)

    def __abs__(self) -> Expr:
        return UFUNCS["absolute"](self)

    def __and__(self, other: object) -> Expr:
        return UFUNCS["logical_and"](self, other)

    def __or__(self, other: object) -> Expr:
        return UFUNCS["logical_or"](self, other)

    __rand__, __ror__ = __and__, __or__

    def __invert__(self) -> Expr:
        return UFUNCS["logical_not"](self)

    # Python's and NumPy's doors that would turn a symbol into numbers.
    def __bool__(self) -> NoReturn:
        raise TraceError(
            "A data-dependent `if`, `and`, `or`, `not` or chained comparison cannot be traced: it would choose one "
            "branch for all elements. Use np.where(condition, a, b), and & | ~ between conditions."
        )

    def __float__(self) -> NoReturn:
        raise TraceError(
            "A symbol has no number: the `math` module and float() cannot be traced. Use np.exp etc. or fc.math."
        )

    __int__ = __index__ = __complex__ = __float__

    def __iter__(self) -> NoReturn:
        raise TraceError("A traced function works element by element: indexing, iterating and len() are not possible.")

    __len__ = __iter__

    def __getitem__(self, index: object) -> NoReturn:
        self.__iter__()

    def __array__(self, dtype: object = None, copy: object = None) -> NoReturn:
        raise TraceError("A symbol cannot become an array. Use NumPy's elementwise functions on it directly.")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: object, **kwargs: object) -> Expr:
        if method != "__call__":
            raise TraceError(
                f"np.{ufunc.__name__}.{method} combines elements; only elementwise operations can be traced."
            )
        if kwargs:
            raise TraceError(
                f"np.{ufunc.__name__} with {', '.join(sorted(kwargs))}= cannot be traced. Leave it out; use np.where."
            )
        build = UFUNCS.get(ufunc.__name__)
        if build is None:
            raise TraceError(
                f"np.{ufunc.__name__} cannot be traced. These can: {', '.join(sorted(UFUNCS))}; and fc.math."
            )
        return build(*inputs)

    def __array_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Expr:
        build = FUNCTIONS.get(func.__name__)
        if build is None:
            raise TraceError(
                f"np.{func.__name__} cannot be traced: reductions and operations on shapes need more than one element. "
                f"Elementwise ufuncs can, and np.{', np.'.join(FUNCTIONS)}."
            )
        if kwargs.get("out") is not None:
            raise TraceError(f"np.{func.__name__} with out= cannot be traced. Use its result.")
        return build(*args, **{k: v for k, v in kwargs.items() if k != "out"})


def _rebuild(op: str, args: tuple[Expr, ...], value: float | None) -> Expr:
    return node(op, *args, value=value)


def topological(exprs: Iterable[Expr]) -> list[Expr]:
    """Every node under `exprs` once, operands before what uses them, in an order that depends on structure alone."""
    order: dict[Expr, None] = {}
    stack = [(e, False) for e in reversed(list(exprs))]
    while stack:
        expr, ready = stack.pop()
        if expr in order:
            continue
        if ready:
            order[expr] = None
        else:
            stack.append((expr, True))
            stack.extend((a, False) for a in reversed(expr.args))
    return list(order)


def const(value: float | np.bool_ | np.integer[Any] | np.floating[Any]) -> Expr:
    """A number. Kept as a Python float, so that it takes the dtype of the arrays it meets."""
    return node("const", value=bool(value) if isinstance(value, (bool, np.bool_)) else float(value))


def array_var(index: int) -> Expr:
    """The array argument number `index`."""
    return node("array", value=index)


def scalar_var(index: int) -> Expr:
    """The scalar argument number `index`: one Python float per call."""
    return node("scalar", value=index)


def lift(value: object) -> Expr:
    """`value` as an expression; numbers become constants, anything else raises `TraceError`."""
    if isinstance(value, Expr):
        return value
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, (bool, int, float, np.bool_, np.integer, np.floating)):
        return const(value)
    shape = getattr(value, "shape", None)
    what = f"an array of shape {tuple(shape)}" if shape is not None else f"{type(value).__name__} {value!r}"
    raise TraceError(
        f"{what} inside a traced function: only real numbers can be constants. Pass it as an argument instead."
    )


def is_const(expr: Expr, value: float) -> bool:
    """True if `expr` is the literal `value`."""
    return expr.op == "const" and not expr.is_bool and bool(expr.value == value)
