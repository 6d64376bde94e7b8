"""The CUDA kernels on the processor: activations, exact products, orders of threads, undefined behaviour."""

from __future__ import annotations

from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fcdense as fc
from fcdense import activations, emit
from fcdense.backends.cuda import CudaBackend
from fcdense.cuda import launcher, plan
from fcdense.cuda.functor import functor
from fcdense.cuda.source import Kernel
from fcdense.cuda.tuning import Only
from fcdense.program import trace
from tests import emulation
from tests.backends.calls import shifted
from tests.cuda.accuracy import NAMES, assert_accurate, assert_as_good_as_bfloat16
from tests.cuda.work import F32, KINDS, TWICE, WORK, layer, undamaged, upload, whole_numbers
from tests.emulation import ORDERS, EmulatedDriver

pytestmark = pytest.mark.skipif(not emulation.is_available(), reason="no g++ here")


@pytest.fixture(scope="module")
def backend() -> CudaBackend:
    return CudaBackend(EmulatedDriver())


@pytest.mark.parametrize("name", NAMES)
def test_activations(name: str, backend: CudaBackend) -> None:
    assert_accurate(name, backend)


@pytest.mark.parametrize("name", NAMES)
def test_approximations_are_as_good_as_bfloat16(name: str, backend: CudaBackend) -> None:
    assert_as_good_as_bfloat16(name, backend)


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


class Noting(EmulatedDriver):
    """Notes the blocks and the arguments of each launch."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[int, Any]] = []

    def launch(self, kernel: Kernel, grid: tuple[int, int, int], arguments: emulation.HostArray) -> None:
        self.noted.append((grid[0], arguments[0]))
        super().launch(kernel, grid, arguments)


@pytest.mark.parametrize(("by", "blocks", "in_groups"), [(0, [1, 1], 128), (4, [1, 1], 128), (1, [4, 4], 0)])
def test_numbers_go_in_groups_where_they_lie_well(by: int, blocks: list[int], in_groups: int) -> None:
    """Four to a thread of a program or a copy, eight of dropout."""
    driver = Noting()
    backend = CudaBackend(driver)
    x, stream = shifted(np.ones(1024, np.float32), backend, by), backend.zeros((2,), np.dtype(np.uint64))
    out = backend.empty((1024,), F32)
    del driver.noted[:]
    backend.map(TWICE, (x,), out=(out,))
    backend.copy(x, out=out)
    backend.dropout(x, 0.5, stream, out=out)
    *others, (_, arguments) = driver.noted
    assert [count for count, _ in others] == blocks
    assert arguments["packed"] == in_groups


def test_a_program_of_more_scalars_than_there_was_room_for(backend: CudaBackend) -> None:
    """They are read when it runs, and what depends on them alone is computed before it."""
    x, values = np.arange(5.0), np.linspace(0.0, 1.0, 2 * launcher.FEWEST_SCALARS)
    for count in (2, len(values)):
        program = trace(lambda x, *given: sum(x * np.exp(s) for s in given), 1, count, name="mixture")
        device_x, scalars = upload(backend, x, values[:count])
        out = backend.empty(x.shape, x.dtype)
        backend.map(program, (device_x,), scalars, out=(out,))
        np.testing.assert_allclose(backend.to_host(out), x * np.exp(values[:count]).sum(), rtol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_number_of_scalars_alone(dtype: Any, backend: CudaBackend) -> None:
    (scalars,) = upload(backend, np.array([0.1, 0.2]))
    out = backend.empty((), np.dtype(dtype))
    backend.map(trace(lambda a, b: a + b, 0, 2, name="sum"), (), scalars, out=(out,))
    np.testing.assert_array_equal(backend.to_host(out), dtype(0.1 + 0.2))


def test_numbers_of_two_dtypes_of_scalars_alone(backend: CudaBackend) -> None:
    (scalars,) = upload(backend, np.array([0.1, 0.2]))
    wide, narrow = backend.empty((), np.dtype(np.float64)), backend.empty((), F32)
    backend.map(trace(lambda a, b: (a + b, a - b), 0, 2, name="both"), (), scalars, out=(wide, narrow))
    assert backend.to_host(wide) == 0.1 + 0.2
    assert backend.to_host(narrow) == np.float32(0.1 - 0.2)


def test_sums_of_more_columns_than_there_were_counters_for() -> None:
    backend, rng = CudaBackend(EmulatedDriver()), np.random.default_rng(9)
    for columns in (2, 128 * launcher.FEWEST_COUNTERS // 2 + 1):  # in tiles of 128 or less, two counters for each
        dz, w = (rng.integers(-3, 4, shape).astype(np.float32) for shape in ((3, 2), (columns, 2)))
        dx, db = backend.empty((3, columns), F32), backend.empty((columns,), F32)
        backend.dense_grad_input(*upload(backend, dz, w), activations.linear, None, out=dx, db=db)
        np.testing.assert_array_equal(backend.to_host(dx), dz @ w.T)
        np.testing.assert_array_equal(backend.to_host(db), (dz @ w.T).sum(0))


# ---- what a few calls give -------------------------------------------------------------------------------------------


def test_products_of_whole_numbers_are_exact() -> None:
    rng = np.random.default_rng(0)
    x, w, b, dz = (rng.integers(-3, 4, shape) for shape in ((70, 37), (37, 67), (67,), (70, 67)))
    dx = dz @ w.T * (x > 0)
    for ours, exact in zip(undamaged("products"), (np.maximum(x @ w + b, 0), dx, x.T @ dz, dx.sum(0)), strict=True):
        np.testing.assert_array_equal(ours, exact)


@pytest.mark.parametrize("by", [0, 1, 2, 4])
@pytest.mark.parametrize(("dtype", "columns"), KINDS)
def test_products_of_tensor_cores_are_exact(dtype: Any, columns: int, by: int, backend: CudaBackend) -> None:
    """Also of operands so many numbers behind an address from which 16 bytes may be read at once."""
    launches = backend.driver.launches  # type: ignore[attr-defined]
    del launches[:]
    results = layer(backend, dtype, columns, partial(shifted, by=by))
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
def test_the_order_of_threads_changes_no_bit(name: str, order: str) -> None:
    driver = EmulatedDriver()
    driver.order = order
    driver.copies_early = order == "shuffled"
    for ours, theirs in zip(WORK[name](CudaBackend(driver)), undamaged(name), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", WORK)
def test_nothing_is_undefined(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    WORK[name](CudaBackend(EmulatedDriver(("-fsanitize=undefined",))))
    assert "runtime error" not in capfd.readouterr().err
