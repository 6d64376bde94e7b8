"""The kernels over rows against float64 formulas, the reference backend and NumPy's random numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fcdense.backends.reference import ReferenceBackend
from tests.kernels.tiles import run, words

dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
classes = pytest.mark.parametrize("k", [1, 3, 10, 16, 37, 300])
ROWS = 13
REFERENCE = ReferenceBackend()


def logits(rng: np.random.Generator, k: int, dtype: str) -> np.ndarray:
    """Rows apart from each other in memory, some with extreme values; the last five have no defined softmax."""
    z = (8 * rng.standard_normal((ROWS, k + 3))).astype(dtype)
    z[1, : k // 2] = -np.inf
    z[2] += 3000
    z[3, 0] = 90
    z[-5, 0], z[-4, 0], z[-3, 0] = np.nan, np.inf, -np.nan
    z[-2] = -np.inf
    z[-1] = np.nan
    return z[:, :k]


def close(given: np.ndarray, true: np.ndarray, k: int) -> None:
    tolerance = (8 + k / 8) * np.finfo(given.dtype).eps
    np.testing.assert_allclose(given, true, rtol=tolerance, atol=tolerance)


@dtypes
@classes
def test_softmax(dtype: str, k: int, rng: np.random.Generator) -> None:
    z = logits(rng, k, dtype)
    for log in (False, True):
        out, true = np.full((ROWS, k + 1), 5.0, dtype), np.empty((ROWS, k))
        REFERENCE.softmax(z, out=true, log=log)
        run("log_softmax" if log else "softmax", dtype, words(z, k + 3, k, out, k + 1), 2, ROWS)
        tolerance = (8 + k / 8) * np.finfo(dtype).eps
        np.testing.assert_allclose(out[2:, :k], true[2:], rtol=tolerance, atol=tolerance)
        assert (out[:2] == 5.0).all()
        assert (out[:, k:] == 5.0).all()


def test_softmax_in_place(rng: np.random.Generator) -> None:
    z = rng.standard_normal((4, 10)).astype(np.float32)
    true = np.exp(z.astype(float)) / np.exp(z.astype(float)).sum(axis=1, keepdims=True)
    run("softmax", "float32", words(z, 10, 10, z, 10), 0, 4)
    close(z, true, 10)


@dtypes
@classes
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["classes", "rows"])
@pytest.mark.parametrize("gradient", ["none", "apart", "in place"])
def test_cross_entropy(dtype: str, k: int, weighted: bool, kind: str, gradient: str, rng: np.random.Generator) -> None:
    z = logits(rng, k, dtype)
    weight = rng.uniform(0.5, 2, ROWS).astype(dtype) if weighted else None
    if kind == "classes":
        target = rng.integers(0, k, ROWS)
        goal = target
    else:
        target = rng.uniform(0, 1, (ROWS, k)).astype(dtype)
        target[:, : k // 2] = 0.0  # row 1 of z has -inf there
        target[[4, -2, -4]] = 0.0
        goal = target
    for rows in (slice(0, 1), slice(1, ROWS - 5), *(slice(r, r + 1) for r in range(ROWS - 5, ROWS))):
        apart = np.full((ROWS, k + 2), 5.0, dtype)
        own = z.copy()
        dz = {"none": 0, "apart": apart, "in place": own}[gradient]
        loss, scratch = np.full(3, 7.0), np.empty((4, ROWS))
        target_stride = 0 if kind == "classes" else k
        args = words(
            *(own, k, k, goal, target_stride, 0 if weight is None else weight, 0.25, loss, dz),
            *(k + 2 if gradient == "apart" else k, scratch, ROWS),
        )
        true_loss, true_dz = np.empty(()), np.empty((ROWS, k))
        part = None if weight is None else weight[rows]
        with np.errstate(all="ignore"):
            REFERENCE.softmax_xent(z[rows], target[rows], part, 0.25, loss=true_loss, dz=true_dz[rows])
        run("softmax_xent", dtype, args, rows.start, rows.stop, 1)
        size = 40 * np.finfo(dtype).eps * max(k, 8)
        np.testing.assert_allclose(loss, [7.0, true_loss, 7.0], rtol=size, atol=size)
        if gradient != "none":
            given = (apart if gradient == "apart" else own)[rows, :k]
            np.testing.assert_allclose(given, true_dz[rows], rtol=size, atol=size)
        if gradient == "apart":
            np.testing.assert_array_equal(own, z)
            assert (apart[:, k:] == 5.0).all()


@dtypes
@pytest.mark.parametrize("wrong", [-1, 3, 2**40, -(2**63)])
def test_a_class_that_does_not_exist_gives_nan(dtype: str, wrong: int) -> None:
    z = np.zeros((3, 3), dtype)
    target, loss, dz, scratch = np.array([0, wrong, 2]), np.zeros(1), np.ones((3, 3), dtype), np.empty((4, 3))
    run("softmax_xent", dtype, words(z, 3, 3, target, 0, 0, 1.0, loss, dz, 3, scratch, 3), 0, 3)
    assert math.isnan(loss[0])
    assert np.isnan(dz[1]).all()
    assert np.isfinite(dz[[0, 2]]).all()


@dtypes
def test_norm2(dtype: str, rng: np.random.Generator) -> None:
    x = (1e3 * rng.standard_normal(1007)).astype(dtype)
    for start, stop in ((0, 1007), (5, 900), (3, 10), (4, 4)):
        total = np.full(3, 7.0)
        run("norm2", dtype, words(x, total), start, stop, 2)
        np.testing.assert_allclose(total, [7.0, 7.0, np.square(x[start:stop].astype(float)).sum()], rtol=1e-13)
    for value, square in ((1e30, 1e60), (np.inf, np.inf), (np.nan, np.nan)):
        total, x[700] = np.zeros(1), value
        run("norm2", dtype, words(x, total), 0, 1007)
        np.testing.assert_allclose(total[0], square, rtol=1e-6)


@dtypes
def test_take_rows_of_a_round(dtype: str, rng: np.random.Generator) -> None:
    x, order = rng.standard_normal((9, 21)).astype(dtype), rng.integers(0, 9, 30)
    x[4, 4] = np.nan
    for number in range(3):
        out = np.full((10, 21), 5.0, dtype)
        run("take_rows", dtype, words(x, 21, order, np.array([number]), 10, out), 2, 9)
        np.testing.assert_array_equal(out[2:9], x[order[10 * number :][2:9]])
        assert (out[[0, 1, 9]] == 5.0).all()


@dtypes
def test_keep_of_a_round(dtype: str, rng: np.random.Generator) -> None:
    x, out = rng.standard_normal(37).astype(dtype), np.full((4, 37), 5.0, dtype)
    run("keep", dtype, words(x, 37, np.array([2]), out), 3, 30)
    np.testing.assert_array_equal(out[2, 3:30], x[3:30])
    out[2, 3:30] = 5.0
    assert (out == 5.0).all()


@dtypes
@pytest.mark.parametrize("key", [(0, 0), (12345, 7), (2**64 - 1, 2**63 + 5)])
def test_dropout_draws_the_numbers_of_numpy(dtype: str, key: tuple[int, int], rng: np.random.Generator) -> None:
    x = rng.standard_normal(1003).astype(dtype)
    stream = np.array(key, np.uint64)
    uniform = np.random.Generator(np.random.Philox(key=stream)).random(1003, dtype=np.float32)
    for rate in (0.0, 0.3, 0.999):
        mask = (uniform >= np.float32(rate)).astype(dtype) * np.dtype(dtype).type(1.0 / (1.0 - rate))
        out = np.full(1003, 5.0, dtype)
        for start, stop in ((0, 3), (3, 8), (8, 16), (16, 500), (500, 1003)):
            run("dropout", dtype, words(x, out, stream, rate), start, stop)
        np.testing.assert_array_equal(out, x * mask)
    own = x.copy()
    run("dropout", dtype, words(own, own, stream, 0.999), 17, 19)
    np.testing.assert_array_equal(own[17:19], (x * mask)[17:19])
    np.testing.assert_array_equal(np.delete(own, [17, 18]), np.delete(x, [17, 18]))
