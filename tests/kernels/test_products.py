"""The compiled products: exact on whole numbers, within the rounding bound, the same bits whoever shares the work."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

from fcdense import activations
from fcdense.arena import Array
from fcdense.backends import instructions
from fcdense.backends.base import Backend
from fcdense.backends.native import NativeBackend

LINEAR = activations.get("linear")

SIZES = [
    (1, 1, 1),
    (1, 64, 64),
    (2, 17, 5),
    (3, 300, 65),
    (4, 64, 513),
    (5, 7, 64),
    (6, 64, 10),
    (7, 33, 65),
    (13, 257, 31),
    (32, 784, 130),
    (97, 64, 300),
    (200, 520, 70),
    (400, 40, 600),
]
"""(B, I, O): on both sides of the tile of 6 rows and 4 vectors, of a block of 192 rows, of a panel of 256 columns."""


@pytest.fixture
def backend() -> NativeBackend:
    return NativeBackend()


@pytest.fixture(params=["alone", "shared"])
def shared(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All products on one thread, or all on several, by columns and by rows."""
    if request.param == "shared":
        monkeypatch.setattr(instructions, "available_threads", lambda: 3)
        monkeypatch.setattr(instructions, "MANY_FLOPS", 1e-9)
    return str(request.param)


def three_products(backend: Backend, x: Array, w: Array, dz: Array) -> dict[str, Array]:
    """x @ w, dz @ w.T and x.T @ dz."""
    found = {"y": np.empty(dz.shape, x.dtype), "dx": np.empty(x.shape, x.dtype), "dw": np.empty(w.shape, x.dtype)}
    backend.dense(x, w, None, LINEAR, out=found["y"])
    backend.dense_grad_input(dz, w, LINEAR, None, out=found["dx"])
    backend.dense_grad_weight(x, dz, out=found["dw"])
    return found


def exact(x: Array, w: Array, dz: Array) -> dict[str, Array]:
    return {"y": x @ w, "dx": dz @ w.T, "dw": x.T @ dz}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_whole_numbers_are_exact(backend: NativeBackend, shared: str, size: tuple[int, int, int], dtype: str) -> None:
    rng = np.random.default_rng(1)
    b, i, o = size
    x, w, dz = (rng.integers(-4, 5, shape) for shape in ((b, i), (i, o), (b, o)))
    found = three_products(backend, *(a.astype(dtype) for a in (x, w, dz)))
    for name, expected in exact(x, w, dz).items():
        np.testing.assert_array_equal(found[name], expected, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_rounding_is_within_the_bound(backend: NativeBackend, size: tuple[int, int, int], dtype: str) -> None:
    """|fl(AB) - AB| <= gamma_K |A||B| (Higham 2002, Accuracy and stability of numerical algorithms, eq. 3.13)."""
    rng = np.random.default_rng(2)
    b, i, o = size
    x, w, dz = (rng.standard_normal(shape).astype(dtype) for shape in ((b, i), (i, o), (b, o)))
    found = three_products(backend, x, w, dz)
    wide = [a.astype(np.longdouble) for a in (x, w, dz)]
    bounds = exact(*(abs(a) for a in wide))
    for (name, expected), k in zip(exact(*wide).items(), (i, o, b), strict=True):
        unit = np.finfo(dtype).eps / 2
        assert np.all(abs(found[name] - expected) <= k * unit / (1 - k * unit) * bounds[name]), name


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_threads_change_no_bit(
    backend: NativeBackend, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int, int]
) -> None:
    rng = np.random.default_rng(3)
    b, i, o = size
    x, w, dz = (rng.standard_normal(shape).astype(np.float32) for shape in ((b, i), (i, o), (b, o)))
    alone = three_products(backend, x, w, dz)
    monkeypatch.setattr(instructions, "MANY_FLOPS", 1e-9)
    for threads in (2, 3, 5):
        monkeypatch.setattr(instructions, "available_threads", lambda threads=threads: threads)
        for name, found in three_products(backend, x, w, dz).items():
            np.testing.assert_array_equal(found, alone[name], err_msg=name)


def test_rows_at_a_distance(backend: NativeBackend) -> None:
    """Operands cut out of wider matrices are read as they lie."""
    rng = np.random.default_rng(4)
    whole = [rng.integers(-4, 5, shape).astype(np.float32) for shape in ((20, 50), (40, 90), (20, 90))]
    x, w, dz = whole[0][:, 3:43], whole[1][:, 5:75], whole[2][:, 9:79]
    found = three_products(backend, x, w, dz)
    for name, expected in exact(x, w, dz).items():
        np.testing.assert_array_equal(found[name], expected, err_msg=name)


def test_accumulates(backend: NativeBackend) -> None:
    rng = np.random.default_rng(5)
    x, dz = rng.integers(-4, 5, (300, 20)).astype(np.float32), rng.integers(-4, 5, (300, 70)).astype(np.float32)
    out = rng.integers(-4, 5, (20, 70)).astype(np.float32)
    expected = out + x.T @ dz
    backend.dense_grad_weight(x, dz, out=out, mode="accumulate")
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_numbers_propagate(backend: NativeBackend, value: float) -> None:
    x, w = np.ones((9, 70), np.float32), np.ones((70, 40), np.float32)
    x[4, 69] = value
    found = three_products(backend, x, w, np.ones((9, 40), np.float32))["y"]
    np.testing.assert_array_equal(found, x @ w)


def test_neighbours_are_left_alone(backend: NativeBackend) -> None:
    """Nothing beyond the last column is written, and what lies beside the operands does not matter."""
    rng = np.random.default_rng(6)
    for b, i, o in SIZES:
        memory: list[Any] = []
        for shape in ((b, i), (i, o), (b, o)):
            guarded = np.full(shape[0] * shape[1] + 64, np.nan, np.float32)
            guarded[32:-32] = rng.integers(-4, 5, shape).reshape(-1)
            memory.append((guarded, guarded[32:-32].reshape(shape)))
        x, w, y = (view for _, view in memory)
        expected = x @ w
        backend.dense(x, w, None, LINEAR, out=y)
        np.testing.assert_array_equal(y, expected)
        for guarded, _ in memory:
            assert np.isnan([*guarded[:32], *guarded[-32:]]).all()
