"""How far a result may lie from the exact one.

A sum of K terms errs by at most gamma_K = K u / (1 - K u) times the sum of the terms' absolute values, in any order of
summation (N. Higham (2002), Accuracy and stability of numerical algorithms, chapter 3). An activation adds
4 eps max(1, |f|).
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from fcdense.activation import Activation
from fcdense.precision import FLOAT_KINDS
from tests.backends.calls import Values, pairs, reference
from tests.backends.cases import Case
from tests.backends.formulas import FUNCTIONS, PROGRAMS

CURVATURE = 2.0
"""No activation under test has a larger |f''|."""


class Rounding:
    """The rounding of one dtype. Sums of 16-bit numbers run in float32 and are rounded at the end, unless `is_wide`."""

    def __init__(self, dtype: Any, is_wide: bool = False) -> None:
        limits = finfo(dtype)
        self.u = float(limits.eps) / 2
        self.eps = 2 * self.u
        self.smallest = float(limits.smallest_subnormal)
        self.is_wide = is_wide

    def gamma(self, terms: int) -> float:
        wide = min(self.u, float(np.finfo(np.float32).eps) / 2)
        return terms * wide / (1 - terms * wide) + (3 * self.u if wide < self.u else 0.0)

    def sum_gamma(self, terms: int) -> float:
        """For gradients of parameters."""
        return Rounding(np.float32).gamma(terms) if self.is_wide else self.gamma(terms)

    def own_gamma(self, terms: int) -> float:
        """For sums that are rounded after each term."""
        return terms * self.u / (1 - terms * self.u)


def finfo(dtype: Any) -> Any:
    """The limits of a float dtype; ml_dtypes knows those of bfloat16."""
    return ml_dtypes.finfo(dtype) if np.dtype(dtype).kind == "V" else np.finfo(dtype)


def _f64(values: Values) -> Values:
    return {
        k: np.asarray(v, np.float64) if isinstance(v, np.ndarray) and v.dtype.kind in FLOAT_KINDS else v
        for k, v in values.items()
    }


def _size(a: Any) -> Any:
    return 0.0 if a is None else np.abs(a)


def dense(r: Rounding, v: Values, exact: Values) -> Values:
    f, slope, _ = FUNCTIONS[v["act"]]
    terms = np.abs(v["x_bi"]) @ np.abs(v["w_io"]) + _size(v["b_o"])
    z_bo = v["x_bi"] @ v["w_io"] + (0.0 if v["b_o"] is None else v["b_o"])
    z_error = r.gamma(v["x_bi"].shape[1] + 2) * terms
    steepest = np.abs(slope(z_bo)) + CURVATURE * z_error
    out = np.minimum(steepest, np.maximum(steepest, 1.0)) * z_error + 4 * r.eps * np.maximum(1.0, np.abs(f(z_bo)))
    aux = CURVATURE * z_error + 4 * r.eps * np.maximum(1.0, np.abs(slope(z_bo)))
    return {"out": out, "aux": aux}


def _chain(r: Rounding, v: Values, act: Activation, dy: Any, dy_error: Any, aux: Any) -> Values:
    slope = np.abs(FUNCTIONS[act][2](aux) * np.ones_like(dy))
    dz_error = slope * dy_error + 4 * r.eps * np.maximum(1.0, slope) * np.abs(dy) + r.eps * np.abs(slope * dy)
    dz = slope * np.abs(dy)
    db = dz_error.sum(axis=0) + r.sum_gamma(len(dz) + 1) * (dz.sum(axis=0) + _size(v["db"]))
    return {"out": dz_error, "db": db}


def act_grad(r: Rounding, v: Values, exact: Values) -> Values:
    return _chain(r, v, v["act"], v["dy_bo"], 0.0, v["aux_bo"])


def dense_grad_input(r: Rounding, v: Values, exact: Values) -> Values:
    error = r.gamma(v["dz_bo"].shape[1] + 1) * (np.abs(v["dz_bo"]) @ np.abs(v["w_io"]).T)
    return _chain(r, v, v["act"], v["dz_bo"] @ v["w_io"].T, error, v["aux_bi"])


def dense_grad_weight(r: Rounding, v: Values, exact: Values) -> Values:
    return {"out": r.sum_gamma(len(v["x_bi"]) + 2) * (np.abs(v["x_bi"]).T @ np.abs(v["dz_bo"]) + np.abs(v["out"]))}


def _softmax_error(r: Rounding, z: Any) -> Any:
    """Relative, of exp(z - m) / sum: the rounding of z - m and of its exp, twice; the sum; the division."""
    reach = (z.max(axis=1, keepdims=True) - z.min(axis=1, keepdims=True)) if z.size else np.zeros((len(z), 1))
    return 2 * r.u * reach + r.gamma(z.shape[1] + 4) + 10 * r.u


def softmax(r: Rounding, v: Values, exact: Values) -> Values:
    relative = _softmax_error(r, v["z_bk"])
    if v["log"]:
        return {"out": relative + 2 * r.eps * np.abs(exact["out"])}
    return {"out": relative * exact["out"] + 2 * r.smallest}


def softmax_xent(r: Rounding, v: Values, exact: Values) -> Values:
    z = v["z_bk"]
    t = np.eye(z.shape[1])[v["target"]] if v["target"].ndim == 1 else v["target"]
    weight = v["scale"] * (np.ones(len(z)) if v["weight_b"] is None else v["weight_b"])[:, None]
    relative = _softmax_error(r, z)
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    mass = t.sum(axis=1, keepdims=True)
    terms = np.where(t == 0, 0.0, -np.log(np.maximum(p, 1e-300)) * t)
    each = weight * (mass * relative + (r.gamma(z.shape[1]) + 8 * r.u) * (terms.sum(axis=1, keepdims=True) + mass))
    dz = weight * (mass * p * (relative + r.gamma(z.shape[1]) + 8 * r.u) + 4 * r.u * t) + 4 * r.smallest
    loss = each.sum() + r.gamma(len(z) + 2) * (weight * terms).sum() + len(z) * r.smallest
    return {"loss": loss, "dz": dz}


def elementwise_loss(r: Rounding, v: Values, exact: Values) -> Values:
    weight = v["scale"] * np.broadcast_to(1.0 if v["weight"] is None else v["weight"], v["prediction"].shape)
    parts = PROGRAMS[v["program"]](np.abs(v["prediction"]), -np.abs(v["target"]), *np.abs(v["scalars"]))
    value, slope = (np.abs(weight * part) for part in parts)
    return {
        "loss": (r.gamma(value.size + 2) + 8 * r.u) * value.sum() + value.size * r.smallest,
        "dz": 8 * r.u * slope + 2 * r.smallest,
    }


def map(r: Rounding, v: Values, exact: Values) -> Values:
    if any(o.dtype == np.bool_ for o in v["out"]):
        return {"out": tuple(0.0 for _ in v["out"])}
    parts = PROGRAMS[v["program"]](*(np.abs(x, dtype=np.float64) for x in v["inputs"]), *np.abs(v["scalars"]))
    return {"out": tuple(8 * r.u * part + 2 * r.smallest for part in (parts if isinstance(parts, tuple) else (parts,)))}


def next_stream(r: Rounding, v: Values, exact: Values) -> Values:
    return {"out": 0.0, "state": 0.0}


def dropout(r: Rounding, v: Values, exact: Values) -> Values:
    return {"out": 4 * r.u * np.abs(exact["out"]) + 2 * r.smallest}


def reduce(r: Rounding, v: Values, exact: Values) -> Values:
    if v["operation"] != "sum":
        return {"out": 0.0}
    terms = int(np.prod([v["x"].shape[axis] for axis in v["axes"]], dtype=np.int64))
    return {"out": r.gamma(terms + 1) * np.abs(v["x"]).sum(axis=v["axes"])}


def matmul(r: Rounding, v: Values, exact: Values) -> Values:
    return {"out": r.gamma(v["a"].shape[-1] + 1) * (np.abs(v["a"]) @ np.abs(v["b"]))}


def scatter_add_rows(r: Rounding, v: Values, exact: Values) -> Values:
    terms = np.abs(v["out"])
    np.add.at(terms, v["index"], np.abs(v["x"]))
    return {"out": r.own_gamma(v["index"].size + 1) * terms}


def norm2(r: Rounding, v: Values, exact: Values) -> Values:
    return {"out": Rounding(np.float32 if r.u > 1e-10 else np.float64).gamma(v["x"].size + 2) * exact["out"]}


def copies(r: Rounding, v: Values, exact: Values) -> Values:
    return {"out": 0.0}


copy = fill = gather_rows = copies


def bound(case: Case, values: Values, exact: Values, dtype: Any) -> Values:
    """The largest allowed error of every output, for a call on operands of `dtype`."""
    found: Values = globals()[case.primitive](Rounding(dtype, case.is_wide), _f64(values), exact)
    return {name: found[name] for name in exact}


def assert_within_bound(got: Values, case: Case, values: Values, dtype: Any) -> None:
    """Every output of a call on operands of `dtype` is as close to the reference as it has to be."""
    exact = reference(case, values)
    allowed = bound(case, values, exact, dtype)
    times = 2.0 if np.dtype(dtype) == np.float64 else 1.0  # the reference itself rounds in float64
    for name, a, b, limit in pairs(got, exact, allowed):
        with np.errstate(over="ignore", invalid="ignore"):
            beyond = np.isinf(b.astype(a.dtype)) & (a == b.astype(a.dtype))  # the exact value is out of a's range
            excess = np.where(beyond, 0.0, np.abs(a.astype(np.float64) - b.astype(np.float64)) - times * limit)
        assert (excess <= 0).all(), f"{name}: up to {excess.max():.3g} above the bound"
