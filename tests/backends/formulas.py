"""Every primitive as a plain NumPy program: what a person would write, in whatever dtype the operands have.

On int64 operands these are exact; in the operands' own dtype they are what a backend must not be worse than; in long
double they are as good as exact. Each returns what the primitive writes, by the names of its arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fcdense import activations
from fcdense.activation import Activation
from fcdense.program import Program, trace

Results = dict[str, Any]

_erf = np.vectorize(math.erf, otypes=[float])


def _normal_cdf(x: Any) -> Any:
    return (0.5 * (1.0 + _erf(x / math.sqrt(2.0)))).astype(x.dtype)


def _sigmoid(x: Any) -> Any:
    return 1.0 / (1.0 + np.exp(-x))


def _positive(x: Any) -> Any:
    return (x > 0).astype(x.dtype)


SQUARE = Activation("square", trace(lambda x: x * x, 1))
DOUBLE = Activation("double", trace(lambda x: 2.0 * x, 1))

# activation -> f(x), f'(x), and f' from what the contract calls aux (y where act.aux is "output", else f' itself)
FUNCTIONS: dict[Activation, tuple[Callable[[Any], Any], Callable[[Any], Any], Callable[[Any], Any]]] = {
    activations.linear: (lambda x: x, np.ones_like, lambda aux: 1),
    DOUBLE: (lambda x: 2 * x, lambda x: 0 * x + 2, lambda aux: 2),
    SQUARE: (lambda x: x * x, lambda x: 2 * x, lambda aux: aux),
    activations.relu: (lambda x: np.maximum(x, 0), _positive, _positive),
    activations.tanh: (np.tanh, lambda x: 1 - np.tanh(x) ** 2, lambda y: 1 - y * y),
    activations.sigmoid: (_sigmoid, lambda x: _sigmoid(x) * (1 - _sigmoid(x)), lambda y: y * (1 - y)),
    activations.silu: (
        lambda x: x * _sigmoid(x),
        lambda x: _sigmoid(x) * (1 + x * (1 - _sigmoid(x))),
        lambda aux: aux,
    ),
    activations.gelu: (
        lambda x: x * _normal_cdf(x),
        lambda x: _normal_cdf(x) + x * np.exp(-x * x / 2) * (1 / math.sqrt(2 * math.pi)),
        lambda aux: aux,
    ),
}

# program -> the same function on arrays; each uses + and * of its arguments only, so that f(|x|) bounds its terms
PROGRAMS: dict[Program, Callable[..., Any]] = {}


def program(n_inputs: int, n_scalars: int = 0) -> Callable[[Callable[..., Any]], Program]:
    """Trace a function and remember it."""

    def define(fn: Callable[..., Any]) -> Program:
        made = trace(fn, n_inputs, n_scalars)
        PROGRAMS[made] = fn
        return made

    return define


@program(2, 1)
def axpy(x: Any, y: Any, a: Any) -> Any:
    return a * x + y


@program(1)
def cube(x: Any) -> Any:
    return x * x * x


@program(0, 1)
def constant(a: Any) -> Any:
    return a * 2.0


@program(3, 2)
def momentum(w: Any, v: Any, g: Any, rate: Any, decay: Any) -> Any:
    """Two results, each also an argument: what an optimizer does."""
    slot = decay * v + g
    return w + rate * slot, slot


@program(2)
def swap(x: Any, y: Any) -> Any:
    return y, x


@program(2, 1)
def squared_error(p: Any, t: Any, a: Any) -> Any:
    return a * (p - t) * (p - t), 2 * a * (p - t)


@program(2)
def greater(x: Any, y: Any) -> Any:
    return x > y


def _updated(out: Any, change: Any, mode: str) -> Any:
    return change if mode == "overwrite" else out + change


def dense(x_bi: Any, w_io: Any, b_o: Any, act: Activation, out: Any, aux: Any) -> Results:
    f, slope, _ = FUNCTIONS[act]
    z_bo = x_bi @ w_io if b_o is None else x_bi @ w_io + b_o
    return {"out": f(z_bo)} | ({} if aux is None else {"aux": slope(z_bo)})


def act_grad(dy_bo: Any, aux_bo: Any, act: Activation, out: Any, db: Any, mode: str) -> Results:
    dz_bo = dy_bo * FUNCTIONS[act][2](aux_bo)
    results = {} if out is None else {"out": dz_bo}
    return results | ({} if db is None else {"db": _updated(db, dz_bo.sum(axis=0), mode)})


def dense_grad_input(dz_bo: Any, w_io: Any, act: Activation, aux_bi: Any, out: Any, db: Any, mode: str) -> Results:
    return act_grad(dz_bo @ w_io.T, aux_bi, act, out, db, mode)


def dense_grad_weight(x_bi: Any, dz_bo: Any, out: Any, mode: str) -> Results:
    return {"out": _updated(out, x_bi.T @ dz_bo, mode)}


def softmax(z_bk: Any, out: Any, log: bool) -> Results:
    shifted = z_bk - z_bk.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, keepdims=True)
    return {"out": shifted - np.log(total) if log else np.exp(shifted) / total}


def softmax_xent(z_bk: Any, target: Any, weight_b: Any, scale: float, loss: Any, dz: Any) -> Results:
    rows = np.eye(z_bk.shape[1], dtype=z_bk.dtype)[target] if target.ndim == 1 else target
    weight = 1 if weight_b is None else weight_b[:, None]
    log_p, p = (softmax(z_bk, None, log)["out"] for log in (True, False))
    results = {"loss": scale * (weight * np.where(rows == 0, 0, -rows * log_p)).sum()}
    return results | ({} if dz is None else {"dz": scale * weight * (p * rows.sum(axis=1, keepdims=True) - rows)})


def elementwise_loss(
    program: Program, prediction: Any, target: Any, weight: Any, scale: float, scalars: Any, loss: Any, dz: Any
) -> Results:
    value, slope = PROGRAMS[program](prediction, target, *scalars)
    factor = scale if weight is None else scale * weight
    return {"loss": (factor * value).sum()} | ({} if dz is None else {"dz": factor * slope})


def map(program: Program, inputs: Any, scalars: Any, out: Any) -> Results:
    values = PROGRAMS[program](*inputs, *scalars)
    values = values if isinstance(values, tuple) else (values,)
    return {"out": tuple(np.broadcast_to(value, o.shape) for value, o in zip(values, out, strict=True))}


def next_stream(state: Any, out: Any) -> Results:
    return {"out": state, "state": np.array([state[0], state[1] + np.uint64(1)])}


def dropout(x: Any, rate: float, stream: Any, out: Any) -> Results:
    words = np.random.Generator(np.random.Philox(key=np.ascontiguousarray(stream)))
    kept = words.random(x.shape, dtype=np.float32) >= np.float32(rate)
    return {"out": np.where(kept, x / x.dtype.type(1 - rate) if x.dtype.kind == "f" else x * round(1 / (1 - rate)), 0)}


def reduce(operation: str, x: Any, axes: tuple[int, ...], out: Any) -> Results:
    return {"out": getattr(x, operation)(axis=axes)}


def matmul(a: Any, b: Any, out: Any) -> Results:
    return {"out": a @ b}


def copy(x: Any, out: Any) -> Results:
    return {"out": np.broadcast_to(x, out.shape).astype(out.dtype)}


def fill(value: float, out: Any) -> Results:
    return {"out": np.full(out.shape, value, out.dtype)}


def gather_rows(x: Any, index: Any, out: Any) -> Results:
    return {"out": x[index]}


def scatter_add_rows(x: Any, index: Any, out: Any) -> Results:
    total = out.copy()
    for place in np.ndindex(index.shape):
        total[index[place]] += x[place]
    return {"out": total}


def norm2(x: Any, out: Any) -> Results:
    return {"out": (x * x).sum()}
