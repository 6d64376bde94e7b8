"""Calls of every primitive for the contract suite: what is passed, in which shapes. A new primitive needs an entry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fcdense import activations
from fcdense.activation import Activation
from tests.backends import formulas
from tests.backends.formulas import DOUBLE, SQUARE

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Floats:
    """An input: normal numbers, or from `low` to 1 with some zeros; small whole ones for the exact tests."""

    shape: Shape
    low: float | None = None
    dtype: str = ""


@dataclass(frozen=True)
class Index:
    """An input: int64 from 0 to stop - 1, with repetitions."""

    shape: Shape
    stop: int


@dataclass(frozen=True)
class Words:
    """An input: uint64."""

    shape: Shape


@dataclass(frozen=True)
class Out:
    """An output. It starts with numbers where it is added to; it may be the memory of the argument `may_be`."""

    shape: Shape
    added: bool = False
    may_be: str = ""
    dtype: str = ""


@dataclass(frozen=True)
class Case:
    """One call: arrays as their descriptions, everything else as it is passed."""

    primitive: str
    name: str
    arguments: Mapping[str, Any] = field(hash=False)
    exact: bool = True
    """Whether whole numbers give whole numbers."""
    plain: bool = True
    """Whether the formula is a fair rival in the operands' dtype."""

    @property
    def is_wide(self) -> bool:
        """Whether sums stay float32, whatever the dtype of the operands."""
        return any(isinstance(wanted, Out) and wanted.dtype == "float32" for wanted in self.arguments.values())

    def __str__(self) -> str:
        return f"{self.primitive}-{self.name}"


EXACT_ACTS = (activations.linear, DOUBLE, SQUARE, activations.relu)
SMOOTH_ACTS = (activations.tanh, activations.sigmoid, activations.silu, activations.gelu)

# 0, 1, primes, powers of two and their neighbours, and more elements than a block of `emit`
SIZES = ((1, 1, 1), (0, 3, 2), (3, 0, 2), (2, 3, 0), (3, 17, 1), (17, 127, 3), (64, 64, 64), (257, 129, 65))
MIDDLE = (17, 31, 13)


def dense(b: int, i: int, o: int, act: Activation = activations.relu, bias: bool = True, bias_dtype: str = "") -> Case:
    aux = Out((b, o)) if act.aux == "derivative" else None
    b_o = Floats((o,), dtype=bias_dtype) if bias else None
    given = {"x_bi": Floats((b, i)), "w_io": Floats((i, o)), "b_o": b_o, "act": act}
    name = f"{b}x{i}x{o}-{act.name}{'-bias' if bias else ''}"
    exact = act in EXACT_ACTS
    return Case("dense", name, given | {"out": Out((b, o)), "aux": aux}, exact, act is not activations.gelu)


def _aux(shape: Shape, act: Activation) -> Floats | None:
    return None if act.aux == "none" else Floats(shape, low=-1.0)


def dense_grad_input(
    b: int,
    i: int,
    o: int,
    act: Activation = activations.linear,
    mode: str = "overwrite",
    db: bool = True,
    bias_dtype: str = "",
) -> Case:
    bias = Out((i,), added=mode == "accumulate", dtype=bias_dtype) if db else None
    given = {"dz_bo": Floats((b, o)), "w_io": Floats((i, o)), "act": act, "aux_bi": _aux((b, i), act)}
    name = f"{b}x{i}x{o}-{act.name}-{mode if db else 'no-db'}"
    exact = act not in (activations.tanh, activations.sigmoid)
    return Case("dense_grad_input", name, given | {"out": Out((b, i)), "db": bias, "mode": mode}, exact)


def dense_grad_weight(b: int, i: int, o: int, mode: str = "overwrite", dtype: str = "") -> Case:
    out = Out((i, o), mode == "accumulate", dtype=dtype)
    given = {"x_bi": Floats((b, i)), "dz_bo": Floats((b, o)), "out": out, "mode": mode}
    return Case("dense_grad_weight", f"{b}x{i}x{o}-{mode}", given)


def act_grad(
    b: int,
    o: int,
    act: Activation = activations.relu,
    mode: str = "overwrite",
    db: bool = True,
    bias_dtype: str = "",
    only_db: bool = False,
) -> Case:
    bias = Out((o,), added=mode == "accumulate", dtype=bias_dtype) if db else None
    given = {"dy_bo": Floats((b, o)), "aux_bo": _aux((b, o), act), "act": act, "mode": mode, "db": bias}
    exact = act not in (activations.tanh, activations.sigmoid)
    name = f"{b}x{o}-{act.name}-{mode if db else 'no-db'}{'-only' if only_db else ''}"
    return Case("act_grad", name, given | {"out": None if only_db else Out((b, o), may_be="dy_bo")}, exact)


def softmax(b: int, k: int, log: bool) -> Case:
    given = {"z_bk": Floats((b, k)), "out": Out((b, k)), "log": log}
    return Case("softmax", f"{b}x{k}-{'log' if log else 'exp'}", given, exact=False)


def softmax_xent(b: int, k: int, rows: bool, weight: bool = True, dz: bool = True) -> Case:
    target = Floats((b, k), low=0.0) if rows else Index((b,), k)
    given = {"z_bk": Floats((b, k)), "target": target, "weight_b": Floats((b,), low=0.0) if weight else None}
    given |= {"scale": 0.125, "loss": Out(()), "dz": Out((b, k), may_be="z_bk") if dz else None}
    name = f"{b}x{k}-{'rows' if rows else 'classes'}{'-weight' if weight else ''}{'' if dz else '-no-dz'}"
    return Case("softmax_xent", name, given, exact=False)


def elementwise_loss(shape: Shape, weight: Shape | None = None, dz: bool = True) -> Case:
    given = {"program": formulas.squared_error, "prediction": Floats(shape), "target": Floats(shape), "scalars": (2.0,)}
    given |= {"weight": None if weight is None else Floats(weight), "scale": 2.0**-6}
    name = f"{shape}-{weight}{'' if dz else '-no-dz'}"
    return Case("elementwise_loss", name, given | {"loss": Out(()), "dz": Out(shape) if dz else None})


def map_(program: Any, shape: Shape, *inputs: Shape, may_be: tuple[str, ...] = (), dtype: str = "") -> Case:
    outs = tuple(Out(shape, may_be=may_be[k] if may_be else "", dtype=dtype) for k in range(len(program.outputs)))
    given = {"program": program, "inputs": tuple(Floats(s) for s in inputs)}
    scalars = (2.0, -0.5)[: program.n_scalars]
    return Case("map", f"{program.name}-{shape}-{inputs}", given | {"scalars": scalars, "out": outs})


def dropout(shape: Shape, rate: float) -> Case:
    given = {"x": Floats(shape), "rate": rate, "stream": Words((2,)), "out": Out(shape, may_be="x")}
    return Case("dropout", f"{shape}-{rate}", given, exact=1 / (1 - rate) == round(1 / (1 - rate)))


def next_stream() -> Case:
    return Case("next_stream", "", {"state": Out((2,), added=True, dtype="uint64"), "out": Out((2,), dtype="uint64")})


def reduce(operation: str, shape: Shape, axes: Shape) -> Case:
    result = tuple(n for axis, n in enumerate(shape) if axis not in axes)
    given = {"operation": operation, "x": Floats(shape), "axes": axes, "out": Out(result)}
    return Case("reduce", f"{operation}-{shape}-{axes}", given)


def matmul(a: Shape, b: Shape) -> Case:
    result = (*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1])
    return Case("matmul", f"{a}-{b}", {"a": Floats(a), "b": Floats(b), "out": Out(result)})


def copy(x: Shape, out: Shape, dtype: str = "") -> Case:
    return Case("copy", f"{x}-{out}-{dtype}", {"x": Floats(x), "out": Out(out, dtype=dtype)})


def fill(value: float, shape: Shape) -> Case:
    return Case("fill", f"{value}-{shape}", {"value": value, "out": Out(shape)})


def gather_rows(rows: int, index: Shape, rest: Shape) -> Case:
    given = {"x": Floats((rows, *rest)), "index": Index(index, rows), "out": Out((*index, *rest))}
    return Case("gather_rows", f"{rows}-{index}-{rest}", given)


def scatter_add_rows(rows: int, index: Shape, rest: Shape) -> Case:
    given = {"x": Floats((*index, *rest)), "index": Index(index, rows), "out": Out((rows, *rest), added=True)}
    return Case("scatter_add_rows", f"{rows}-{index}-{rest}", given)


def norm2(*shape: int) -> Case:
    return Case("norm2", f"{shape}", {"x": Floats(shape), "out": Out((), dtype="float64")})


def _dense() -> Iterator[Case]:
    yield from (dense(*size) for size in SIZES)
    yield from (dense(*MIDDLE, act, bias) for act in (*EXACT_ACTS, *SMOOTH_ACTS) for bias in (False, True))


def _dense_grad_input() -> Iterator[Case]:
    yield from (dense_grad_input(*size, mode=mode) for size in SIZES for mode in ("overwrite", "accumulate"))
    yield from (dense_grad_input(*MIDDLE, act) for act in (*EXACT_ACTS, *SMOOTH_ACTS))
    yield dense_grad_input(*MIDDLE, activations.relu, db=False)


def _dense_grad_weight() -> Iterator[Case]:
    yield from (dense_grad_weight(*size, mode) for size in SIZES for mode in ("overwrite", "accumulate"))


def _act_grad() -> Iterator[Case]:
    yield from (act_grad(b, o, mode=mode) for b, _, o in SIZES for mode in ("overwrite", "accumulate"))
    yield from (act_grad(17, 13, act) for act in (*EXACT_ACTS, *SMOOTH_ACTS))
    yield act_grad(17, 13, activations.gelu, db=False)
    for b, o in ((1, 1), (0, 2), (3, 0), (17, 65), (257, 65)):
        yield from (act_grad(b, o, activations.linear, m, only_db=True) for m in ("overwrite", "accumulate"))
    yield act_grad(5000, 3, activations.tanh)


def _softmax() -> Iterator[Case]:
    yield from (
        softmax(b, k, log) for b, k in ((0, 3), (1, 1), (3, 17), (129, 257), (5, 5000)) for log in (False, True)
    )


def _softmax_xent() -> Iterator[Case]:
    sizes = ((0, 3), (1, 1), (3, 17), (129, 257))
    yield from (softmax_xent(b, k, rows) for b, k in sizes for rows in (False, True))
    yield from (softmax_xent(17, 10, rows, weight=False) for rows in (False, True))
    yield from (softmax_xent(17, 10, rows, dz=False) for rows in (False, True))


def _elementwise_loss() -> Iterator[Case]:
    yield from (elementwise_loss(shape) for shape in ((), (0,), (1,), (17, 3), (257, 129)))
    yield from (elementwise_loss((17, 31), weight) for weight in ((), (31,), (17, 1), (17, 31)))
    yield elementwise_loss((17, 31), dz=False)


def _map() -> Iterator[Case]:
    yield from (map_(formulas.cube, s, s, may_be=("inputs[0]",)) for s in ((), (0, 3), (1,), (17, 3), (127, 131, 3)))
    for x, y in (((3,), (17, 3)), ((17, 1), (1, 3)), ((), (5, 3)), ((2, 1, 3), (4, 1)), ((400, 1, 50), (3, 1))):
        yield map_(formulas.axpy, np.broadcast_shapes(x, y), x, y)
    yield map_(formulas.constant, (3, 2))
    yield from (map_(formulas.momentum, s, s, s, s, may_be=("inputs[0]", "inputs[1]")) for s in ((7,), (40000,)))
    yield map_(formulas.swap, (40000,), (40000,), (40000,), may_be=("inputs[0]", "inputs[1]"))
    yield map_(formulas.greater, (17, 3), (17, 3), (3,), dtype="bool")


def _dropout() -> Iterator[Case]:
    yield from (dropout(shape, rate) for shape in ((0,), (1,), (17, 3), (257, 129)) for rate in (0.0, 0.5, 0.9))


def _next_stream() -> Iterator[Case]:
    yield next_stream()


def _reduce() -> Iterator[Case]:
    for operation in ("sum", "max", "min"):
        for shape, axes in (((5,), (0,)), ((17, 31), (0,)), ((17, 31), (1,)), ((17, 31), (0, 1)), ((3, 4), ())):
            yield reduce(operation, shape, axes)
        yield reduce(operation, (5, 17, 129), (0, 2))
        yield reduce(operation, (0, 3), (1,))
    yield from (reduce("sum", shape, (0,)) for shape in ((0, 3), (0,), (5000, 3)))


def _matmul() -> Iterator[Case]:
    yield from (matmul((b, i), (i, o)) for b, i, o in SIZES)
    yield from (matmul(a, b) for a, b in (((5, 3, 4), (4, 2)), ((2, 1, 3, 4), (5, 4, 2)), ((0, 3, 4), (0, 4, 2))))


def _copy() -> Iterator[Case]:
    yield from (copy(s, s, dtype) for s in ((), (0,), (17, 3), (257, 129)) for dtype in ("float32", "float64"))
    yield from (copy(x, (17, 3)) for x in ((), (3,), (17, 1)))
    yield copy((17, 3), (17, 3), "bool")


def _fill() -> Iterator[Case]:
    yield from (fill(value, shape) for value in (0.0, -3.0) for shape in ((), (0,), (17, 3)))


def _gather_rows() -> Iterator[Case]:
    yield from (gather_rows(*g) for g in ((1, (1,), ()), (5, (0,), (3,)), (7, (17,), (3,)), (7, (2, 3), (3, 2))))
    yield gather_rows(129, (500,), (257,))


def _scatter_add_rows() -> Iterator[Case]:
    yield from (scatter_add_rows(*g) for g in ((1, (1,), ()), (5, (0,), (3,)), (7, (17,), (3,)), (7, (2, 3), (3, 2))))
    yield scatter_add_rows(129, (500,), (65,))


def _norm2() -> Iterator[Case]:
    yield from (norm2(*shape) for shape in ((), (0,), (1,), (17, 3), (257, 129)))


GENERATORS: dict[str, Callable[[], Iterator[Case]]] = {
    "dense": _dense,
    "dense_grad_input": _dense_grad_input,
    "dense_grad_weight": _dense_grad_weight,
    "act_grad": _act_grad,
    "softmax": _softmax,
    "softmax_xent": _softmax_xent,
    "elementwise_loss": _elementwise_loss,
    "map": _map,
    "next_stream": _next_stream,
    "dropout": _dropout,
    "reduce": _reduce,
    "matmul": _matmul,
    "copy": _copy,
    "fill": _fill,
    "gather_rows": _gather_rows,
    "scatter_add_rows": _scatter_add_rows,
    "norm2": _norm2,
}
CASES = tuple(case for generate in GENERATORS.values() for case in generate())

LARGE = (
    dense(1000, 2000, 500, activations.gelu),
    dense_grad_input(1000, 500, 2000, activations.tanh, "accumulate"),
    dense_grad_weight(2000, 1000, 500, "accumulate"),
    act_grad(50_000, 64, activations.silu),
    softmax(1000, 2000, True),
    softmax_xent(2000, 1000, False),
    softmax_xent(2000, 1000, True),
    softmax_xent(20_000, 10, False),
    softmax_xent(20_000, 10, True),
    elementwise_loss((1_000_003,)),
    map_(formulas.axpy, (1009, 1013), (1009, 1013), (1013,)),
    next_stream(),
    dropout((1009, 1013), 0.5),
    reduce("sum", (1009, 1013), (0,)),
    reduce("sum", (1009, 1013), (1,)),
    matmul((4, 300, 500), (500, 400)),
    copy((1009, 1013), (1009, 1013)),
    fill(1.0, (1009, 1013)),
    gather_rows(50_000, (20_000,), (50,)),
    scatter_add_rows(50_000, (20_000,), (50,)),
    norm2(1_000_003),
)
"""One really large call or more of each primitive."""
