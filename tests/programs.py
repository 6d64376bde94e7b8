"""Programs at random and one that has a bit of everything, with operands of every value and layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np

from fcdense import algebra
from fcdense.expression import Expr, array_var, const, scalar_var
from fcdense.program import trace

Array = np.ndarray[Any, Any]

# Operations of which emission and evaluation call the same NumPy function, so that results are the same bits.
UNARY = ["negative", "absolute", "exp", "log", "sqrt", "tanh", "sin", "arctan", "expm1"]
LIBRARY = ["exp", "log", "tanh", "sin", "arctan", "expm1", "hypot"]
BINARY = ["add", "subtract", "multiply", "divide", "maximum", "minimum", "hypot"]
COMPARE = ["greater", "greater_equal", "equal", "not_equal"]
LEAVES = st.one_of(
    st.sampled_from([array_var(0), array_var(1), array_var(2), scalar_var(0), scalar_var(1)]),
    st.sampled_from([0.0, 1.0, -1.0, 0.5, 3.0, 1e300, np.inf]).map(const),
)


def build(op: str, *args: Expr) -> Expr:
    # On scalars the math module is used, which may differ from NumPy in the last bit.
    return args[0] if op in LIBRARY and all(a.uniform for a in args) else algebra.BUILD[op](*args)


def conditions(numbers: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    comparison = st.builds(build, st.sampled_from(COMPARE), numbers, numbers)
    return st.one_of(
        comparison,
        st.builds(build, st.sampled_from(["logical_and", "logical_or"]), comparison, comparison),
        st.builds(build, st.just("logical_not"), comparison),
    )


def extend(numbers: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    return st.one_of(
        st.builds(build, st.sampled_from(UNARY), numbers),
        st.builds(build, st.sampled_from(BINARY), numbers, numbers),
        st.builds(build, st.just("indicator"), conditions(numbers)),
        st.builds(build, st.just("where"), conditions(numbers), numbers, numbers),
    )


TREES = st.recursive(LEAVES, extend, max_leaves=12)
VALUES = np.array([0.0, -0.0, 1.0, -1.0, 0.5, 2.5, -3.0, 1e-310, 1e300, np.inf, -np.inf, np.nan, 7.0])


def operands(dtype: Any = np.float64) -> list[Array]:
    grid = np.stack(np.meshgrid(VALUES, VALUES, VALUES[:5], indexing="ij")).reshape(3, -1)
    with np.errstate(over="ignore"):
        return list(grid.astype(dtype))


MIX = trace(lambda x, y: np.where(x > y, x * y, np.exp(-abs(x)) - y) + 0.25, 2, name="mix")


def mix(x: Array, y: Array) -> Array:
    return np.where(x > y, x * y, np.exp(-abs(x)) - y) + np.asarray(0.25, x.dtype)


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "contiguous": lambda a: a,
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "reversed": lambda a: a[..., ::-1].copy()[..., ::-1],
    "transposed": lambda a: a.T.copy().T,
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
    "row": lambda a: a[0],
    "column": lambda a: a[:, :1],
    "single": lambda a: a[0, 0, ...],
    "one by one": lambda a: a[:1, :1],
}
