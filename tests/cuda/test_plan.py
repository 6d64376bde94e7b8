"""Which kernel serves which product, cuBLASLt among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fcdense import activations
from fcdense.backends.cuda import CudaBackend
from fcdense.backends.replay import Call
from fcdense.cuda import plan
from fcdense.cuda.cublaslt import CublasLt
from fcdense.cuda.graph import GraphReplay
from fcdense.cuda.plan import Choice, Plan, Problem
from fcdense.cuda.tuning import Only
from fcdense.errors import ShapeError
from tests import emulation
from tests.cuda.cublaslt_cases import SIZE, WORKSPACE
from tests.cuda.fake_cublaslt import FakeCublasLt
from tests.emulation import EmulatedDriver

pytestmark = pytest.mark.skipif(not emulation.is_available(), reason="no g++ here")
LIBRARY = Choice("cuBLASLt", "")


def only(choice: Choice) -> Plan:
    """Chooses this, where it serves."""
    return Only(choice, Plan("emulated"))


def problem(rows: int, columns: int, depth: int, dtype: str = "bfloat16", **changes: Any) -> Problem:
    """One whose operands lie well."""
    return Problem(dtype, rows, columns, depth, 16, True, False, False, dtype)._replace(**changes)


@pytest.mark.parametrize(
    ("asked", "architecture", "family", "arithmetic"),
    [
        (problem(256, 512, 784), "sm_80", "mma", "bfloat16"),
        (problem(256, 512, 784), "sm_75", "simt", "bfloat16"),
        (problem(256, 512, 784, "float16"), "sm_75", "mma", "float16"),
        (problem(256, 512, 784, "float32"), "sm_80", "mma", "split"),
        (problem(256, 512, 784, "float32"), "sm_86", "simt", "float32"),
        (problem(256, 512, 784, "tf32"), "sm_86", "mma", "tf32"),
        (problem(256, 512, 784, "float32"), "sm_75", "simt", "float32"),
        (problem(256, 10, 512, "float32"), "sm_90a", "simt", "float32"),
        (problem(256, 10, 512), "sm_90a", "mma", "bfloat16"),
        (problem(256, 512, 784, copy=0), "sm_90a", "simt", "bfloat16"),
        (problem(256, 512, 784, "float64"), "sm_90a", "simt", "float64"),
    ],
)
def test_families(asked: Problem, architecture: str, family: str, arithmetic: str) -> None:
    assert Plan(architecture).choose(asked)[:2] == (family, arithmetic)


def test_the_library_serves_what_is_large_on_the_chips_whose_tensor_cores_are_its_own() -> None:
    hopper = Plan("sm_90a", has_library=True)
    assert hopper.choose(problem(16384, 2048, 2048)).family == "cuBLASLt"
    assert hopper.choose(problem(16384, 1024, 1024)).family == "cuBLASLt"
    assert hopper.choose(problem(16384, 1024, 1024, has_program=True)).family == "mma"
    assert hopper.choose(problem(16384, 2048, 2048, has_program=True)).family == "cuBLASLt"
    assert hopper.choose(problem(256, 512, 784)).family == "mma"
    assert hopper.choose(problem(1, 65536, 65536)).family == "mma"
    assert Plan("sm_86", has_library=True).choose(problem(16384, 2048, 2048)).family == "mma"
    assert Plan("sm_90a").choose(problem(16384, 2048, 2048)).family == "mma"


def test_work_is_cut_until_the_gpu_is_full() -> None:
    chosen = Plan("sm_90a").choose(problem(1024, 1024, 16384))
    assert (chosen.tiling, chosen.parts) == (plan.MMA["bfloat16"][0], 4)
    assert chosen.part(16384) == 4096
    few = Plan("sm_90a").choose(problem(64, 64, 600))
    assert (few.tiling, few.parts) == (plan.MMA["bfloat16"][1], 4)
    assert few.part(600) == 160
    assert Plan("sm_90a").choose(problem(64, 64, 200)).parts == 1
    assert Plan("sm_90a").choose(problem(16384, 4096, 4096)).parts == 1


def test_what_was_measured_is_chosen() -> None:
    measured = Choice("simt", "bfloat16", plan.SIMT_SMALL, 2)
    tuned = Plan("sm_90a", table={problem(256, 512, 784).bucket: measured})
    assert tuned.choose(problem(129, 300, 1000)) == measured
    assert tuned.choose(problem(128, 300, 1000)).family == "mma"
    assert tuned.choose(problem(256, 512, 784, has_program=True)).family == "mma"
    split = Plan("sm_90a", table={problem(64, 64, 64, "float32").bucket: Choice("mma", "split", plan.MMA["split"][1])})
    assert split.choose(problem(64, 64, 64, "float32")).arithmetic == "split"
    assert split.choose(problem(63, 64, 64, "float32")).arithmetic == "float32"
    assert Plan("sm_80", table={problem(8, 8, 8).bucket: LIBRARY}).choose(problem(8, 8, 8)).family == "mma"


def test_why() -> None:
    wide, narrow = problem(256, 512, 784), problem(256, 512, 784, "float64")
    hopper = Plan("sm_90a", has_library=True)
    for asked in (wide, problem(16384, 2048, 2048), narrow):
        assert hopper.why(asked, hopper.choose(asked)) == "by rule"
    alone = Plan("sm_90a")
    assert alone.why(narrow, alone.choose(narrow)) == "as no other family takes these operands"
    assert alone.why(wide, alone.choose(wide)) == "by rule"
    tuned = Plan("sm_90a", table={wide.bucket: LIBRARY}, has_library=True)
    assert tuned.why(wide, tuned.choose(wide)) == "as measured"
    alone.learn({wide.bucket: Choice("simt", "bfloat16", plan.SIMT_SMALL)})
    assert (alone.choose(wide).family, alone.why(wide, alone.choose(wide))) == ("simt", "as measured")
    old = Plan("sm_75")
    assert old.why(wide, old.choose(wide)) == "as no other family takes these operands"


def test_shared_memory_is_enough_for_two_blocks() -> None:
    assert Plan("sm_86").choose(problem(4096, 4096, 4096)).tiling.shared(2) <= 48 * 1024  # type: ignore[union-attr]
    assert Plan("sm_80").choose(problem(4096, 4096, 4096)).tiling.shared(2) <= 64 * 1024  # type: ignore[union-attr]


def test_products_side_by_side_have_workspaces_of_their_own() -> None:
    driver, library = EmulatedDriver(), FakeCublasLt()
    driver.library = CublasLt(WORKSPACE, SIZE, library)
    backend = CudaBackend(driver, only(LIBRARY))
    x, w, dz, dx, dw = (backend.zeros((8, 8), np.dtype(np.float32)) for _ in range(5))
    given = {"dz_bo": dz, "w_io": w, "act": activations.linear, "aux_bi": None, "out": dx, "db": None}
    calls = [
        Call("dense_grad_input", {**given, "mode": "overwrite"}, (dz, w), (dx,)),
        Call("dense_grad_weight", {"x_bi": x, "dz_bo": dz, "out": dw, "mode": "overwrite"}, (x, dz), (dw,)),
    ]
    GraphReplay(backend, calls).run()
    assert library.workspaces == [WORKSPACE, WORKSPACE + SIZE]


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_layers_by_the_library(dtype: Any) -> None:
    """Whole numbers through a layer forward and back, with the library in the place of our products."""
    driver = EmulatedDriver()
    driver.library = CublasLt(WORKSPACE, SIZE, FakeCublasLt())
    backend = CudaBackend(driver)
    backend.products.plan = only(LIBRARY)
    rng = np.random.default_rng(0)
    given = [rng.integers(-2, 3, shape).astype(dtype) for shape in ((12, 24), (24, 16), (16,), (12, 16))]
    x, w, b, dz = (backend.from_host(array) for array in given)
    shapes = (12, 16), (12, 24), (24, 16), (24,)
    out, dx, dw, db = (backend.empty(shape, np.dtype(dtype)) for shape in shapes)
    served = []
    calls: list[Callable[[], None]] = [
        lambda: backend.dense(x, w, b, activations.relu, out=out),
        lambda: backend.dense_grad_input(dz, w, activations.relu, x, out=dx, db=db),
        lambda: backend.dense_grad_weight(x, dz, out=dw),
        lambda: backend.dense_grad_weight(x, dz, out=dw, mode="accumulate"),
    ]
    replay = driver.record(lambda: [call() or served.append(backend.products.served) for call in calls])  # type: ignore[func-returns-value]
    replay()
    assert served == [str(LIBRARY)] * 4
    assert not [name for name in driver.launches if "gemm" in name]
    x_, w_, b_, dz_ = (array.astype(np.int64) for array in given)
    back = dz_ @ w_.T * (x_ > 0)
    exact = np.maximum(x_ @ w_ + b_, 0), back, 2 * x_.T @ dz_, back.sum(0)
    for ours, theirs in zip((out, dx, dw, db), exact, strict=True):
        np.testing.assert_array_equal(backend.to_host(ours), theirs.astype(np.float64).astype(dtype))
    assert not driver.damaged_guards()


def test_the_kernel_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is measured where it is installed, is given the stream, and leaves to us what it has not."""
    gpu_dense = pytest.importorskip("fcdense.kernels.numba.gpu_dense")
    assert Choice("numba", "float32") in Plan("sm_90a", has_numba=True).candidates(problem(64, 64, 64, "float32"))
    assert not [c for c in Plan("sm_90a", has_numba=True).candidates(problem(64, 64, 64)) if c.family == "numba"]
    launched = []

    def product(a: Any, b: Any, function: Any, operands: Any, *, outs: Any, stream: int) -> None:
        launched.append(stream)
        sums = a.host @ b.host
        for place in np.ndindex(sums.shape):
            outs[0].host[place] = function(sums[place], *(x.host[place] for x in operands))

    monkeypatch.setattr(gpu_dense, "product", product)
    backend = CudaBackend(EmulatedDriver(), only(Choice("numba", "float32")))
    x, w = (
        backend.from_host(np.arange(n, dtype=np.float32).reshape(shape)) for n, shape in ((12, (3, 4)), (8, (4, 2)))
    )
    out = backend.zeros((3, 2), x.dtype)
    backend.matmul(x, w, out=out)
    backend.dense_grad_weight(x.T, w, out=out, mode="accumulate")
    np.testing.assert_array_equal(backend.to_host(out), 2 * (backend.to_host(x) @ backend.to_host(w)))
    assert launched == [0, 0]
    assert backend.products.served == "numba float32"
    half = backend.from_host(np.ones((3, 4), np.float16))
    backend.matmul(half, half.T, out=backend.empty((3, 3), half.dtype))
    assert backend.products.served.startswith("mma float16")


def test_what_the_library_refuses_is_computed_by_us() -> None:
    driver = EmulatedDriver()
    driver.library = CublasLt(WORKSPACE, SIZE, FakeCublasLt())
    backend = CudaBackend(driver)
    backend.products.plan = only(LIBRARY)
    x = np.arange(48.0, dtype=np.float32).reshape(6, 8)
    given = backend.from_host(x)
    out = backend.empty((3, 3), x.dtype)
    backend.matmul(given[::2, ::2], given[::2, ::2].T, out=out)
    np.testing.assert_array_equal(backend.to_host(out), x[::2, ::2] @ x[::2, ::2].T)
    assert "simt" in backend.products.served
    assert backend.products.why == "as cuBLASLt does not take it"


def test_axes_that_kernels_cannot_count() -> None:
    """They go to the end of a tile in 32 bits."""
    backend = CudaBackend(EmulatedDriver())
    line = backend.broadcast_to(backend.zeros((1, 1), np.dtype(np.float32)), (1, 2**31 - 127))
    with pytest.raises(ShapeError, match=r"too large for a GPU: axes are at most 2,147,483,520 long here"):
        backend.matmul(line, line.T, out=backend.zeros((1, 1), line.dtype))
