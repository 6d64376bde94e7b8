"""`Program`: a traced function, ready for every backend to turn into one pass over memory."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from fcdense import expression
from fcdense.algebra import multiply
from fcdense.errors import ArgumentError, FormatError, TraceError
from fcdense.expression import Expr, array_var, derive, scalar_var
from fcdense.symbol import lift, node, topological

_programs: weakref.WeakValueDictionary[tuple[Any, ...], Program] = weakref.WeakValueDictionary()
_lock = threading.Lock()

MAX_ARGUMENTS = 1 << 16
"""Arrays, and scalars, of a program that is read from data: a count beyond it is damage, and costs no memory."""


class Program:
    """An elementwise function of arrays and scalars: `outputs[k] = f_k(x_0 .. x_{n-1}; s_0 .. s_{m-1})`.

    Programs of equal content are one object, so that `is`, `==` and hashing are cheap where compiled code is looked up.

    Attributes
    ----------
    name : str
        For messages and generated source.
    n_inputs : int
        Array arguments, broadcast against each other.
    n_scalars : int
        Scalar arguments: Python floats at run time.
    outputs : tuple of Expr
        One expression per result.
    """

    __slots__ = ("__weakref__", "n_inputs", "n_scalars", "name", "outputs")
    name: str
    n_inputs: int
    n_scalars: int
    outputs: tuple[Expr, ...]

    def __new__(cls, name: str, n_inputs: int, n_scalars: int, outputs: Sequence[Expr]) -> Program:
        outputs = tuple(outputs)
        key = (name, n_inputs, n_scalars, *map(id, outputs))
        with _lock:
            found = _programs.get(key)
            if found is not None:
                return found
            if not outputs:
                raise ArgumentError(f"Program {name!r} computes nothing; expected at least one output.")
            for e in expression.variables(outputs):
                if e.value >= (n_inputs if e.op == "array" else n_scalars):
                    raise ArgumentError(
                        f"Program {name!r} uses {e!r}, but takes {n_inputs} arrays and {n_scalars} scalars."
                    )
            self = object.__new__(cls)
            fields = (("name", name), ("n_inputs", n_inputs), ("n_scalars", n_scalars), ("outputs", outputs))
            for field, value in fields:
                object.__setattr__(self, field, value)
            _programs[key] = self
            return self

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"Program is immutable; cannot set {name!r}.")

    def __reduce__(self) -> tuple[type[Program], tuple[Any, ...]]:
        return Program, (self.name, self.n_inputs, self.n_scalars, self.outputs)

    def __copy__(self) -> Program:
        return self

    def __deepcopy__(self, memo: object) -> Program:
        return self

    def __repr__(self) -> str:
        args = [f"x{i}" for i in range(self.n_inputs)] + [f"s{i}" for i in range(self.n_scalars)]
        return f"Program {self.name}({', '.join(args)}) -> {', '.join(map(repr, self.outputs))}"

    def __call__(self, *args: object) -> tuple[Expr, ...]:
        """The outputs with expressions (or numbers) in place of the variables."""
        if len(args) != self.n_inputs + self.n_scalars:
            raise ArgumentError(
                f"Program {self.name!r} takes {self.n_inputs + self.n_scalars} arguments, given {len(args)}."
            )
        names = [array_var(i) for i in range(self.n_inputs)] + [scalar_var(i) for i in range(self.n_scalars)]
        return expression.substitute(self.outputs, dict(zip(names, map(lift, args), strict=True)))

    def reordered(self, order: Sequence[int]) -> Program:
        """The program with its arrays in another order: its input j is input `order[j]` of this one.

        Node for node the same, so that compiled code rounds as that of this one does.
        """
        if list(order) == list(range(self.n_inputs)):
            return self
        outputs = self._with({array_var(i): array_var(j) for j, i in enumerate(order)})
        return Program(self.name, self.n_inputs, self.n_scalars, outputs)

    def of_product(self, i: int) -> Program:
        """The program with one more array at the end: its input i is the product of that one and input i of this one.

        Node for node the same otherwise, as in `reordered`.
        """
        outputs = self._with({array_var(i): node("multiply", array_var(i), array_var(self.n_inputs))})
        return Program(self.name, self.n_inputs + 1, self.n_scalars, outputs)

    def without_scalar_work(self) -> tuple[Program | None, Program]:
        """(of scalars alone, of arrays and what the first one gives): what depends on scalars only is computed apart.

        The first one is None if nothing depends on scalars.

        Used where one set of scalars serves many calls. The bits are those of this program, since what depends on
        scalars only is computed in float64 in any case. Conditions stay with the arrays, and what they compare is
        computed apart.
        """
        order = topological(self.outputs)
        read = set(self.outputs)
        for e in reversed(order):
            if e in read and (e.is_bool or not e.uniform):
                read.update(e.args)
        apart = [e for e in order if e in read and e.uniform and e.op != "const" and not e.is_bool]
        body = self._with({e: scalar_var(k) for k, e in enumerate(apart)})
        first = Program(f"{self.name}_scalars", 0, self.n_scalars, apart) if apart else None
        return first, Program(self.name, self.n_inputs, len(apart), body)

    @property
    def copies_scalars(self) -> bool:
        """Whether each output is one of the scalars as it is, so that nothing is computed."""
        return all(output.op == "scalar" for output in self.outputs)

    def _with(self, new: dict[Expr, Expr]) -> list[Expr]:
        """The outputs with other expressions in some places, and otherwise node for node the same: not simplified."""
        new = dict(new)
        for e in topological(self.outputs):
            if e not in new:
                new[e] = node(e.op, *(new[a] for a in e.args)) if e.args else e
        return [new[e] for e in self.outputs]

    def depends_on(self, i: int) -> bool:
        """True if array argument `i` occurs in any output."""
        return array_var(i) in expression.variables(self.outputs)

    def derivative(self, i: int = 0) -> Program:
        """Each output differentiated by array argument `i`; same arguments."""
        outputs = tuple(derive(e, array_var(i)) for e in self.outputs)
        return Program(f"{self.name}_d{i}", self.n_inputs, self.n_scalars, outputs)

    def vjp(self, i: int) -> Program:
        """The vector-Jacobian product for array argument `i`: (x_0 .. x_{n-1}, dy; scalars) -> dy * d out / d x_i.

        Raises
        ------
        ArgumentError
            If the program has several outputs.
        """
        if len(self.outputs) != 1:
            raise ArgumentError(f"Program {self.name!r} has {len(self.outputs)} outputs; vjp is defined for one.")
        slope = derive(self.outputs[0], array_var(i))
        zero = slope.op == "const" and slope.value == 0.0
        product = slope if zero else multiply(array_var(self.n_inputs), slope)
        return Program(f"{self.name}_vjp{i}", self.n_inputs + 1, self.n_scalars, (product,))

    def to_data(self) -> dict[str, Any]:
        """The program as data that JSON can hold."""
        counts = {"name": self.name, "inputs": self.n_inputs, "scalars": self.n_scalars}
        return counts | expression.to_data(self.outputs)

    @staticmethod
    def from_data(data: Any) -> Program:
        """The program that `to_data` wrote.

        Raises
        ------
        FormatError
            If `data` is not of that form.
        """
        try:
            name, n_inputs, n_scalars = data["name"], data["inputs"], data["scalars"]
        except (TypeError, KeyError, IndexError):
            raise FormatError("Not a program: expected the keys name, inputs, scalars, nodes, outputs.") from None
        if not isinstance(name, str) or any(
            type(n) is not int or not 0 <= n <= MAX_ARGUMENTS for n in (n_inputs, n_scalars)
        ):
            raise FormatError(f"Not a program: name {name!r}, inputs {n_inputs!r}, scalars {n_scalars!r}.")
        try:
            return Program(name, n_inputs, n_scalars, expression.from_data(data))
        except ArgumentError as error:
            raise FormatError(str(error)) from None


def trace(fn: Callable[..., Any], n_inputs: int, n_scalars: int = 0, name: str | None = None) -> Program:
    """Call `fn(*arrays, *scalars)` once with symbols and keep what it computes.

    Parameters
    ----------
    fn : callable
        Written with operators, NumPy's elementwise functions and `fcdense.math`. Returns one result, or a tuple.
    n_inputs, n_scalars : int
        Number of array and of scalar arguments, in this order.
    name : str, optional
        Default: the function's name.

    Raises
    ------
    TraceError
        If `fn` does something that has no meaning element by element; the message says what to use instead.
    """
    name = name or getattr(fn, "__name__", "function").replace("<lambda>", "function")
    symbols = [array_var(i) for i in range(n_inputs)] + [scalar_var(i) for i in range(n_scalars)]
    try:
        result = fn(*symbols)
        if result is None:
            raise TraceError("returns None. Add `return` and the result.")
        outputs = tuple(map(lift, result if isinstance(result, tuple) else (result,)))
    except TraceError as error:
        raise TraceError(f"{name}: {error}") from error
    except AttributeError as error:
        if not isinstance(error.obj, Expr):
            raise
        raise TraceError(
            f"{name}: a symbol has no method .{error.name}. Use the function np.{error.name}, if elementwise."
        ) from error
    except TypeError as error:
        raise TraceError(f"{name} cannot be traced: {error}. Use elementwise operators and NumPy functions.") from error
    return Program(name, n_inputs, n_scalars, outputs)
