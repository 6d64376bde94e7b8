"""NumPy's functions and those of `fcdense.math` on tensors: what works, with gradients, and what is refused."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fcdense import math as fm
from fcdense.errors import TraceError
from fcdense.gradients import gradcheck
from fcdense.symbol import UFUNCS
from fcdense.tensor import Tensor, tensor

Array = np.ndarray[Any, Any]
F32, F64 = np.float32, np.float64


def leaf(array: Any, dtype: Any = None) -> Tensor:
    return tensor(array, dtype=dtype, requires_grad=True)


def domain(name: str, rng: np.random.Generator) -> Array:
    return rng.uniform(0.3, 1.2, (3, 4)) if name in {"log", "sqrt", "power"} else rng.uniform(-0.9, 0.9, (3, 4))


@pytest.mark.parametrize("name", sorted(UFUNCS))
def test_every_ufunc_of_the_table(name: str, rng: np.random.Generator) -> None:
    ufunc = getattr(np, name)
    arrays = [domain(name, rng) for _ in range(ufunc.nin)]
    if name in {"bitwise_and", "bitwise_or", "invert"}:
        arrays = [a > 0 for a in arrays]
    out = ufunc(*map(tensor, arrays))
    expected = ufunc(*arrays)
    assert isinstance(out, Tensor)
    assert out.dtype == expected.dtype
    np.testing.assert_allclose(out.numpy(), expected, rtol=4e-16, atol=1e-16)
    if out.dtype == F64:
        gradcheck(ufunc, arrays)


@pytest.mark.parametrize("function", [fm.erf, fm.sigmoid, fm.softplus, fm.log_sigmoid], ids=lambda f: f.__name__)
def test_functions_of_fc_math(function: Callable[..., Any], rng: np.random.Generator) -> None:
    a = rng.normal(size=(3, 4))
    np.testing.assert_allclose(function(tensor(a)).numpy(), function(a), rtol=1e-14)
    gradcheck(function, a)


def test_what_numpy_cannot_do_with_tensors_raises_and_converts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = leaf([[1.0, 2.0], [3.0, 4.0]])

    def converted(*args: Any, **kwargs: Any) -> Array:
        raise AssertionError("a tensor was converted behind its back")

    monkeypatch.setattr(Tensor, "__array__", converted)
    a, out = np.ones((2, 2)), np.zeros((2, 2))
    for call in (
        lambda: np.linalg.norm(x),
        lambda: np.argmax(x),
        lambda: np.sort(x),
        lambda: np.einsum("ij->", x),
        lambda: np.dot(a, x),
        lambda: np.add.reduce(x),
        lambda: np.add.accumulate(x),
        lambda: np.add.at(out, (0, 0), x),
        lambda: np.add(x, 1.0, out=out),
        lambda: np.exp(x, where=a > 0),
        lambda: np.exp(x, dtype=F32),
        lambda: np.gcd(x, 2),
        lambda: np.floor_divide(x, 2),
        lambda: np.sum(x, dtype=F32),
        lambda: operator.iadd(a, x),
        lambda: x // 2,
        lambda: x % 2,
        lambda: x << 1,
        lambda: x + "text",
        lambda: x + None,
        lambda: x + 1j,
        lambda: x + np.ones(2, complex),
        lambda: np.vecdot(x, x),
    ):
        with pytest.raises(TypeError):
            call()
    np.testing.assert_array_equal(out, 0.0)
    np.testing.assert_array_equal(a, 1.0)
    with pytest.raises(TraceError, match=r"np\.gcd cannot be traced"):
        np.gcd(x, 2)
    with pytest.raises(TypeError, match=r"np\.argmax does not take tensors; use \.numpy\(\)"):
        np.argmax(x)


def test_numpy_functions_that_have_a_counterpart(rng: np.random.Generator) -> None:
    a = rng.normal(size=(3, 4))
    x = leaf(a)
    for function in (
        np.sum,
        np.mean,
        np.max,
        np.min,
        np.transpose,
        lambda v: np.sum(v, axis=1, keepdims=True),
        lambda v: np.mean(v, axis=(0, 1)),
        lambda v: np.where(v > 0, v, 0.1 * v),
        lambda v: np.where(a > 0, v, 0.0),
        lambda v: np.where(v > 0, a, v),
        lambda v: np.clip(v, -0.5, 0.5),
        lambda v: np.clip(v, None, 0.5),
        lambda v: np.clip(v, -0.5, None),
        lambda v: np.concatenate([v, a], axis=1),
        lambda v: np.stack([a, v]),
        lambda v: np.reshape(v, (4, 3)),
        lambda v: np.swapaxes(v, 0, 1),
        lambda v: np.matmul(a.T, v),
        lambda v: a.T @ v,
        lambda v: v @ a.T,
    ):
        out = function(x)
        assert isinstance(out, Tensor)
        assert out.requires_grad
        np.testing.assert_allclose(out.numpy(), function(a), rtol=1e-14, atol=1e-15)
        gradcheck(function, a)
