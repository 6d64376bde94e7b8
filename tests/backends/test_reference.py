"""The oracle has an oracle: the reference backend against int64, long double, mpmath and numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
import pytest

from fcdense import activations
from fcdense.activation import Activation
from fcdense.backends.reference import ReferenceBackend
from tests.backends.calls import draw, formula, pairs, reference, run
from tests.backends.cases import CASES, Case
from tests.backends.formulas import squared_error

REFERENCE = ReferenceBackend()


def each(some: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [pytest.param(case, id=str(case)) for case in some])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each(case for case in CASES if case.exact)
def test_whole_numbers_are_exact(case: Case, dtype: str, rng: np.random.Generator) -> None:
    """Through `CheckedBackend`: the oracle keeps to the contract as well."""
    values = draw(case, dtype, rng, whole=True)
    for name, a, b in pairs(run(REFERENCE, case, values), formula(case, values, np.int64)):
        np.testing.assert_array_equal(a, np.asarray(b).astype(a.dtype), err_msg=name, strict=True)


@each(case for case in CASES if case.plain)
def test_agrees_with_long_double(case: Case, rng: np.random.Generator) -> None:
    values = draw(case, "float64", rng)
    for name, a, b in pairs(reference(case, values), formula(case, values, np.longdouble)):
        exact = np.asarray(b).astype(np.float64)
        np.testing.assert_allclose(a, exact, rtol=1e-12, atol=1e-12 * np.abs(exact).max(initial=1.0), err_msg=name)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@each(case for case in CASES if case.primitive not in {"copy", "norm2"})
def test_rounds_once(case: Case, dtype: str, rng: np.random.Generator) -> None:
    """A narrow result is the float64 result, rounded."""
    values = draw(case, dtype, rng)
    for name, narrow, wide in pairs(run(REFERENCE, case, values), reference(case, values)):
        np.testing.assert_array_equal(narrow, wide.astype(narrow.dtype), err_msg=name)


def written(primitive: str, *shapes: tuple[int, ...], **given: Any) -> Any:
    """Arrays of float64 of these shapes for the outputs `given` names, after the call."""
    outs = {name: np.empty(shape) for (name, shape) in zip(given.pop("outs"), shapes, strict=True)}
    getattr(REFERENCE, primitive)(**given, **outs)
    return outs.values()


CLOSED: dict[Activation, tuple[Any, Any]] = {
    activations.gelu: (lambda x: x * mpmath.ncdf(x), lambda x: mpmath.ncdf(x) + x * mpmath.npdf(x)),
    activations.silu: (
        lambda x: x / (1 + mpmath.exp(-x)),
        lambda x: (1 + mpmath.exp(-x) + x * mpmath.exp(-x)) / (1 + mpmath.exp(-x)) ** 2,
    ),
    activations.tanh: (mpmath.tanh, lambda x: mpmath.sech(x) ** 2),
    activations.softplus: (lambda x: mpmath.log1p(mpmath.exp(x)), lambda x: 1 / (1 + mpmath.exp(-x))),
}


@pytest.mark.parametrize("act", CLOSED)
def test_dense_against_mpmath(act: Activation) -> None:
    x, w, b = np.array([[0.5, -2.0], [3.0, 0.25]]), np.array([[1.5, -0.5], [0.75, 2.0]]), np.array([0.125, -1.0])
    out, aux = written("dense", (2, 2), (2, 2), outs=("out", "aux"), x_bi=x, w_io=w, b_o=b, act=act)
    f, slope = CLOSED[act]
    z = [[-0.625, -5.25], [4.8125, -2.0]]
    np.testing.assert_allclose(out, [[float(f(mpmath.mpf(v))) for v in row] for row in z], rtol=1e-14, atol=2e-16)
    np.testing.assert_allclose(aux, [[float(slope(mpmath.mpf(v))) for v in row] for row in z], rtol=1e-14, atol=2e-16)


def test_dense_gradients_by_hand() -> None:
    """One relu layer on top of another, with two rows: worked out on paper."""
    dz, w, y = (
        np.array([[1.0, 2.0], [0.0, -1.0]]),
        np.array([[1.0, 0.0], [3.0, 1.0]]),
        np.array([[2.0, 0.0], [1.0, 4.0]]),
    )
    out, db = written(
        "dense_grad_input", (2, 2), (2,), outs=("out", "db"), dz_bo=dz, w_io=w, act=activations.relu, aux_bi=y
    )
    np.testing.assert_array_equal(out, [[1.0, 0.0], [0.0, -1.0]])
    np.testing.assert_array_equal(db, [1.0, -1.0])
    (dw,) = written("dense_grad_weight", (2, 2), outs=("out",), x_bi=y, dz_bo=dz)
    np.testing.assert_array_equal(dw, [[2.0, 3.0], [0.0, -4.0]])


def test_softmax_against_mpmath() -> None:
    z = [1000.0, 999.0, 0.0, -5.5]
    total = mpmath.fsum(mpmath.exp(mpmath.mpf(v)) for v in z)
    for log in (False, True):
        (out,) = written("softmax", (1, 4), outs=("out",), z_bk=np.array([z]), log=log)
        shares = [mpmath.exp(mpmath.mpf(v)) / total for v in z]
        np.testing.assert_allclose(out[0], [float(mpmath.log(s) if log else s) for s in shares], rtol=1e-14)


def test_cross_entropy_against_mpmath() -> None:
    z, weight, scale = [[1.0, -2.0, 0.5], [30.0, -30.0, 0.0]], [1.0, 0.25], 0.5
    targets = np.array([2, 1])
    loss, dz = written(
        "softmax_xent",
        (),
        (2, 3),
        outs=("loss", "dz"),
        z_bk=np.array(z),
        target=targets,
        weight_b=np.array(weight),
        scale=scale,
    )
    expected_loss, expected_dz = mpmath.mpf(0), []
    for row, w, t in zip(z, weight, targets, strict=True):
        total = mpmath.fsum(mpmath.exp(mpmath.mpf(v)) for v in row)
        expected_loss += scale * w * (mpmath.log(total) - row[t])
        expected_dz.append(
            [float(scale * w * (mpmath.exp(mpmath.mpf(v)) / total - (k == t))) for k, v in enumerate(row)]
        )
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-14)
    np.testing.assert_allclose(dz, expected_dz, rtol=1e-13)


def test_cross_entropy_of_uniform_logits() -> None:
    """log K, whatever the logits' level; rows of shares and class numbers agree."""
    for level in (0.0, 700.0):
        z = np.full((4, 10), level)
        by_class = written(
            "softmax_xent", (), (4, 10), outs=("loss", "dz"), z_bk=z, target=np.arange(4), weight_b=None, scale=0.25
        )
        by_row = written(
            "softmax_xent", (), (4, 10), outs=("loss", "dz"), z_bk=z, target=np.eye(10)[:4], weight_b=None, scale=0.25
        )
        for a, b in zip(by_class, by_row, strict=True):
            np.testing.assert_array_equal(a, b)
        loss, dz = by_class
        assert float(loss) == pytest.approx(np.log(10.0), rel=1e-13)
        np.testing.assert_allclose(dz.sum(axis=1), 0.0, atol=1e-15)


def test_elementwise_loss_by_hand() -> None:
    loss, dz = written(
        "elementwise_loss",
        (),
        (2,),
        outs=("loss", "dz"),
        program=squared_error,
        prediction=np.array([1.0, 5.0]),
        target=np.array([3.0, 2.0]),
        weight=np.array([1.0, 0.5]),
        scale=0.5,
        scalars=(2.0,),
    )
    assert float(loss) == 0.5 * (2 * 4 + 0.5 * 2 * 9)
    np.testing.assert_array_equal(dz, [0.5 * 2 * 2 * -2, 0.5 * 0.5 * 2 * 2 * 3])


def test_row_operations_by_hand() -> None:
    x, index = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([1, 1, 0])
    (rows,) = written("gather_rows", (3, 2), outs=("out",), x=x, index=index)
    np.testing.assert_array_equal(rows, [[3.0, 4.0], [3.0, 4.0], [1.0, 2.0]])
    total = np.ones((2, 2))
    REFERENCE.scatter_add_rows(rows, index, out=total)
    np.testing.assert_array_equal(total, [[2.0, 3.0], [7.0, 9.0]])


def test_norm2_by_hand() -> None:
    (total,) = written("norm2", (), outs=("out",), x=np.array([[3.0, 4.0], [0.0, 12.0]]))
    assert float(total) == 169.0


@pytest.mark.parametrize("operation", ["max", "min"])
def test_nan_wins_in_extremes(operation: str) -> None:
    (out,) = written(
        "reduce", (2,), outs=("out",), operation=operation, x=np.array([[np.nan, 1.0], [np.inf, -np.inf]]), axes=(1,)
    )
    np.testing.assert_array_equal(out, [np.nan, np.inf if operation == "max" else -np.inf])
