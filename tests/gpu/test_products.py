"""Layers on a real GPU against products in float64 and in whole numbers, at sizes that fill it and at odd ones."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fcdense as fc
from fcdense import activations

pytestmark = pytest.mark.gpu
SHAPES = [(1, 1, 1), (7, 5, 3), (33, 65, 129), (64, 64, 64), (1, 784, 512), (128, 784, 512), (1000, 37, 10)]
SHAPES += [(257, 1031, 513), (2048, 1024, 1024)]
HALF_ULP = 2.0**-24


@pytest.fixture
def backend() -> Any:
    return fc.device("cuda").backend


def draw(shape: tuple[int, int, int], rng: np.random.Generator, *, whole: bool) -> list[np.ndarray[Any, Any]]:
    """x (B, I), w (I, O) and dz (B, O)."""
    rows, features, units = shape
    sizes = (rows, features), (features, units), (rows, units)
    if whole:
        return [rng.integers(-3, 4, size).astype(np.float32) for size in sizes]
    return [rng.normal(size=size).astype(np.float32) for size in sizes]


def computed(backend: Any, x: Any, w: Any, dz: Any) -> list[tuple[Any, Any, Any]]:
    """Each product of a layer: what the GPU makes of it, and its operands."""
    given = [backend.from_host(array) for array in (x, w, dz)]
    outs = [backend.empty(shape, x.dtype) for shape in (dz.shape, x.shape, w.shape)]
    backend.dense(given[0], given[1], None, activations.linear, out=outs[0])
    backend.dense_grad_input(given[2], given[1], activations.linear, None, out=outs[1])
    backend.dense_grad_weight(given[0], given[2], out=outs[2])
    operands = (x, w), (dz, w.T), (x.T, dz)
    return [(backend.to_host(out), a, b) for out, (a, b) in zip(outs, operands, strict=True)]


def dtype_of(precision: str) -> np.dtype[Any]:
    return np.dtype({"tf32": np.float32, "bfloat16": ml_dtypes.bfloat16}.get(precision, precision))


def assert_exact(backend: Any, precision: str, shape: tuple[int, int, int], rng: np.random.Generator) -> None:
    """Whole numbers are rounded once, to what is stored, and not before."""
    dtype = dtype_of(precision)
    given = [array.astype(dtype) for array in draw(shape, rng, whole=True)]
    with fc.use_precision("tf32" if precision == "tf32" else "float32"):
        found = computed(backend, *given)
    for there, a, b in found:
        exact = a.astype(np.float64) @ b.astype(np.float64)
        np.testing.assert_array_equal(there.astype(np.float64), exact.astype(dtype).astype(np.float64))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("precision", ["float32", "tf32", "float16", "bfloat16"])
def test_whole_numbers_are_exact(
    precision: str, shape: tuple[int, int, int], backend: Any, rng: np.random.Generator
) -> None:
    """By our own kernels, but for the largest."""
    assert_exact(backend, precision, shape, rng)


@pytest.mark.parametrize("precision", ["float64", "tf32", "float16", "bfloat16"])
def test_whole_numbers_are_exact_in_products_of_the_library(
    precision: str, backend: Any, rng: np.random.Generator
) -> None:
    """The plan takes cuBLASLt for these on Hopper."""
    assert_exact(backend, precision, (2048, 2048, 2048), rng)
    if backend.driver.architecture == "sm_90a" and backend.driver.library is not None:
        assert backend.products.served.startswith("cuBLASLt")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_is_within_its_bound(shape: tuple[int, int, int], backend: Any, rng: np.random.Generator) -> None:
    """|found - a b| <= γ_K (|a| |b|), γ_K = K u / (1 - K u) (Higham, Accuracy and Stability, 2002, eq. 3.13)."""
    for found, a, b in computed(backend, *draw(shape, rng, whole=False)):
        depth = a.shape[1]
        gamma = depth * HALF_ULP / (1 - depth * HALF_ULP)
        exact = a.astype(np.float64) @ b.astype(np.float64)
        bound = gamma * (np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64))
        assert (np.abs(found - exact) <= bound).all(), f"{np.max(np.abs(found - exact) / bound):.2f} of the bound"
