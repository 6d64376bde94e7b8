"""The tests of `kernels/numba/gpu_dense.py` that run in Numba's simulator, a Python thread for each of the GPU's.

NUMBA_ENABLE_CUDASIM is read when Numba is imported: `test_gpu_dense.py` runs this file in a process of its own.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numba import config, cuda

from fcdense import activations, loops
from fcdense.arena import Array
from fcdense.backends.programs import epilogue
from fcdense.kernels.numba import gpu_dense
from fcdense.kernels.numba.gpu_dense import Tiling

TINY = Tiling(4, 8, 4, 2, 2)
"""Eight threads, and tiles that are not square."""


class OnDevice:
    """Host memory that says that it lies on a GPU."""

    def __init__(self, array: Array, read_only: bool = False) -> None:
        self.array = array
        self.read_only = read_only

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        address, _ = self.array.__array_interface__["data"]
        return self.array.__array_interface__ | {"data": (address, self.read_only)}


class Allocations(dict[Any, Any]):
    """The simulator's shared arrays. It looks for one, and makes it where there is none, in two steps: no other thread
    may come in between, which would make another one."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def get(self, place: Any, default: Any = None) -> Any:
        self._lock.acquire()
        found = super().get(place, default)
        if found is not None:
            self._lock.release()
        return found

    def __setitem__(self, place: Any, made: Any) -> None:
        super().__setitem__(place, made)
        self._lock.release()


@pytest.fixture(autouse=True)
def _simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays by their interface, which the simulator does not know."""
    assert config.ENABLE_CUDASIM
    # The thread that waits for all others does not sleep, and would give way to them every 5 ms only.
    sys.setswitchinterval(1e-4)
    from numba.cuda.cudadrv.devicearray import FakeCUDAArray
    from numba.cuda.simulator.kernelapi import FakeCUDAShared

    def of_interface(description: dict[str, Any], owner: Any, sync: bool) -> Any:
        assert not sync
        return FakeCUDAArray(np.asarray(SimpleNamespace(__array_interface__=description, owner=owner)))

    monkeypatch.setattr(cuda, "from_cuda_array_interface", of_interface, raising=False)
    begin = FakeCUDAShared.__init__

    def begun(self: Any, dynshared_size: int) -> None:
        begin(self, dynshared_size)
        self._allocations = Allocations()

    monkeypatch.setattr(FakeCUDAShared, "__init__", begun)


def zeros(*shape: int, dtype: Any) -> Array:
    """A matrix with rows and columns round it that nobody may write to."""
    around = np.full((shape[0] + 2, shape[1] + 4), 77, dtype)
    return around[1:-1, 2:-2]


def unharmed(out: Array) -> Array:
    """What was written, and nothing beside it."""
    around = out.base
    assert around is not None
    mask = np.ones(around.shape, bool)
    mask[1:-1, 2:-2] = False
    assert (around[mask] == 77).all()
    return out


def relu(z: Any) -> Any:
    return type(z)(0) if z < 0 else z


def step(z: Any) -> Any:
    return type(z)(1) if z > 0 else type(z)(0)


def forward(x: Array, w: Array, b: Array | None, *functions: Callable[..., Any], kernels: Any = gpu_dense) -> Any:
    """f(x w + b), or that and f'(x w + b)."""
    out, slope = (zeros(len(x), w.shape[1], dtype=x.dtype) for _ in range(2))
    second = {"slope": OnDevice(slope)} if len(functions) == 2 else {}
    bias = None if b is None else OnDevice(b)
    kernels.dense(OnDevice(x), OnDevice(w), bias, *functions, out=OnDevice(out), **second, tiling=TINY)
    return (unharmed(out), unharmed(slope)) if second else unharmed(out)


def whole(rng: np.random.Generator, *shape: int) -> Array:
    return rng.integers(-4, 5, shape)


@pytest.mark.parametrize(
    ("b", "i", "o", "dtype"),
    [(1, 1, 1, "float32"), (4, 8, 8, "float64"), (5, 6, 9, "float32"), (7, 13, 18, "float64")],
)
def test_whole_numbers_are_exact(b: int, i: int, o: int, dtype: str) -> None:
    """One of each, tiles that are full, and sizes on both sides of a tile."""
    rng = np.random.default_rng(1)
    x, w, bias, dz, mask, dw = (whole(rng, *s) for s in ((b, i), (i, o), (o,), (b, o), (b, i), (i, o)))
    lent = {name: OnDevice(a.astype(dtype)) for name, a in (("x", x), ("w", w), ("dz", dz), ("mask", mask))}
    y, slope = forward(x.astype(dtype), w.astype(dtype), bias.astype(dtype), relu, step)
    np.testing.assert_array_equal(y, np.maximum(x @ w + bias, 0))
    np.testing.assert_array_equal(slope, x @ w + bias > 0)

    dx = zeros(b, i, dtype=dtype)
    gpu_dense.dense_grad_input(lent["dz"], lent["w"], lent["mask"], out=OnDevice(dx), tiling=TINY)
    np.testing.assert_array_equal(unharmed(dx), (dz @ w.T) * mask)

    sums = zeros(i, o, dtype=dtype)
    sums[...] = dw
    for times in (1, 2):
        gpu_dense.dense_grad_weight(lent["x"], lent["dz"], out=OnDevice(sums), accumulate=True, tiling=TINY)
        np.testing.assert_array_equal(unharmed(sums), dw + times * (x.T @ dz))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rounding_is_within_the_bound(dtype: str) -> None:
    """|fl(AB) - AB| <= gamma_K |A||B| (Higham 2002, Accuracy and stability of numerical algorithms, eq. 3.13)."""
    rng = np.random.default_rng(2)
    x, w = (rng.standard_normal(shape).astype(dtype) for shape in ((5, 30), (30, 9)))
    y = forward(x, w, None, gpu_dense.identity)
    wide_x, wide_w = x.astype(np.longdouble), w.astype(np.longdouble)
    unit = np.finfo(dtype).eps / 2
    gamma = 30 * unit / (1 - 30 * unit)
    assert (abs(y - wide_x @ wide_w) <= gamma * (abs(wide_x) @ abs(wide_w))).all()
    assert (y != wide_x @ wide_w).any()
    assert forward(x, w, None, gpu_dense.identity).tobytes() == y.tobytes()


VIEWS: dict[str, Callable[[Array], Array]] = {
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "every other": lambda a: np.repeat(np.repeat(a, 2, 0), 3, 1)[::2, ::3],
    "backwards": lambda a: np.ascontiguousarray(a[::-1, ::-1])[::-1, ::-1],
}


@pytest.mark.parametrize("view", VIEWS)
def test_strides_change_no_bit(view: str) -> None:
    rng = np.random.default_rng(3)
    x, w, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 6), (6, 9), (9,)))
    expected = forward(x, w, b, math.tanh)
    wide = np.repeat(b, 2)[::2]
    for left, right in ((VIEWS[view](x), w), (x, VIEWS[view](w)), (VIEWS[view](x), VIEWS[view](w))):
        assert forward(left, right, wide, math.tanh).tobytes() == expected.tobytes()
    np.testing.assert_allclose(expected, np.tanh(x.astype(float) @ w + b), rtol=1e-5, atol=1e-6)


def test_operands_broadcast() -> None:
    rng = np.random.default_rng(4)
    a, b, column, one = (whole(rng, *shape).astype(np.float64) for shape in ((5, 3), (3, 9), (5, 1), ()))
    out = zeros(5, 9, dtype=np.float64)
    lent = [OnDevice(m) for m in (a, b, column, one, out)]
    gpu_dense.product(*lent[:2], lambda z, p, q: z * p - q, lent[2:4], outs=lent[4:], tiling=TINY)
    np.testing.assert_array_equal(unharmed(out), (a @ b) * column - one)


def test_a_sum_of_nothing_is_zero() -> None:
    bias = np.arange(9.0)
    y = forward(np.empty((5, 0)), np.empty((0, 9)), bias, lambda z: z + 1)
    np.testing.assert_array_equal(y, np.tile(bias + 1, (5, 1)))


@pytest.mark.parametrize("shape", [(0, 9), (5, 0)])
def test_nothing_is_launched_for_no_sums(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_dense, "kernel", None)
    x, w, out = np.empty((shape[0], 3)), np.empty((3, shape[1])), np.empty(shape)
    gpu_dense.dense(OnDevice(x), OnDevice(w), None, relu, out=OnDevice(out))


@pytest.mark.filterwarnings("ignore:invalid value")  # infinity times a zero that fills up, in a sum nobody keeps
def test_nan_and_infinity_stay_in_their_rows_and_columns() -> None:
    """The last tile is filled up with zeros, and infinity times zero would be NaN."""
    x, w = np.ones((5, 6), np.float32), np.ones((6, 9), np.float32)
    x[1, 5], x[4, 0], w[0, 8] = np.nan, np.inf, -np.inf
    y = forward(x, w, None, relu)
    expected = np.full((5, 9), np.float32(6))
    expected[4], expected[:, 8] = np.inf, 0
    expected[1], expected[4, 8] = np.nan, 0
    np.testing.assert_array_equal(y, expected)


def test_one_kernel_for_a_function_and_a_layout() -> None:
    x, w = np.ones((5, 6), np.float32), np.ones((6, 9), np.float32)
    forward(x, w, None, math.exp)
    made = gpu_dense.kernel.cache_info().currsize
    forward(x, w, None, math.exp)
    assert gpu_dense.kernel.cache_info().currsize == made
    forward(x.astype(float), w.astype(float), None, math.exp)
    assert gpu_dense.kernel.cache_info().currsize == made + 1


def test_the_tiling_of_large_products() -> None:
    rng = np.random.default_rng(5)
    x, w = whole(rng, 3, 17).astype(np.float32), whole(rng, 17, 5).astype(np.float32)
    out = zeros(3, 5, dtype=np.float32)
    gpu_dense.product(OnDevice(x), OnDevice(w), outs=[OnDevice(out)])
    np.testing.assert_array_equal(unharmed(out), x @ w)


@pytest.mark.parametrize("tiling", [Tiling(6, 8, 4, 4, 2), Tiling(4, 8, 3, 2, 2)], ids=str)
def test_tilings_that_leave_threads_without_work(tiling: Tiling) -> None:
    a = OnDevice(np.ones((2, 2)))
    with pytest.raises(ValueError, match="do not share the tiles of both operands evenly"):
        gpu_dense.product(a, a, outs=[a], tiling=tiling)


# What `vector_math.py` emits as instructions of the processor, for the simulator.
STAND_INS = SimpleNamespace(
    exp=np.exp,
    tanh=np.tanh,
    maximum=np.maximum,
    minimum=np.minimum,
    at_least=np.maximum,
    at_most=np.minimum,
    select=lambda condition, a, b: a if condition else b,
)


@pytest.mark.parametrize("name", ["relu", "gelu", "silu", "tanh"])
def test_the_functions_that_fcdense_writes(name: str) -> None:
    """(sum, bias) -> f, f', as they are compiled into the CPU's loops."""
    act = activations.get(name)
    assert isinstance(act, activations.Activation)
    scope: dict[str, Any] = {"__name__": name}
    exec(loops.tile_source(epilogue(act, True, True), np.dtype(np.float32), "r"), scope)
    scope["vector_math"] = STAND_INS
    rng = np.random.default_rng(6)
    x, w, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 6), (6, 9), (9,)))
    outs = [zeros(3, 9, dtype=np.float32) for _ in range(2)]
    lent = [OnDevice(a) for a in (x, w, b, *outs)]
    gpu_dense.product(*lent[:2], scope["element"], lent[2:3], outs=lent[3:], tiling=TINY)
    z, h = x.astype(float) @ w + b, 1e-6
    np.testing.assert_allclose(unharmed(outs[0]), act(z), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(unharmed(outs[1]), (act(z + h) - act(z - h)) / (2 * h), rtol=1e-5, atol=1e-5)


DAMAGE = {
    "no meeting before tiles are read": ("cuda.syncthreads()\n            for k in", "for k in"),
    "no meeting after": ("cuda.syncthreads()\n        for i in", "pass\n        for i in"),
    "rows beyond the end": ("start + i < matrix.shape[0] and ", ""),
    "k beyond the end": (" and k0 + k < matrix.shape[1]", ""),
    "sums beyond the last row": ("place[0] < left.shape[0] and ", ""),
    "sums beyond the last column": (" and place[1] < right.shape[0]", ""),
    "shared arrays on one line": ("(left_shape, real)\n        right", "(left_shape, real); right"),
    "a start that is not zero": ("sums[i, j] = 0", "sums[i, j] = 1"),
}


@pytest.fixture(params=DAMAGE, ids=lambda name: name.replace(" ", "_"))
def damaged(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ModuleType]:
    """The module with one thing changed."""
    text = Path(gpu_dense.__file__).read_text(encoding="utf-8")
    old, new = DAMAGE[request.param]
    assert text.count(old) == 1
    path = tmp_path / "damaged_gpu_dense.py"
    path.write_text(text.replace(old, new), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[path.stem]


def test_damaged_sources_fail(damaged: ModuleType) -> None:
    rng = np.random.default_rng(7)
    x, w = whole(rng, 5, 14).astype(np.float64), whole(rng, 14, 9).astype(np.float64)
    try:
        y = forward(x, w, None, gpu_dense.identity, kernels=damaged)
    except IndexError:
        return
    assert (y != x @ w).any()
