"""Compiled loops against float64 arithmetic and against NumPy's path, for every way that operands can lie in memory."""

from __future__ import annotations

import numpy as np
import pytest

from fcdense import activations, emit, loops
from fcdense.activation import Activation
from fcdense.backends.programs import epilogue
from fcdense.errors import ArgumentError, DTypeError
from fcdense.expression import evaluate
from fcdense.program import Program, trace
from tests.kernels.tiles import apply, kernel_code, tile

DTYPES = ["float32", "float64"]
dtypes = pytest.mark.parametrize("dtype", DTYPES)
# Compiling takes 0.15 s each: by default float64 is tried on one activation of each kind.
WIDE = ("gelu", "mish", "selu", "sine", "softplus", "tanh")
NAMES = [name for name in activations.names() if isinstance(activations.get(name), Activation)]


each = pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=[] if dtype == "float32" or name in WIDE else pytest.mark.slow)
        for name in NAMES
        for dtype in DTYPES
    ],
)


def act(name: str) -> Activation:
    found = activations.get(name)
    assert isinstance(found, Activation)
    return found


def adam() -> Program:
    """An update as the optimizers trace theirs."""

    def rule(w, g, m, v, rate, beta1, beta2, eps, step):
        m = beta1 * m + (1.0 - beta1) * g
        v = beta2 * v + (1.0 - beta2) * g * g
        root = np.sqrt(1.0 - beta2**step)
        return w - rate * root / (1.0 - beta1**step) * m / (np.sqrt(v) + eps * root), m, v

    return trace(rule, 4, 5, name="adam")


@each
def test_every_activation_and_its_derivative(name: str, dtype: str) -> None:
    program = act(name).forward_with_derivative
    reach = 85.0 if name in ("exponential", "sinh", "cosh") else 100.0
    x = np.concatenate([np.linspace(-reach, reach, 4001), np.linspace(-4, 4, 4001), 10.0 ** np.arange(-30, 2)])
    x = np.concatenate([x, -x[-32:], [0.0, -0.0]]).astype(dtype)
    exact = evaluate(program.outputs, [x.astype(np.longdouble if dtype == "float64" else np.float64)])
    for y, true in zip(apply(program, x), exact, strict=True):
        assert np.all(np.abs(y - true) <= 4 * np.finfo(dtype).eps * np.maximum(1.0, np.abs(true)))


@each
def test_extremes_are_those_of_numpy(name: str, dtype: str) -> None:
    program = act(name).forward_with_derivative
    x = np.array([np.nan, np.inf, -np.inf, np.finfo(dtype).max, -np.finfo(dtype).max], dtype)
    with np.errstate(all="ignore"):
        for y, other in zip(apply(program, x), emit.apply(program, x), strict=True):
            np.testing.assert_allclose(y, other, rtol=1e-5)


@dtypes
def test_an_update_in_place(dtype: str, rng: np.random.Generator) -> None:
    w, g, m, v = (rng.standard_normal((1, 1003)).astype(dtype) for _ in range(4))
    v = np.abs(v)
    scalars = (1e-3, 0.9, 0.999, 1e-8, 7.0)
    expected = evaluate(adam().outputs, [a.astype(np.float64) for a in (w, g, m, v)], scalars)
    tile(adam(), w, [g, m, v], scalars, [None, m, v])
    for given, true in zip((w, m, v), expected, strict=True):
        np.testing.assert_allclose(given, true, rtol=8 * np.finfo(dtype).eps, atol=8 * np.finfo(dtype).eps)


@dtypes
@pytest.mark.parametrize("columns", [1, 10, 16, 33, 130])
def test_bias_activation_derivative_and_column_sums_in_tiles(
    dtype: str, columns: int, rng: np.random.Generator
) -> None:
    wide = rng.standard_normal((9, columns + 5)).astype(dtype)
    z, bias = wide[:, 2 : 2 + columns], rng.standard_normal(columns).astype(dtype)
    before, slopes, sums = wide.copy(), np.full((9, columns + 3), 7.0, dtype), np.ones(columns, dtype)
    program = epilogue(act("tanh"), True, True)
    cut = columns // 3
    ranges = [(0, 4, 0, cut), (0, 4, cut, columns), (4, 9, 0, columns), (9, 9, 0, columns), (0, 9, cut, cut)]
    tile(program, z, [bias], outs=[None, slopes[:, :columns]], patterns="r", sums=sums, ranges=ranges)
    y = np.tanh(before[:, 2 : 2 + columns].astype(np.float64) + bias)
    tolerance = 8 * np.finfo(dtype).eps
    np.testing.assert_allclose(z, y, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(slopes[:, :columns], 1 - y * y, atol=tolerance)
    np.testing.assert_allclose(sums, 1 + y.sum(axis=0), rtol=10 * tolerance, atol=10 * tolerance)
    np.testing.assert_array_equal(wide[:, :2], before[:, :2])
    np.testing.assert_array_equal(wide[:, 2 + columns :], before[:, 2 + columns :])
    assert (slopes[:, columns:] == 7.0).all()


@dtypes
def test_patterns_of_operands(dtype: str, rng: np.random.Generator) -> None:
    program = trace(lambda z, m, r, c, s: z + 10 * m + 100 * r + 1000 * c + 10000 * s, 5)
    z, m = (rng.integers(0, 9, (6, 40)).astype(dtype) for _ in range(2))
    row, single = rng.integers(0, 9, 40).astype(dtype), np.array([3], dtype)
    column = rng.integers(0, 9, (6, 2)).astype(dtype)[:, :1]  # not contiguous
    out = np.zeros((6, 40), dtype)
    tile(program, z, [m, row, column, single], outs=[out], patterns="mrcs", ranges=[(1, 6, 3, 40)])
    expected = z + 10 * m + 100 * row + 1000 * column + 10000 * single
    np.testing.assert_array_equal(out[1:, 3:], expected[1:, 3:])
    assert not out[0].any()
    assert not out[:, :3].any()


@dtypes
def test_scalars_conditions_and_literals(dtype: str) -> None:
    def function(x, a, b):
        chosen = np.where((a > b) & (x > 0.5) | ~(x >= -a), x * a, np.where(a == b, x, -x))
        shape = np.exp(a) + np.log1p(b) / np.arctan(a) - np.abs(-b) ** a + np.maximum(a, b) + np.hypot(a, b)
        return chosen, x * 0 + shape, np.where(x != x, 0.0, np.where(x < 1e300, 1.0, 2.0)), np.sign(x) * np.float64(7)

    program = trace(function, 1, 2)
    x = np.array([[-2.0, -0.3, 0.0, 0.3, 0.7, 3.0]], dtype)
    outs = [np.empty_like(x) for _ in range(4)]
    for scalars in ((1.5, 0.25), (0.25, 1.5), (2.0, 2.0)):
        tile(program, x, scalars=scalars, outs=outs)
        for given, true in zip(outs, evaluate(program.outputs, [x], scalars), strict=True):
            np.testing.assert_allclose(given, true, rtol=4 * np.finfo(dtype).eps)


def test_division_by_zero_and_uniform_outputs() -> None:
    program = trace(lambda x, a: (1.0 / x, x * 0 + 1.0 / a, 3.0 * a, 2.5), 1, 1)
    x = np.array([[0.0, -0.0, 2.0]], np.float32)
    outs = [np.empty_like(x) for _ in range(4)]
    tile(program, x, scalars=[0.0], outs=outs)
    np.testing.assert_array_equal(outs[0], [[np.inf, -np.inf, 0.5]])
    np.testing.assert_array_equal(outs[1], np.full((1, 3), np.inf))
    np.testing.assert_array_equal(outs[2], np.zeros((1, 3)))
    np.testing.assert_array_equal(outs[3], np.full((1, 3), 2.5))


def test_what_is_not_supported() -> None:
    condition = trace(lambda x: x > 0, 1)
    assert not loops.supports(condition, np.dtype(np.float32))
    assert not loops.supports(trace(np.exp, 1), np.dtype(np.float16))
    assert loops.supports(trace(np.exp, 1), np.dtype(np.float64))
    with pytest.raises(DTypeError, match="condition"):
        loops.tile_source(condition, np.dtype(np.float32), "")
    with pytest.raises(ArgumentError, match="expected 1 of 'mrcs'"):
        loops.tile_source(trace(np.maximum, 2), np.dtype(np.float32), "x")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["adam", "relu", "gelu", "tanh", "sigmoid", "mish", "gradient"])
def test_loops_are_vectorized(name: str, dtype: str) -> None:
    if name == "adam":
        source = loops.tile_source(adam(), np.dtype(dtype), "mmm")
    elif name == "gradient":
        source = loops.tile_source(trace(lambda dy, slope: dy * slope, 2), np.dtype(dtype), "m", sums=True)
    else:
        source = loops.tile_source(epilogue(act(name), True, act(name).aux == "derivative"), np.dtype(dtype), "r")
    code, text = kernel_code(source)
    assert "vector.body" in code
    assert "vector.memcheck" not in code  # else what is updated in place would be done one by one
    assert text.count("\tcall") <= (3 if name == "adam" else 0)  # once per call: powers and a root of scalars
    packed = {"float32": "ps", "float64": "pd"}[dtype]
    if "%rdi" in text:  # an x86 processor
        assert any(f"{operation}{packed}\t" in text for operation in ("mul", "max", "add"))
