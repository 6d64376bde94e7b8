"""The dense layer in Python for GPUs: right in Numba's simulator, compiled without a GPU, and what it refuses."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

from numba import cuda, types

from fcdense import activations, loops
from fcdense.backends.programs import epilogue
from fcdense.cuda import tables
from fcdense.cuda.library import library_path
from fcdense.cuda.plan import NUMBA, Choice, Problem
from fcdense.errors import DeviceError
from fcdense.kernels.numba import gpu_compiler, gpu_dense
from fcdense.kernels.numba.gpu_dense import Tiling
from tests.kernels.simulated_gpu_dense import OnDevice

ROOT = Path(__file__).resolve().parents[2]
F32, F64 = np.dtype(np.float32), np.dtype(np.float64)


def test_in_the_simulator() -> None:
    """All of `simulated_gpu_dense.py`."""
    path = Path(__file__).with_name("simulated_gpu_dense.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)]
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed in", done.stdout), done.stdout


# ---- what it refuses -------------------------------------------------------------------------------------------------


def lent(*shape: int, dtype: Any = np.float32, read_only: bool = False) -> OnDevice:
    return OnDevice(np.zeros(shape, dtype), read_only)


def call(**changed: Any) -> None:
    given = {"x_bi": lent(5, 6), "w_io": lent(6, 9), "b_o": lent(9), "activation": abs, "out": lent(5, 9)}
    gpu_dense.dense(**(given | changed))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (
            {"x_bi": lent(5, 7)},
            ValueError,
            r"x_bi @ w_io: shapes \(5, 7\) and \(6, 9\), expected \(M, K\) and \(K, N\)",
        ),
        ({"x_bi": lent(6)}, ValueError, r"x_bi @ w_io: shapes \(6,\) and \(6, 9\)"),
        ({"b_o": lent(8)}, ValueError, r"b_o: shape \(8,\), expected one that broadcasts to \(5, 9\)"),
        ({"b_o": lent(1, 1, 9)}, ValueError, r"b_o: shape \(1, 1, 9\)"),
        ({"out": lent(5, 8)}, ValueError, r"out: shape \(5, 8\), expected \(5, 9\)"),
        ({"out": lent(1, 9)}, ValueError, r"out: shape \(1, 9\), expected \(5, 9\)"),
        ({"out": lent(5, 9, read_only=True)}, ValueError, r"out: read-only"),
        ({"x_bi": np.zeros((5, 6))}, TypeError, r"x_bi: ndarray, expected an array on a GPU"),
        ({"x_bi": lent(5, 6, dtype=int)}, TypeError, r"x_bi: dtype int64, expected float32 or float64"),
        ({"x_bi": lent(5, 6, dtype=">f4")}, TypeError, r"x_bi: dtype >f4, expected float32 or float64"),
        ({"w_io": lent(6, 9, dtype=float)}, TypeError, r"w_io: dtype float64, expected float32, that of x_bi"),
        ({"b_o": lent(9, dtype=float)}, TypeError, r"b_o: dtype float64, expected float32, that of x_bi"),
        ({"out": lent(5, 9, dtype=float)}, TypeError, r"out: dtype float64, expected float32, that of x_bi"),
        ({"derivative": abs}, TypeError, r"derivative and the array `slope`"),
        ({"slope": lent(5, 9)}, TypeError, r"derivative and the array `slope`"),
    ],
)
def test_arrays_that_do_not_fit(
    changed: dict[str, Any], error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_dense, "kernel", None)
    with pytest.raises(error, match=message):
        call(**changed)


def test_gradients_name_what_does_not_fit() -> None:
    x, dz, w = lent(5, 6), lent(5, 9), lent(6, 9)
    with pytest.raises(ValueError, match=r"dz_bo @ w_io\^T: shapes \(5, 6\) and \(9, 6\)"):
        gpu_dense.dense_grad_input(x, w, None, out=x)
    with pytest.raises(ValueError, match=r"slope_bi: shape \(5, 9\), expected one that broadcasts to \(5, 6\)"):
        gpu_dense.dense_grad_input(dz, w, dz, out=x)
    with pytest.raises(ValueError, match=r"x_bi\^T @ dz_bo: shapes \(6, 5\) and \(6, 9\)"):
        gpu_dense.dense_grad_weight(x, w, out=w)
    with pytest.raises(ValueError, match=r"out: shape \(5, 9\), expected \(6, 9\)"):
        gpu_dense.dense_grad_weight(x, dz, out=dz)


@pytest.mark.parametrize(("operands", "outs"), [(3, 1), (0, 0), (0, 3)])
def test_how_many_matrices(operands: int, outs: int) -> None:
    a = lent(2, 2)
    with pytest.raises(ValueError, match=f"{operands} operands and {outs} outs, expected at most 2, and 1 or 2"):
        gpu_dense.product(a, a, operands=[a] * operands, outs=[a] * outs)


def test_more_columns_than_a_grid_has() -> None:
    a, b = lent(1, 1), lent(1, 1 << 22)
    with pytest.raises(ValueError, match=r"b: 4,194,304 columns, expected at most 4,194,240"):
        gpu_dense.product(a, b, outs=[b])


def test_without_numba_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "implementation", "Built-in")
    with pytest.raises(ImportError, match=r"pip install 'numba-cuda\[cu13\]'"):
        call()


def test_a_numpy_that_numba_cuda_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told before anything is compiled, and the plan leaves the kernel alone, also where a table names it."""
    monkeypatch.setattr(cuda, "implementation", "NVIDIA")
    monkeypatch.setattr(gpu_compiler, "find_spec", lambda name: name)
    monkeypatch.setattr(np, "row_stack", np.vstack, raising=False)
    assert gpu_compiler.refusal() == ""
    monkeypatch.delattr(np, "row_stack")
    with pytest.raises(ImportError, match=r"numba-cuda compiles nothing beside NumPy .* pip install 'numpy<2\.5'"):
        call()
    choice, small = Choice(NUMBA, "float32"), Problem("float32", 8, 8, 8, 16, True, False, False, "float32")
    monkeypatch.setattr(tables, "read", lambda driver: {small.bucket: choice})
    plan = tables.plan_of(SimpleNamespace(architecture="sm_90a", library=None))  # type: ignore[arg-type]
    assert plan.choose(small).family == "simt"
    assert choice not in plan.candidates(small)


# ---- compiled --------------------------------------------------------------------------------------------------------


def relu(z: Any) -> Any:
    return np.float32(0) if z < 0 else z


def step(z: Any) -> Any:
    return np.float32(1) if z > 0 else np.float32(0)


def gelu(z: Any) -> Any:
    return np.float32(0.5) * z * (np.float32(1) + math.erf(z * np.float32(math.sqrt(0.5))))


def careless_gelu(z: Any) -> Any:
    return 0.5 * z * (1 + math.erf(z * math.sqrt(0.5)))


def needs(*libraries: str) -> None:
    """Skip without numba-cuda, or one of NVIDIA's libraries, which a bare one does not bring."""
    if why := gpu_compiler.refusal():
        pytest.skip(why)
    for name in libraries:
        try:
            library_path(name, name)
        except DeviceError:
            pytest.skip(f"{name} is not installed: compiling for a GPU needs the extra numba-cuda13")


def ptx(kernel: Any, dtype: np.dtype[Any], reads: int, writes: int, capability: tuple[int, int] = (8, 0)) -> str:
    """What numba-cuda makes of a kernel, without a GPU."""
    needs("nvrtc", "nvvm")
    rows, columns, strided = (types.Array(types.float32 if dtype == F32 else types.float64, 2, k) for k in "CFA")
    signature = types.void(rows, columns, types.Tuple([strided] * reads), types.Tuple([rows] * writes))
    text = cuda.compile(kernel.py_func, signature, device=False, abi="numba", cc=capability)[0]
    return str(text if isinstance(text, str) else text.decode())


@pytest.mark.parametrize("tiling", [gpu_dense.TILING, Tiling(128, 128, 8, 8, 8)], ids=str)
@pytest.mark.parametrize("capability", [(8, 0), (9, 0)], ids=str)
def test_kernels_stay_in_registers(capability: tuple[int, int], tiling: Tiling) -> None:
    kernel = gpu_dense.kernel(gpu_dense.layer(relu, step), 1, 2, F32, tiling)
    text = ptx(kernel, F32, 1, 2, capability)
    assert text.count("fma.rn.f32") == tiling.thread_rows * tiling.thread_columns
    assert text.count("bar.sync") == 2
    assert not re.findall(r"\.f64\b|\.local\b|\bcall\b", text)
    needs("nvJitLink")
    from cuda.core import Linker, LinkerOptions, ObjectCode

    options = LinkerOptions(arch=f"sm_{''.join(map(str, capability))}", ptxas_options=["-v"])
    linker = Linker(ObjectCode.from_ptx(text.encode()), options=options)
    assert bytes(linker.link("cubin").code).startswith(b"\x7fELF")
    log = linker.get_info_log()
    assert re.findall(r"(\d+) bytes", log.partition("Function properties")[2])[:3] == ["0", "0", "0"], log
    assert int(re.findall(r"Used (\d+) registers", log)[0]) <= 128, log


def test_float64() -> None:
    text = ptx(gpu_dense.kernel(gpu_dense.multiply, 1, 1, F64), F64, 1, 1)
    assert text.count("fma.rn.f64") == 16
    assert ".f32" not in text


def test_constants_of_the_dtype_keep_float64_out() -> None:
    careful, careless = (ptx(gpu_dense.kernel(f, 0, 1, F32), F32, 0, 1) for f in (gelu, careless_gelu))
    assert not re.search(r"\.f64\b", careful)
    assert re.search(r"\.f64\b", careless)


@pytest.mark.parametrize("name", ["relu", "gelu", "softplus", "tanh"])
def test_the_functions_that_fcdense_writes(name: str) -> None:
    """Those that the CPU's loops are made of, with the vectorized functions of `vector_math.py` in them."""
    act = activations.get(name)
    assert isinstance(act, activations.Activation)
    scope: dict[str, Any] = {"__name__": name}
    exec(loops.tile_source(epilogue(act, True, True), F32, "r"), scope)
    text = ptx(gpu_dense.kernel(scope["element"], 1, 2, F32), F32, 1, 2)
    assert not re.findall(r"\.f64\b|\bcall\b", text)
    # Long functions are called in a loop over the sums, which are in local memory by then: not while they grow.
    assert ".local" not in text.split("bar.sync")[1]


# ---- on a device -----------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("tiling", [gpu_dense.TILING, Tiling(128, 128, 8, 8, 8)], ids=str)
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_whole_numbers_are_exact_on_a_device(dtype: np.dtype[Any], tiling: Tiling) -> None:
    needs()
    rng = np.random.default_rng(1)
    x, w, b, dz = (rng.integers(-4, 5, shape) for shape in ((200, 70), (70, 130), (130,), (200, 130)))
    on_device = [cuda.to_device(a.astype(dtype)) for a in (x, w, b, dz)]
    y, slope, dx, dw = (cuda.to_device(np.full(s, 77, dtype)) for s in (dz.shape, dz.shape, x.shape, w.shape))
    gpu_dense.dense(*on_device[:3], relu, step, out=y, slope=slope, tiling=tiling)
    gpu_dense.dense_grad_input(on_device[3], on_device[1], None, out=dx, tiling=tiling)
    gpu_dense.dense_grad_weight(on_device[0], on_device[3], out=dw, accumulate=True, tiling=tiling)
    z = x @ w + b
    for found, expected in ((y, np.maximum(z, 0)), (slope, z > 0), (dx, dz @ w.T), (dw, 77 + x.T @ dz)):
        np.testing.assert_array_equal(found.copy_to_host(), expected)
