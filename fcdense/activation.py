"""`Activation`: a function of one number, its derivative, and the registry that layers look names up in."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal, NoReturn, overload

import numpy as np
from numpy.typing import NDArray

from fcdense import algebra, emit
from fcdense.errors import ArgumentError, DTypeError, FormatError, TraceError, unknown_name
from fcdense.expression import Expr, array_var, evaluate, substitute, variables
from fcdense.math import call
from fcdense.program import Program, trace
from fcdense.symbol import is_const

Array = NDArray[Any]
Aux = Literal["none", "output", "derivative"]
X, Y = array_var(0), array_var(1)


class Activation:
    """An elementwise function y = f(x) with its derivative, as programs that every backend compiles.

    Call it with an array, a number, a tensor or a traced symbol. Instances of equal content are one object.

    Attributes
    ----------
    name : str
    program : Program
        x -> f(x).
    derivative : Program
        x -> f'(x). NaN where x is NaN, unless f' is constant.
    aux : {"none", "output", "derivative"}
        What the backward pass needs: nothing (f' is constant), y (f' depends on x only through y), or f' itself.
    gradient_from_aux : Program or None
        y -> f', where `aux` is "output". A NaN in y need not reach f': the gradient it is multiplied with has it.
    forward_with_derivative : Program
        x -> (f(x), f'(x)), common subexpressions computed once.
    is_linear : bool
        True if f(x) = x.
    """

    name: str
    program: Program
    derivative: Program
    aux: Aux
    gradient_from_aux: Program | None
    forward_with_derivative: Program
    is_linear: bool
    _slope: Program  # f' without the guard for NaN, which would hide that it is a function of y

    def __new__(
        cls, name: str, program: Program, derivative: Program | None = None, doc: str | None = None
    ) -> Activation:
        slope = derivative or program.derivative()
        for p in (program, slope):
            if p.n_inputs != 1 or p.n_scalars or len(p.outputs) != 1:
                raise ArgumentError(f"Activation {name!r}: expected one array in and one out, given {p!r}.")
        y, dy = (algebra.as_float(p.outputs[0]) for p in (program, slope))
        made = _intern(Program(name, 1, 0, (y,)), Program(f"{name}_slope", 1, 0, (dy,)))
        if doc is not None:
            object.__setattr__(made, "__doc__", doc)
        return made

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"Activation is immutable; cannot set {name!r}.")

    def __reduce__(self) -> tuple[type[Activation], tuple[Any, ...]]:
        return Activation, (self.name, self.program, self._slope, self.__doc__)

    def __copy__(self) -> Activation:
        return self

    def __deepcopy__(self, memo: object) -> Activation:
        return self

    def __repr__(self) -> str:
        return f"<activation {self.name}: {self.program.outputs[0]!r}>"

    def __call__(self, x: Any) -> Any:
        return x.__fc_activate__(self) if hasattr(x, "__fc_activate__") else call(self.program, x)

    def to_data(self) -> dict[str, Any]:
        """The activation as data that JSON can hold: a saved model needs no code of it."""
        return {"name": self.name, "function": self.program.to_data(), "derivative": self._slope.to_data()}

    @staticmethod
    def from_data(data: Any) -> Activation:
        """The activation that `to_data` wrote.

        Raises
        ------
        FormatError
            If `data` is not of that form.
        """
        try:
            name, function, derivative = data["name"], data["function"], data["derivative"]
        except (TypeError, KeyError, IndexError):
            raise FormatError("Not an activation: expected the keys name, function, derivative.") from None
        if not isinstance(name, str):
            raise FormatError(f"Not an activation: name {name!r}.")
        try:
            return Activation(name, Program.from_data(function), Program.from_data(derivative))
        except ArgumentError as error:
            raise FormatError(str(error)) from None


@cache
def _intern(program: Program, slope: Program) -> Activation:
    name, (y,), (dy,) = program.name, program.outputs, slope.outputs
    loses_nan = not dy.uniform and not np.isnan(evaluate([dy], [np.array(np.nan)])[0])
    guarded = algebra.where(algebra.compare("equal", X, X), dy, X) if loses_nan else dy
    from_output = None if dy.uniform else _through_output(y, dy)
    fields = {
        "name": name,
        "program": program,
        "derivative": Program(f"{name}_derivative", 1, 0, (guarded,)),
        "aux": "none" if dy.uniform else "derivative" if from_output is None else "output",
        "gradient_from_aux": None if from_output is None else Program(f"{name}_gradient", 1, 0, (from_output,)),
        "forward_with_derivative": Program(f"{name}_both", 1, 0, (y, guarded)),
        "is_linear": y is X,
        "_slope": slope,
        "__doc__": None,
    }
    self = object.__new__(Activation)
    for field, value in fields.items():
        object.__setattr__(self, field, value)
    return self


def _through_output(y: Expr, slope: Expr) -> Expr | None:
    """f' as an expression of y alone (in the place of x), or None."""
    (found,) = substitute([slope], {y: Y, **_same_side(y)})
    return None if X in variables([found]) else substitute([found], {Y: X})[0]


def _same_side(y: Expr) -> dict[Expr, Expr]:
    """Comparisons of x that compare the same way when y takes its place, for clipped and leaky linear functions."""
    if y.op == "where" and y.args[0].op == "greater":
        left, right = y.args[0].args
        slope = y.args[2].args[1] if y.args[2].op == "multiply" and y.args[2].args[0] is X else None
        if y.args[1] is X and left is X and is_const(right, 0.0) and slope is not None and slope.op == "const":
            return {y.args[0]: algebra.compare("greater", Y, 0.0)} if slope.value > 0 else {}
    inner, bounds = y, dict[Expr, Expr]()
    if inner.op == "minimum" and inner.args[1].op == "const":
        inner = y.args[0]
        bounds[algebra.compare("greater", y.args[1], inner)] = algebra.compare("greater", y.args[1], Y)
    if inner.op == "maximum" and inner.args[1].op == "const":
        bounds[algebra.compare("greater", inner.args[0], inner.args[1])] = algebra.compare("greater", Y, inner.args[1])
        inner = inner.args[0]
    return bounds if inner is X else {}


class RowActivation:
    """A function of whole rows (the last axis), such as softmax.

    Attributes
    ----------
    name : str
    """

    def __init__(self, name: str, function: Callable[[Array], Array]) -> None:
        self.name = name
        self._function = function
        self.__doc__ = function.__doc__

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return get, (self.name,)

    def __repr__(self) -> str:
        return f"<activation {self.name} over rows>"

    def __call__(self, x: Any) -> Any:
        if hasattr(x, "__fc_activate__"):  # a tensor, which np.asarray would cut from its gradient
            return x.__fc_activate__(self)
        if isinstance(x, Expr):
            raise TraceError(f"{self.name} combines the elements of a row; only elementwise functions can be traced.")
        array = np.asarray(x)
        if array.ndim == 0:
            raise ArgumentError(f"{self.name} needs at least one axis, given a single number.")
        if array.dtype.kind not in "fbiu":
            raise DTypeError(f"{self.name} of an array of {array.dtype}; expected real numbers.")
        if array.dtype.kind != "f":
            array = array.astype(np.float64)
        wide = array.astype(np.float32) if array.dtype == np.float16 else array
        return self._function(wide).astype(array.dtype, copy=False)


_table: dict[str, Activation | RowActivation] = {}
_builtin: set[str] = set()


def names() -> list[str]:
    """The registered names, sorted."""
    return sorted(_table)


def get(spec: Any) -> Activation | RowActivation:
    """The activation that `spec` stands for.

    Parameters
    ----------
    spec : None, str, Activation, RowActivation or callable
        None is linear. A callable is traced; it is not registered.

    Raises
    ------
    UnknownNameError
        If no activation has this name.
    TraceError
        If a callable cannot be traced.
    """
    if spec is None:
        return _table["linear"]
    if isinstance(spec, (Activation, RowActivation)):
        return spec
    if isinstance(spec, str):
        return _table[spec] if spec in _table else unknown_name("activation", spec, _table)
    if callable(spec):
        return _checked(spec, None, None)
    raise ArgumentError(f"activation={spec!r}: expected a name, an activation, a function of one array, or None.")


def register(item: Activation | RowActivation, *aliases: str) -> None:
    """Enter a built-in `item` under its name and `aliases`."""
    for name in (item.name, *aliases):
        _table[name] = item
        _builtin.add(name)


def _register_own(item: Activation) -> None:
    """Enter a user's activation; a later definition replaces an earlier one, as when a notebook's cell runs again."""
    if item.name in _builtin:
        raise ArgumentError(f"{item.name!r} is a built-in activation. Pass another name=.")
    _table[item.name] = item


@overload
def activation(
    fn: Callable[[Any], Any], *, name: str | None = ..., derivative: Callable[[Any], Any] | None = ...
) -> Activation: ...
@overload
def activation(
    fn: None = ..., *, name: str | None = ..., derivative: Callable[[Any], Any] | None = ...
) -> Callable[[Callable[[Any], Any]], Activation]: ...
def activation(
    fn: Callable[[Any], Any] | None = None,
    *,
    name: str | None = None,
    derivative: Callable[[Any], Any] | None = None,
) -> Activation | Callable[[Callable[[Any], Any]], Activation]:
    """Turn a function of one array into an activation, and register it under its name.

    Parameters
    ----------
    fn : callable
        Written with operators, NumPy's elementwise functions and `fcdense.math`.
    name : str, optional
        Default: the function's name.
    derivative : callable, optional
        f', where a more accurate or cheaper form is known than what differentiating `fn` symbolically gives.

    Raises
    ------
    TraceError
        If a function does something that cannot be traced.
    ArgumentError
        If the name is that of a built-in one; if f' is not finite where f is, or differs from central differences of f.

    Examples
    --------
    >>> @fc.activation
    ... def quick_gelu(x):
    ...     return x * fc.math.sigmoid(1.702 * x)
    >>> fc.nn.Dense(64, activation="quick_gelu")
    """
    if fn is None:
        return lambda function: activation(function, name=name, derivative=derivative)
    made = _checked(fn, name, derivative)
    _register_own(made)
    return made


def _checked(fn: Callable[[Any], Any], name: str | None, derivative: Callable[[Any], Any] | None) -> Activation:
    program = trace(fn, 1, name=name)
    slope = trace(derivative, 1, name=f"{program.name}_derivative") if derivative else None
    made = Activation(program.name, program, slope, doc=fn.__doc__)
    check(made, fn)
    return made


def check(made: Activation, fn: Callable[[Array], Array]) -> None:
    """Compare the compiled f and f' with `fn` and its central differences; raise `ArgumentError` if they differ.

    Non-finite values are looked for on [-20, 20], and in float32 on [-100, 100], where exp overflows at 88.7.
    """
    for dtype, reach in ((np.float64, 20.0), (np.float32, 100.0)):
        x = np.linspace(-reach, reach, 1001, dtype=dtype)
        y, slope = emit.apply(made.forward_with_derivative, x)
        _refuse(made, "f", x, np.isnan(y))
        _refuse(made, "f'", x, np.isfinite(y) & ~np.isfinite(slope))
    # Off the round numbers where functions have their kinks.
    x = np.linspace(-20.0, 20.0, 401) + 0.0137
    h = 1e-3
    with np.errstate(all="ignore"):
        at = {k: np.broadcast_to(np.asarray(fn(x + k * h), x.dtype), x.shape) for k in (-2, -1, 0, 1, 2)}
        y, slope = emit.apply(made.forward_with_derivative, x)
        left, right = (at[0] - at[-2]) / (2 * h), (at[2] - at[0]) / (2 * h)
        central = (8.0 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * h)
        wrong = np.abs(y - at[0]) > 1e-9 * np.maximum(1.0, np.abs(at[0]))
        smooth = np.abs(right - left) <= 0.1 * (1.0 + np.abs(slope))
        differs = smooth & (np.abs(slope - central) > 1e-5 * (1.0 + np.abs(slope) + np.abs(at[0])))
    for what, where, given, expected in (("f", wrong, y, at[0]), ("f'", differs, slope, central)):
        if where.any():
            i = int(np.argmax(where))
            other = "the function gives" if what == "f" else "central differences of f give"
            raise ArgumentError(
                f"Activation {made.name!r}: {what}({x[i]:.4g}) is {given[i]:.6g} as traced, {other} {expected[i]:.6g}. "
                "Use elementwise NumPy functions only, and check derivative= if you gave one."
            )


def _refuse(made: Activation, what: str, x: Array, bad: NDArray[np.bool_]) -> None:
    if bad.any():
        first = int(np.argmax(bad))
        last = first + int(np.argmin(np.append(bad[first:], False))) - 1
        raise ArgumentError(
            f"Activation {made.name!r}: {what} is not finite on [{x[first]:.4g}, {x[last]:.4g}] in {x.dtype}. "
            "Limit the arguments of log, sqrt and exp with np.maximum or np.minimum, use fc.math (sigmoid, softplus), "
            "or pass derivative=."
        )
