"""The table of activations against textbook formulas, in mpmath and in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import mpmath
import numpy as np
import pytest

from fcdense import activations, emit
from fcdense.activation import Activation, RowActivation

# The same formulas are evaluated with 60 digits and in float64; `m` supplies the functions.
Formula = Callable[[Any, Any], Any]

SELU = ("1.6732632423543772848170429916717", "1.0507009873554804934193349852946")


def gelu_tanh_slope(m: Any, x: Any) -> Any:
    t = m.tanh(gelu_tanh_u(m, x))
    return (1 + t) / 2 + x * (1 - t * t) / 2 * m.sqrt(2 / m.pi) * (1 + 3 * m.number("0.044715") * x * x)


def gelu_tanh_u(m: Any, x: Any) -> Any:
    return m.sqrt(2 / m.pi) * (x + m.number("0.044715") * x**3)


def mish_slope(m: Any, x: Any) -> Any:
    t = m.tanh(m.softplus(x))
    return t + x * (1 - t * t) * m.sigmoid(x)


def softsign_slope(m: Any, x: Any) -> Any:
    return (1 / (1 + abs(x))) ** 2


def selu(m: Any, x: Any) -> Any:
    alpha, scale = map(m.number, SELU)
    return scale * m.where(x > 0, x, alpha * m.expm1(m.least(x, 0)))


def selu_slope(m: Any, x: Any) -> Any:
    alpha, scale = map(m.number, SELU)
    return scale * m.where(x > 0, 1, alpha * m.exp(m.least(x, 0)))


def inside(m: Any, x: Any, low: float, high: float, value: Any) -> Any:
    return m.where(x > low, m.where(x < high, value, 0 * x), 0 * x)


TEXTBOOK: dict[str, tuple[Formula, Formula]] = {
    "linear": (lambda m, x: x, lambda m, x: 1 + 0 * x),
    "relu": (lambda m, x: m.most(x, 0), lambda m, x: m.where(x > 0, 1, 0 * x)),
    "relu6": (lambda m, x: m.least(m.most(x, 0), 6), lambda m, x: inside(m, x, 0, 6, 1)),
    "leaky_relu": (
        lambda m, x: m.where(x > 0, x, x * m.number("0.01")),
        lambda m, x: m.where(x > 0, 1, m.number("0.01") + 0 * x),
    ),
    "hard_tanh": (lambda m, x: m.least(m.most(x, -1), 1), lambda m, x: inside(m, x, -1, 1, 1)),
    "hard_sigmoid": (
        lambda m, x: m.least(m.most(x / 6 + 0.5, 0), 1),
        lambda m, x: inside(m, x, -3, 3, 1 / m.number("6")),
    ),
    "hard_silu": (
        lambda m, x: x * m.least(m.most(x / 6 + 0.5, 0), 1),
        lambda m, x: m.least(m.most(x / 6 + 0.5, 0), 1) + inside(m, x, -3, 3, x / 6),
    ),
    "elu": (
        lambda m, x: m.where(x > 0, x, m.expm1(m.least(x, 0))),
        lambda m, x: m.where(x > 0, 1, m.exp(m.least(x, 0))),
    ),
    "celu": (
        lambda m, x: m.most(x, 0) + m.least(m.expm1(m.least(x, 0)), 0),
        lambda m, x: m.where(x > 0, 1, m.exp(m.least(x, 0))),
    ),
    "selu": (selu, selu_slope),
    "exponential": (lambda m, x: m.exp(x), lambda m, x: m.exp(x)),
    "sigmoid": (lambda m, x: m.sigmoid(x), lambda m, x: m.sigmoid(x) * m.sigmoid(-x)),
    "log_sigmoid": (lambda m, x: -m.softplus(-x), lambda m, x: m.sigmoid(-x)),
    "tanh": (lambda m, x: m.tanh(x), lambda m, x: 1 - m.tanh(x) ** 2),
    "tanh_shrink": (lambda m, x: x - m.tanh(x), lambda m, x: m.tanh(x) ** 2),
    "softsign": (lambda m, x: x / (1 + abs(x)), softsign_slope),
    "softplus": (lambda m, x: m.softplus(x), lambda m, x: m.sigmoid(x)),
    "squareplus": (lambda m, x: (x + m.hypot(x, 2)) / 2, lambda m, x: (1 + x / m.hypot(x, 2)) / 2),
    "gelu": (
        lambda m, x: x * (1 + m.erf(x / m.sqrt(2))) / 2,
        lambda m, x: (1 + m.erf(x / m.sqrt(2))) / 2 + x * m.exp(-x * x / 2) / m.sqrt(2 * m.pi),
    ),
    "gelu_tanh": (lambda m, x: x / 2 * (1 + m.tanh(gelu_tanh_u(m, x))), gelu_tanh_slope),
    "silu": (lambda m, x: x * m.sigmoid(x), lambda m, x: m.sigmoid(x) + x * m.sigmoid(x) * m.sigmoid(-x)),
    "mish": (lambda m, x: x * m.tanh(m.softplus(x)), mish_slope),
    "sine": (lambda m, x: m.sin(x), lambda m, x: m.cos(x)),
}

EXACT = SimpleNamespace(
    **{name: getattr(mpmath, name) for name in ("exp", "expm1", "tanh", "sin", "cos", "sqrt", "erf", "hypot", "pi")},
    number=mpmath.mpf,
    most=max,
    least=min,
    where=lambda condition, a, b: a if condition else b,
    sigmoid=lambda x: 1 / (1 + mpmath.exp(-x)),
    softplus=lambda x: mpmath.log1p(mpmath.exp(x)),
)
FLOAT64 = SimpleNamespace(
    **{name: getattr(np, name) for name in ("exp", "expm1", "tanh", "sin", "cos", "sqrt", "hypot", "where", "pi")},
    number=float,
    most=np.maximum,
    least=np.minimum,
    erf=np.vectorize(math.erf, otypes=[float]),
    sigmoid=lambda x: 1 / (1 + np.exp(-x)),
    softplus=lambda x: np.logaddexp(0, x),
)

each = pytest.mark.parametrize("name", TEXTBOOK)


def activation(name: str) -> Activation:
    found = activations.get(name)
    assert isinstance(found, Activation)
    return found


def both(name: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f and f' as computed, by the separate programs and by the joint one, which must agree."""
    act = activation(name)
    y, slope = act(x), emit.apply(act.derivative, x)
    joint = emit.apply(act.forward_with_derivative, x)
    np.testing.assert_array_equal(y, joint[0])
    np.testing.assert_array_equal(slope, joint[1])
    return y, slope


def check(given: np.ndarray, true: np.ndarray, x: np.ndarray) -> None:
    """Error at most 4 eps max(1, |f|); infinite only beyond the dtype; never NaN."""
    assert given.dtype == x.dtype
    limits = np.finfo(x.dtype)
    assert not np.isnan(given).any(), f"NaN at {x[np.isnan(given)][:5]}"
    beyond = np.abs(true) > float(limits.max)
    assert np.isinf(given[beyond]).all()
    given, true, x = given[~beyond].astype(np.float64), true[~beyond], x[~beyond]
    error = np.abs(given - true) / np.maximum(1.0, np.abs(true))
    worst = np.argmax(error)
    assert error[worst] <= 4 * limits.eps, f"{error[worst] / limits.eps:.1f} eps at {x[worst]!r}"


def whole_range(dtype: type, mantissas: int) -> np.ndarray:
    """Numbers of every exponent and both signs, normal and denormal."""
    limits = np.finfo(dtype)
    exponents = np.arange(limits.minexp - limits.nmant, limits.maxexp)
    positive = np.ldexp(np.linspace(1.0, 2.0, mantissas, endpoint=False)[:, None], exponents).astype(dtype).ravel()
    return np.concatenate([positive, -positive, np.array([0.0, -0.0, limits.max, -limits.max], dtype)])


def textbook64(name: str, x: np.ndarray) -> list[np.ndarray]:
    with np.errstate(all="ignore"):
        return [np.asarray(f(FLOAT64, x.astype(np.float64))) for f in TEXTBOOK[name]]


def test_the_table_is_complete() -> None:
    assert set(activations.names()) == {*TEXTBOOK, "swish", "softmax", "log_softmax"}
    assert activations.get("swish") is activations.get("silu")


@each
def test_docstring_has_the_equation(name: str) -> None:
    assert (activation(name).__doc__ or "").startswith("f(x) = ")


@each
def test_against_mpmath(name: str) -> None:
    rng = np.random.default_rng(1)
    sizes = np.geomspace(1e-20, 700.0, 300)
    x = np.concatenate([rng.uniform(-20, 20, 1390), np.arange(-5.0, 5.0), sizes, -sizes])
    assert x.size == 2000
    with mpmath.workdps(60):
        points = [mpmath.mpf(float(v)) for v in x]
        for given, formula in zip(both(name, x), TEXTBOOK[name], strict=True):
            true = [mpmath.mpf(formula(EXACT, v)) for v in points]
            error = [abs(mpmath.mpf(float(g)) - t) / max(1, abs(t)) for g, t in zip(given, true, strict=True)]
            worst = int(np.argmax(error))
            assert error[worst] <= 4 * 2.0**-52, f"{float(error[worst]) * 2**52:.1f} eps at {x[worst]!r}"


@each
def test_every_float16(name: str) -> None:
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    x = x[np.isfinite(x)]
    truth = textbook64(name, x)
    for given, true in zip(both(name, x.astype(np.float32)), truth, strict=True):
        check(given, true, x.astype(np.float32))
    for given, true in zip(both(name, x.astype(np.float64)), truth, strict=True):
        np.testing.assert_allclose(given, true, rtol=1e-13, atol=1e-11)
    with np.errstate(over="ignore"):
        expected = [y.astype(np.float16) for y in both(name, x.astype(np.float32))]
    for given, once_rounded in zip(both(name, x), expected, strict=True):
        assert given.dtype == np.float16
        np.testing.assert_array_equal(given, once_rounded)


@each
def test_float32_grid(name: str) -> None:
    x = np.concatenate([whole_range(np.float32, 24), np.linspace(-20, 20, 60_001, dtype=np.float32)])
    for given, true in zip(both(name, x), textbook64(name, x), strict=True):
        check(given, true, x)


@each
def test_whole_range_of_float64(name: str) -> None:
    """No NaN, and no infinity but that of exp."""
    x = whole_range(np.float64, 5)
    y, slope = both(name, x)
    for values in (y, slope):
        assert not np.isnan(values).any()
        assert np.isfinite(values[np.abs(x) < 709.0]).all()
    if name not in ("exponential", "selu"):  # selu: 1.05 times the largest number
        assert np.isfinite(y).all()
        assert np.isfinite(slope).all()


@each
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_nan_stays_nan(name: str, dtype: type) -> None:
    y, slope = both(name, np.array([np.nan, 1.0], dtype))
    assert np.isnan(y).tolist() == [True, False]
    assert np.isnan(slope).tolist() == [activation(name).aux != "none", False]


@pytest.mark.parametrize(
    ("name", "at", "slope"),
    [
        ("relu", 0.0, 0.0),
        ("relu6", 0.0, 0.0),
        ("relu6", 6.0, 0.0),
        ("leaky_relu", 0.0, 0.01),
        ("hard_tanh", -1.0, 0.0),
        ("hard_tanh", 1.0, 0.0),
        ("hard_sigmoid", -3.0, 0.0),
        ("hard_sigmoid", 3.0, 0.0),
        ("hard_silu", -3.0, 0.0),
        ("hard_silu", 3.0, 1.0),
        ("elu", 0.0, 1.0),
        ("celu", 0.0, 1.0),
        ("selu", 0.0, float(SELU[0]) * float(SELU[1])),
        ("softsign", 0.0, 1.0),
    ],
)
def test_slope_where_there_is_none(name: str, at: float, slope: float) -> None:
    assert emit.apply(activation(name).derivative, np.array([at]))[0] == pytest.approx(slope, rel=1e-15)


def test_aux() -> None:
    kinds = {name: activation(name).aux for name in TEXTBOOK}
    assert kinds.pop("linear") == "none"
    outputs = {"relu", "relu6", "leaky_relu", "hard_tanh", "sigmoid", "tanh", "exponential"}
    assert {name for name, kind in kinds.items() if kind == "output"} == outputs
    assert all(kinds[name] == "derivative" for name in kinds.keys() - outputs)


@each
def test_gradient_from_aux(name: str) -> None:
    act = activation(name)
    x = np.concatenate([np.linspace(-8, 8, 4001), [-1e30, -6.0, -3.0, -1.0, 0.0, 1.0, 3.0, 6.0, 1e30]])
    if act.aux != "output":
        assert act.gradient_from_aux is None
        return
    assert act.gradient_from_aux is not None
    slope = emit.apply(act.gradient_from_aux, act(x))
    np.testing.assert_array_equal(slope, emit.apply(act.derivative, x))


TORCH = {
    "relu6": "relu6",
    "leaky_relu": "leaky_relu",
    "hard_tanh": "hardtanh",
    "hard_sigmoid": "hardsigmoid",
    "hard_silu": "hardswish",
    "elu": "elu",
    "celu": "celu",
    "selu": "selu",
    "log_sigmoid": "logsigmoid",
    "tanh_shrink": "tanhshrink",
    "softsign": "softsign",
    "softplus": "softplus",
    "gelu": "gelu",
    "silu": "silu",
    "mish": "mish",
    "relu": "relu",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
}


@pytest.mark.parametrize("name", TORCH)
def test_against_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(2).normal(0.0, 4.0, 500)
    t = torch.tensor(x, requires_grad=True)
    y = getattr(torch.nn.functional, TORCH[name])(t)
    y.backward(torch.ones_like(y))
    given = both(name, x)
    np.testing.assert_allclose(given[0], y.detach().numpy(), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(given[1], t.grad.numpy(), rtol=1e-6, atol=1e-8)


# ---- rows ------------------------------------------------------------------------------------------------------------


def rows(name: str) -> RowActivation:
    found = activations.get(name)
    assert isinstance(found, RowActivation)
    return found


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax(rng: np.random.Generator, dtype: type) -> None:
    x = (rng.normal(size=(3, 4, 7)) * 50).astype(dtype)
    wide = x.astype(np.longdouble)
    true = np.exp(wide) / np.exp(wide).sum(axis=-1, keepdims=True)
    y, log_y = rows("softmax")(x), rows("log_softmax")(x)
    assert y.dtype == log_y.dtype == dtype
    np.testing.assert_allclose(y, true.astype(dtype), rtol=200 * np.finfo(dtype).eps)
    np.testing.assert_allclose(log_y, np.log(true).astype(dtype), rtol=4 * np.finfo(dtype).eps, atol=1e-4 * dtype(1e-3))


def test_softmax_of_extreme_rows() -> None:
    inf, nan = np.inf, np.nan
    x = np.array([[1e4, -1e4, 1e4], [0.0, -inf, 0.0], [-inf, -inf, -inf], [nan, 0.0, 0.0]], np.float32)
    y, log_y = rows("softmax")(x), rows("log_softmax")(x)
    np.testing.assert_array_equal(y, [[0.5, 0.0, 0.5], [0.5, 0.0, 0.5], [nan] * 3, [nan] * 3])
    half = np.log(np.float32(0.5))
    np.testing.assert_array_equal(log_y[2:], np.full((2, 3), nan))
    np.testing.assert_allclose(log_y[:2], [[half, -2e4 + half, half], [half, -inf, half]], rtol=1e-6)


def test_softmax_of_other_arguments() -> None:
    np.testing.assert_allclose(rows("softmax")([0, 0]), [0.5, 0.5])
    assert rows("softmax")(np.zeros((2, 3), np.float16)).dtype == np.float16
    assert rows("softmax")(np.zeros((0, 3))).shape == (0, 3)
    assert rows("softmax")(np.zeros((3, 0))).shape == (3, 0)
    with pytest.raises(ValueError, match="at least one axis"):
        rows("softmax")(1.0)
    with pytest.raises(TypeError, match="expected real numbers"):
        rows("softmax")([1j, 2.0])


def test_a_new_activation_is_one_function() -> None:
    """What the docstring of the table promises: numbers, arrays and symbols through the same object."""
    gelu = activation("gelu")
    assert gelu is activations.gelu
    assert isinstance(gelu(1.0), float)
    assert gelu([1.0, 2.0]).dtype == np.float64
    assert gelu(np.array([1, 2])).dtype == np.float64
    assert gelu(np.ones(2, np.float32)).dtype == np.float32
