"""The CUDA kernels on the processor: activations, orders of threads, undefined behaviour, and damaged sources.

That a kernel passes the contract suite means little if a damaged one would pass too: the last tests damage the sources.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fcdense as fc
from fcdense import activations, emit
from fcdense.backends.base import Backend
from fcdense.backends.cuda import CudaBackend
from fcdense.cuda import plan
from fcdense.cuda.functor import functor
from fcdense.cuda.source import Kernel
from fcdense.cuda.tuning import Only
from tests import emulation
from tests.emulation import ORDERS, SOURCES, EmulatedDriver

pytestmark = pytest.mark.skipif(not emulation.is_available(), reason="no g++ here")
F32 = np.dtype(np.float32)
HostArray = np.ndarray[Any, Any]


def upload(backend: Backend, *arrays: HostArray) -> list[Any]:
    return [backend.from_host(array) for array in arrays]


@pytest.fixture(scope="module")
def backend() -> CudaBackend:
    return CudaBackend(EmulatedDriver())


@pytest.mark.parametrize("name", sorted(set(activations.names()) - {"softmax", "log_softmax"}))
def test_activations(name: str, backend: CudaBackend) -> None:
    act = activations.get(name)
    x = np.concatenate([np.linspace(-9, 9, 241), [0.0, -0.0, 1e-30, -87.5, 88.5, np.nan]]).astype(np.float32)
    y, slope = (backend.empty(x.shape, F32) for _ in range(2))
    backend.map(act.forward_with_derivative, upload(backend, x), out=(y, slope))
    with np.errstate(all="ignore"):
        exact = emit.apply(act.forward_with_derivative, x.astype(np.float64))
    for ours, theirs in zip((y, slope), exact, strict=True):
        bound = 4 * np.finfo(np.float32).eps * np.maximum(1.0, np.abs(theirs)) + 1e-37
        with np.errstate(all="ignore"):
            wrong = ~(np.abs(backend.to_host(ours) - theirs) <= bound) & np.isfinite(theirs)
        assert not wrong.any(), f"{name} at {x[wrong]}: {backend.to_host(ours)[wrong]}, not {theirs[wrong]}"
        np.testing.assert_array_equal(np.isnan(backend.to_host(ours)), np.isnan(theirs))


@pytest.mark.parametrize("name", sorted(set(activations.names()) - {"softmax", "log_softmax"}))
def test_approximations_are_as_good_as_bfloat16(name: str, backend: CudaBackend) -> None:
    act = activations.get(name)
    x = np.linspace(-9, 9, 241).astype(ml_dtypes.bfloat16)
    y, slope = (backend.empty(x.shape, x.dtype) for _ in range(2))
    backend.map(act.forward_with_derivative, upload(backend, x), out=(y, slope))
    exact = emit.apply(act.forward_with_derivative, x.astype(np.float64))
    for ours, theirs in zip((y, slope), exact, strict=True):
        error = np.abs(backend.to_host(ours).astype(np.float64) - theirs)
        assert (error <= 1.25 * 2.0**-8 * np.maximum(1.0, np.abs(theirs))).all(), f"{name}: {error.max()}"


def test_only_bfloat16_is_approximated() -> None:
    program = activations.get("silu").forward_with_derivative
    bf16, f32 = np.dtype(ml_dtypes.bfloat16), F32
    assert "approximate::sigmoid" in functor(program, (f32,), (bf16, bf16))
    for outs in ((f32, f32), (bf16, f32), (np.dtype(np.float16),) * 2):
        assert "approximate::" not in functor(program, (bf16,), outs)


def test_an_activation_of_ones_own_is_fused(backend: CudaBackend) -> None:
    def ramp(x: Any) -> Any:
        return np.where(np.abs(x) > 1.0, np.sign(x) * np.log1p(x * x), x * fc.math.sigmoid(1.5 * x))

    act = activations.get(ramp)
    rng = np.random.default_rng(0)
    x, w, b = (rng.normal(size=shape).astype(np.float32) for shape in ((7, 5), (5, 9), (9,)))
    y, aux = (backend.empty((7, 9), F32) for _ in range(2))
    before = len(backend.driver.launches)  # type: ignore[attr-defined]
    backend.dense(*upload(backend, x, w, b), act, out=y, aux=aux)
    assert len(backend.driver.launches) == before + 1  # type: ignore[attr-defined]
    z = x.astype(np.float64) @ w + b
    exact = emit.apply(act.forward_with_derivative, z)
    for ours, theirs in zip((y, aux), exact, strict=True):
        np.testing.assert_allclose(backend.to_host(ours), theirs, rtol=2e-5, atol=2e-6)


# ---- what a few calls give -------------------------------------------------------------------------------------------


def products(backend: CudaBackend) -> list[HostArray]:
    """Layers forward and back, over tiles that are not full and several blocks of the depth."""
    rng = np.random.default_rng(0)
    x, w, b, dz = (rng.integers(-3, 4, shape).astype(np.float32) for shape in ((70, 37), (37, 67), (67,), (70, 67)))
    x, w, b, dz = upload(backend, x, w, b, dz)
    out, dx, dw, db = (backend.empty(shape, F32) for shape in ((70, 67), (70, 37), (37, 67), (37,)))
    backend.dense(x, w, b, activations.relu, out=out)
    backend.dense_grad_input(dz, w, activations.relu, x, out=dx, db=db)
    backend.dense_grad_weight(x, dz, out=dw)
    return [backend.to_host(array) for array in (out, dx, dw, db)]


def rows(backend: CudaBackend) -> list[HostArray]:
    """Rows of a warp and of a block, and sums in parts."""
    rng = np.random.default_rng(1)
    results = []
    for shape in ((5, 70), (3, 1500)):
        z, t = rng.normal(size=shape).astype(np.float32), rng.integers(0, shape[1], shape[0])
        out, dz, loss = backend.empty(shape, F32), backend.empty(shape, F32), backend.empty((), F32)
        backend.softmax(*upload(backend, z), out=out)
        backend.softmax_xent(*upload(backend, z, t), None, 0.25, loss=loss, dz=dz)
        results += [backend.to_host(array) for array in (out, dz, loss)]
    x, sums, norm = rng.normal(size=(300, 40)).astype(np.float32), backend.empty((40,), F32), backend.empty((), F32)
    (x,) = upload(backend, x)
    backend.reduce("sum", x, (0,), out=sums)
    backend.reduce("max", x, (0, 1), out=norm)
    return [*results, backend.to_host(sums), backend.to_host(norm)]


KINDS = [(dtype, columns) for dtype in (ml_dtypes.bfloat16, np.float16, np.float32) for columns in (72, 67)]
"""What tensor cores multiply, with lines that may be read 16 bytes at a time, and with odd ones."""


def whole_numbers(dtype: Any, columns: int) -> list[HostArray]:
    """x, w, b and dz of a layer: five tiles and more of the depth, in two parts."""
    rng = np.random.default_rng(columns)
    return [
        rng.integers(-2, 3, shape).astype(dtype) for shape in ((70, 272), (272, columns), (columns,), (70, columns))
    ]


def layer(backend: CudaBackend, dtype: Any, columns: int) -> list[HostArray]:
    """It forward and back."""
    x, w, b, dz = upload(backend, *whole_numbers(dtype, columns))
    outs = [backend.empty(shape, np.dtype(dtype)) for shape in ((70, columns), (70, 272), (272, columns), (272,))]
    backend.dense(x, w, b, activations.relu, out=outs[0])
    backend.dense_grad_input(dz, w, activations.relu, x, out=outs[1], db=outs[3])
    backend.dense_grad_weight(x, dz, out=outs[2])
    return [backend.to_host(array) for array in outs]


def many_sums(backend: CudaBackend) -> list[HostArray]:
    """Of more columns than a block has, in parts."""
    (x,) = upload(backend, np.random.default_rng(2).normal(size=(300, 260)).astype(np.float32))
    sums = backend.empty((260,), F32)
    backend.reduce("sum", x, (0,), out=sums)
    return [backend.to_host(sums)]


def tensor_cores(backend: CudaBackend) -> list[HostArray]:
    """Lines of float16 that are copied 16 bytes at a time."""
    return layer(backend, np.float16, 72)


WORK: dict[str, Callable[[CudaBackend], list[HostArray]]] = {
    "products": products,
    "rows": rows,
    "many sums": many_sums,
    "tensor cores": tensor_cores,
}


@pytest.fixture(scope="module")
def expected(backend: CudaBackend) -> dict[str, list[HostArray]]:
    return {name: work(backend) for name, work in WORK.items()}


def test_products_of_whole_numbers_are_exact(expected: dict[str, list[HostArray]]) -> None:
    rng = np.random.default_rng(0)
    x, w, b, dz = (rng.integers(-3, 4, shape) for shape in ((70, 37), (37, 67), (67,), (70, 67)))
    dx = dz @ w.T * (x > 0)
    for ours, exact in zip(expected["products"], (np.maximum(x @ w + b, 0), dx, x.T @ dz, dx.sum(0)), strict=True):
        np.testing.assert_array_equal(ours, exact)


@pytest.mark.parametrize(("dtype", "columns"), KINDS)
def test_products_of_tensor_cores_are_exact(dtype: Any, columns: int, backend: CudaBackend) -> None:
    launches = backend.driver.launches  # type: ignore[attr-defined]
    del launches[:]
    results = layer(backend, dtype, columns)
    assert [name.partition(" and ")[0] for name in launches] == ["gemm_mma"] * 3
    x, w, b, dz = (array.astype(np.int64) for array in whole_numbers(dtype, columns))
    dx = dz @ w.T * (x > 0)
    for ours, exact in zip(results, (np.maximum(x @ w + b, 0), dx, x.T @ dz, dx.sum(0)), strict=True):
        np.testing.assert_array_equal(ours, exact.astype(np.float64).astype(dtype))


def test_the_oldest_tensor_cores() -> None:
    """Chips of sm_75 multiply float16 alone, half the depth at once."""
    driver = EmulatedDriver(("-DFCDENSE_ARCHITECTURE=750",))
    driver.architecture = "sm_75"
    rng = np.random.default_rng(3)
    x, w = (rng.integers(-2, 3, shape).astype(np.float16) for shape in ((20, 40), (40, 24)))
    backend = CudaBackend(driver)
    out = backend.empty((20, 24), x.dtype)
    backend.matmul(*upload(backend, x, w), out=out)
    np.testing.assert_array_equal(backend.to_host(out), x.astype(int) @ w.astype(int))
    assert driver.launches == ["gemm_mma and product"]


def test_tf32_keeps_ten_bits() -> None:
    rng = np.random.default_rng(4)
    x, w = (rng.normal(size=shape).astype(np.float32) for shape in ((70, 96), (96, 70)))
    backend = CudaBackend(EmulatedDriver())
    backend.products.plan = Only(plan.Choice("mma", "tf32", plan.MMA["tf32"][1]), backend.products.plan)
    out = backend.empty((70, 70), F32)
    backend.matmul(*upload(backend, x, w), out=out)
    error = np.abs(backend.to_host(out) - x.astype(np.float64) @ w)
    bound = 2.0**-10 * np.abs(x.astype(np.float64)) @ np.abs(w)
    assert (error <= bound).all()
    assert error.max() > 2.0**-16 * bound.max()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_three_products_of_tf32_go_to_the_ends_of_float32(backend: CudaBackend) -> None:
    rng = np.random.default_rng(6)
    x, w = np.ones((64, 64), np.float32), rng.uniform(0.5, 1.0, (64, 64)).astype(np.float32) * 2.0**-20
    x[0, 3], x[1, 5], x[2, 7], x[3, 9] = np.finfo(np.float32).min, np.inf, -np.inf, np.nan
    out = backend.empty((64, 64), F32)
    backend.matmul(*upload(backend, x, w), out=out)
    assert "split" in backend.products.served
    exact = x.astype(np.float64) @ w
    np.testing.assert_allclose(backend.to_host(out), exact, rtol=1e-6)


@pytest.mark.parametrize("name", WORK)
@pytest.mark.parametrize("order", ORDERS)
def test_the_order_of_threads_changes_no_bit(name: str, order: str, expected: dict[str, list[HostArray]]) -> None:
    driver = EmulatedDriver()
    driver.order = order
    driver.copies_early = order == "shuffled"
    for ours, theirs in zip(WORK[name](CudaBackend(driver)), expected[name], strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", WORK)
def test_nothing_is_undefined(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    WORK[name](CudaBackend(EmulatedDriver(("-fsanitize=undefined",))))
    assert "runtime error" not in capfd.readouterr().err


def test_what_is_undefined_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    driver = DamagedDriver(
        "gemm_simt.cuh",
        "    FromA next_a;\n",
        "    const int huge = p.rows + 2147483647;\n    FromA next_a;\n    if (huge == 5) return;\n",
        0,
        ("-fsanitize=undefined",),
    )
    products(CudaBackend(driver))
    assert "runtime error: signed integer overflow" in capfd.readouterr().err


# ---- damaged sources -------------------------------------------------------------------------------------------------


class DamagedDriver(EmulatedDriver):
    """Replaces the text `old` in one header, at its `number`-th place."""

    def __init__(self, header: str, old: str, new: str, number: int, options: tuple[str, ...] = ()) -> None:
        super().__init__(options)
        self._header = header
        text = Path(SOURCES / "cuda" / header).read_text(encoding="utf-8")
        parts = text.split(old)
        assert len(parts) > number + 1, f"{header} has no place {number} of {old!r}"
        self._text = old.join(parts[: number + 1]) + new + old.join(parts[number + 1 :])
        self._kept: list[Any] = []

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> emulation.EmulatedArray:
        self._kept.append(super().empty(shape, dtype))
        made: emulation.EmulatedArray = self._kept[-1]
        return made

    def launch(self, kernel: Kernel, grid: tuple[int, int, int], arguments: HostArray) -> None:
        super().launch(kernel._replace(text=self._expanded(kernel.text, set())), grid, arguments)

    def _expanded(self, text: str, seen: set[str]) -> str:
        """`text` with each header in the place of its first inclusion."""

        def header(found: re.Match[str]) -> str:
            name = found[1]
            if name in seen:
                return ""
            seen.add(name)
            path = SOURCES / "cuda" / name
            if not path.exists():
                return found[0]
            own = self._text if name == self._header else path.read_text(encoding="utf-8")
            return self._expanded(own.replace("#pragma once", ""), seen)

        return re.sub(r'#include "(.*)"', header, text)


DAMAGE = {
    "a block is used before it is there": ("products", "gemm_simt.cuh", "        __syncthreads();\n", "", 0),
    "a block is written over while it is used": ("products", "gemm_simt.cuh", "        __syncthreads();\n", "", 1),
    "column sums before all are there": ("products", "product.cuh", "    __syncthreads();\n", "", 0),
    "the next block of the depth": ("products", "gemm_simt.cuh", "k0 + Tiling::DEPTH, depth", "k0, depth", 0),
    "a column too many": ("products", "gemm_simt.cuh", "row >= p.rows || column >= p.columns", "row >= p.rows", 0),
    "a row too many": ("products", "gemm_simt.cuh", "row >= p.rows || column >= p.columns", "column >= p.columns", 0),
    "depth beyond the end": ("products", "gemm_simt.cuh", "i < end && k < depth", "i < end", 0),
    "a tile nobody waits for": ("tensor cores", "gemm_mma.cuh", "cp_async_wait<STAGES - 2>();", "", 0),
    "a tile waited for too late": (
        "tensor cores",
        "gemm_mma.cuh",
        "cp_async_wait<STAGES - 2>",
        "cp_async_wait<STAGES - 1>",
        0,
    ),
    "a tile that others have not copied": ("tensor cores", "gemm_mma.cuh", "        __syncthreads();", "", 0),
    "a slab written over": ("tensor cores", "gemm_mma.cuh", "        __syncthreads();\n", "", 0),
    "a slab that is not there": ("tensor cores", "gemm_mma.cuh", "        __syncthreads();\n", "", 1),
    "another permutation": ("tensor cores", "fragments.cuh", "chunk ^ (line & 7)", "chunk ^ (at & 7)", 0),
    "a line too many": (
        "tensor cores",
        "fragments.cuh",
        "line0 + line < line_end ? of_line : 0",
        "of_line",
        0,
    ),
    "a line too long": ("tensor cores", "fragments.cuh", "rest < NUMBERS ? rest : NUMBERS", "NUMBERS", 0),
    "a part left out": ("tensor cores", "product.cuh", "z < gridDim.z; z++", "z + 1 < gridDim.z; z++", 0),
    "a row of parts too many": ("tensor cores", "product.cuh", " && i0 + line < p.rows", "", 0),
    "a column of parts too many": ("tensor cores", "product.cuh", " && column < p.columns; line", "; line", 0),
    "the first to come": ("tensor cores", "arrivals.cuh", "before == count - 1", "before == 0", 0),
    "a count that nobody waits for": ("tensor cores", "arrivals.cuh", "    __syncthreads();\n", "", 0),
    "a count that is written over": (
        "tensor cores",
        "arrivals.cuh",
        "    __syncthreads();  // the place in shared memory is free again\n",
        "",
        0,
    ),
    "one count for all tiles": ("tensor cores", "gemm_mma.cuh", "arrivals + blockIdx.x", "arrivals", 0),
    "column sums of one tile": ("products", "product.cuh", "i < tile_rows; i++", "i < 1; i++", 0),
    "a part that is not joined": ("rows", "reductions.cuh", "y < gridDim.y; y", "y + 1 < gridDim.y; y", 0),
    "one count for all columns": ("many sums", "reductions.cuh", "a.arrivals + blockIdx.x", "a.arrivals", 0),
    "no maximum of the row": ("rows", "rows.cuh", "group.template joined<Maximum>(largest)", "largest", 0),
    "a row that is not there": ("rows", "rows.cuh", "row < a.rows && group.rank == 0", "group.rank == 0", 0),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_seen(name: str, expected: dict[str, list[HostArray]]) -> None:
    work, header, old, new, number = DAMAGE[name]
    seen = False
    for order in ORDERS:
        driver = DamagedDriver(header, old, new, number)
        driver.order = order
        try:
            results = WORK[work](CudaBackend(driver))
        except RuntimeError:
            seen = True
            break
        same = [np.array_equal(a, b, equal_nan=True) for a, b in zip(results, expected[work], strict=True)]
        seen = not all(same) or driver.damaged_guards() > 0
        if seen:
            break
    assert seen


def test_threads_that_wait_for_each_other_are_named() -> None:
    driver = DamagedDriver(
        "rows.cuh",
        "    const Group<THREADS> group;\n",
        "    const Group<THREADS> group;\n    if (threadIdx.x) __syncthreads();\n",
        0,
    )
    with pytest.raises(RuntimeError, match=r"softmax, block \(0, 0, 0\): threads wait for each other for ever"):
        rows(CudaBackend(driver))


def test_addresses_that_no_copy_takes_are_seen() -> None:
    """Also where nothing is copied from them, so that no number tells."""
    driver = DamagedDriver("fragments.cuh", "source = from +", "source = !count + from +", 0)
    with pytest.raises(RuntimeError, match=r"gemm_mma.*: an address is no multiple of the bytes"):
        WORK["tensor cores"](CudaBackend(driver))
