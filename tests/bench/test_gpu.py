"""What is measured on a GPU, on the emulated one: launches, passes over memory, products by each family of kernels."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fcdense import backends
from fcdense.backends import Device
from fcdense.backends.cuda import CudaBackend
from fcdense.bench import families, peers, questions, whole
from fcdense.bench.cases import Case, Grid, gathered, places, upload
from fcdense.bench.questions import launch
from fcdense.bench.questions.bandwidth import Pass
from fcdense.bench.questions.launch import Launch
from fcdense.bench.questions.products import Forward, InputGradient, Product, WeightGradient
from fcdense.bench.replays import Replays
from fcdense.bench.runner import max_error
from fcdense.cuda import plan, tuning
from fcdense.cuda.cublaslt import CublasLt
from fcdense.errors import DeviceError
from tests import emulation
from tests.cuda import fake_cuda, fake_cupy
from tests.cuda.cublaslt_cases import SIZE, WORKSPACE
from tests.cuda.fake_cublaslt import FakeCublasLt
from tests.emulation import EmulatedDriver

pytestmark = pytest.mark.skipif(not emulation.is_available(), reason="no g++ here")
KINDS = (Forward, InputGradient, WeightGradient)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> EmulatedDriver:
    monkeypatch.setattr(tuning, "MOST_IN_TURN", 3)
    monkeypatch.setattr(launch, "IN_A_GRAPH", 5)
    return EmulatedDriver()


@pytest.fixture
def emu(driver: EmulatedDriver) -> Device:
    return Device("emu", 0, backend=CudaBackend(driver))


def error_of(case: Case, run: Any) -> float:
    """Of the first calls."""
    run.time(case.steps)
    error = max_error(run.outputs(), case.exact())
    assert isinstance(error, float)
    return error


# ---- the clock -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("calls", "graphs"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_calls_are_counted_in_whole_graphs(calls: int, graphs: int) -> None:
    """A clock that gives each graph of four calls eight seconds, so that a call takes two."""
    launched: list[None] = []

    def timed(work: Callable[[], object]) -> float:
        work()
        return 8.0 * len(launched)

    run = Replays(lambda: launched.append(None), dict, timed=timed, each=4)
    assert run.time(calls).ns == 2_000_000_000 * calls
    assert len(launched) == graphs


# ---- launches and passes over memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", launch.HOW)
def test_launches_are_made(emu: Device, driver: EmulatedDriver, how: str) -> None:
    case = Launch(how)
    run = case.prepare(emu, case.data())
    assert run is not None
    before = len(driver.launches)
    run.time(case.steps)
    assert len(driver.launches) - before == {"kernel in a graph": 5, launch.PAIR: 10}.get(how, 1)
    assert max_error(run.outputs(), case.exact()) == 0.0
    run.time(3)
    assert max_error(run.outputs(), case.exact()) > 0.0, "the kernel counts all of its launches"


@pytest.mark.parametrize("how", launch.HOW)
def test_launches_through_cupy(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the driver that a GPU has, over a CuPy that runs on the processor, as late as a GPU may."""

    def next_stream(kernel: Any, grid: Any, arguments: Any) -> None:
        uint64 = np.dtype(np.uint64)
        state, out = (fake_cupy._at(int(at), (2,), uint64, None) for at in np.frombuffer(arguments, uint64))
        out[:] = state
        state[1] += 1

    machine = fake_cupy.install(monkeypatch)
    machine.run = next_stream
    monkeypatch.setattr(fake_cuda.Device, "synchronize", lambda _: machine.synchronize(), raising=False)
    from fcdense.cuda.cupy_driver import CupyDriver

    monkeypatch.setattr(launch, "IN_A_GRAPH", 5)
    device, case = Device("cuda", 1, backend=CudaBackend(CupyDriver(1))), Launch(how)
    run = case.prepare(device, case.data())
    assert run is not None
    assert run.time(case.steps).ns >= 0
    assert max_error(run.outputs(), case.exact()) == 0.0
    run.time(7)
    launched = case.exact()["launches"] * (3 if how in ("kernel in a graph", launch.PAIR) else 8)
    assert run.outputs()["launches"] == launched


def test_a_processor_launches_nothing() -> None:
    case = Launch(launch.HOW[0])
    assert case.prepare(backends.device("cpu"), case.data()) is None


@pytest.mark.parametrize("what", ["copy", "memcpy", "adamw"])
@pytest.mark.parametrize("name", ["emu", "numpy", "reference"])
def test_passes_compute_what_they_say(emu: Device, what: str, name: str) -> None:
    case = Pass(what, 1000)
    run = case.prepare(emu if name == "emu" else backends.device(name), case.data())
    if what == "memcpy" and name != "emu":
        assert run is None
        return
    error = error_of(case, run)
    assert 0.0 < error < (case.tolerance or 0.0) if what == "adamw" else error == 0.0


def test_cudas_own_copy_is_no_kernel_of_ours(emu: Device, driver: EmulatedDriver) -> None:
    case = Pass("memcpy", 1000)
    run = case.prepare(emu, case.data())
    assert isinstance(run, Replays)
    before = len(driver.launches)
    run.time(3)
    assert len(driver.launches) == before


def test_an_update_that_is_left_out_is_seen(emu: Device) -> None:
    case = Pass("adamw", 1000)
    run = case.prepare(emu, case.data())
    assert run is not None
    run.time(case.steps - 1)
    assert max_error(run.outputs(), case.exact()) > 10 * (case.tolerance or 0.0)


def test_bytes_of_passes() -> None:
    assert [sum(kernel) for what in ("copy", "memcpy") for kernel in Pass(what, 10).work] == [80, 80]
    assert [sum(kernel) for kernel in Pass("adamw", 10).work] == [280]


# ---- products --------------------------------------------------------------------------------------------------------


def test_a_part_of_an_array_is_compared(emu: Device) -> None:
    """At odd distances: all places within a tile have their turn."""
    assert [len(range(n)[places(n)]) for n in (1, 10, 64, 512, 16384)] == [1, 10, 64, 57, 64]
    assert {k % 128 for k in range(16384)[places(16384, 512)]} == set(range(0, 128))
    array = np.arange(24.0, dtype=np.float32).reshape(4, 6)
    part = gathered(emu, upload(emu, array), slice(None, None, 3), slice(None, None, 5))
    np.testing.assert_array_equal(part, [[0.0, 5.0], [18.0, 23.0]])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["gelu_tanh", "relu", "linear"])
def test_closed_forms_are_those_of_the_reference(kind: type[Product], activation: str) -> None:
    """The oracle of large products, against the reference backend, which computes all of a small one."""
    case = kind("float64", activation, 9, 8, 7)
    run = case.prepare(backends.device("reference"), case.data())
    assert run is not None
    assert error_of(case, run) < 1e-14
    case = kind("float32", activation, 9, 8, 7)
    assert error_of(case, case.prepare(backends.device("numpy"), case.data())) < (case.tolerance or 0.0)


def test_operands_do_not_stay_in_a_cache() -> None:
    """What is moved between two products of the same operands, against twice the 60 MB of an H200."""
    cases = [case for case in whole.cases({}) if isinstance(case, Product)]
    assert min(case.product for case in cases) == 2 * 256 * 784 * 512
    for case in cases:
        ((_, nbytes),) = case.work
        assert tuning.in_turn(nbytes) * nbytes > 2 * 60e6, case.label


@pytest.mark.parametrize("kind", KINDS)
def test_products_on_a_gpu(
    emu: Device, driver: EmulatedDriver, kind: type[Product], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = kind("bfloat16", "gelu_tanh", 40, 24, 16)
    begin, lanes = driver.begin_part, []

    def begin_part(lane: int, after: Sequence[int]) -> None:
        lanes.append(lane)
        begin(lane, after)

    monkeypatch.setattr(driver, "begin_part", begin_part)
    run = case.prepare(emu, case.data())
    assert lanes == [0, 0, 0], "one after another"
    assert isinstance(run, Replays)
    assert run.each == 3
    assert run.note == "mma bfloat16, 64 x 64 x 32"
    before = len(driver.launches)
    assert 0.0 < error_of(case, run) < (case.tolerance or 0.0)
    assert sum("gemm" in name for name in driver.launches[before:]) == 3, "one for each set of operands"
    assert not driver.damaged_guards()


def test_a_family_is_measured_by_its_fastest_tiling(
    emu: Device, driver: EmulatedDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock for which the small tiles in two parts are the fastest."""
    seconds = {"128 x 128 x 8": 5.0, "64 x 64 x 16": 4.0, "64 x 64 x 16, 2 parts": 3.0}
    backend = emu.backend
    assert isinstance(backend, CudaBackend)
    replays: list[Any] = []
    made = backend.replay

    def replay(calls: Any) -> Any:
        replays.append(made(calls))
        return replays[-1]

    def timed(work: Callable[[], object]) -> float:
        work()
        return seconds.get(replays[-1].describe()[0].partition("float32, ")[2], 9.0)

    monkeypatch.setattr(backend, "replay", replay)
    monkeypatch.setattr(driver, "timed", timed)
    case, before = WeightGradient("float32", "linear", 300, 20, 24), backend.products.plan
    run = families.by_family(emu, "simt", case, case.data())
    assert run is not None
    assert run.note == "simt float32, 64 x 64 x 16, 2 parts"
    assert backend.products.plan is before
    assert error_of(case, run) < (case.tolerance or 0.0)
    assert families.by_family(emu, "mma", case, case.data()) is None, "it is too small for it"
    assert families.by_family(emu, "simt", Launch(launch.HOW[0]), {}) is None


@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90a", "sm_100a", "sm_120"])
def test_every_family_is_a_peer(architecture: str) -> None:
    chosen = plan.Plan(architecture, has_library=True, has_numba=True)
    for dtype in ("bfloat16", "float32"):
        problem = plan.Problem(dtype, 512, 512, 512, 16, True, False, True, dtype)
        names = {f"cuda_{choice.family.lower()}" for choice in chosen.candidates(problem)}
        assert names <= set(importlib.import_module("fcdense.bench.candidates").peer_names())


# ---- the library -----------------------------------------------------------------------------------------------------


@pytest.fixture
def with_library(emu: Device, driver: EmulatedDriver, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCublasLt]:
    """The library in the place of the GPU's, for peers that are imported meanwhile."""
    library = FakeCublasLt()
    driver.library = CublasLt(WORKSPACE, SIZE, library)
    emu.put(CudaBackend(driver))
    monkeypatch.setattr(backends, "device", lambda name: emu)
    yield library
    for name in [name for name in sys.modules if name.startswith(f"{peers.__name__}.cuda_")]:
        del sys.modules[name]
        delattr(peers, name.rpartition(".")[2])
    assert not library.errors


def peer(name: str) -> ModuleType:
    return importlib.import_module(f"fcdense.bench.peers.{name}")


@pytest.mark.parametrize("kind", KINDS)
def test_the_library_with_its_epilogues(with_library: FakeCublasLt, kind: type[Product], driver: Any) -> None:
    case = kind("bfloat16", "gelu_tanh", 40, 24, 16)
    run = peer("cuda_cublaslt_fused").prepare(case, case.data())
    assert run.note in {f"algorithm {number} of 3" for number in (1, 2, 3)}
    del with_library.launches[:], driver.launches[:]
    assert 0.0 < error_of(case, run) < (case.tolerance or 0.0)
    assert len(with_library.launches) == 3
    assert len({algorithm for _, algorithm, _ in with_library.launches}) == 1
    assert set(driver.launches) <= {"copy"}, "nothing is left for a kernel of ours"


def test_an_algorithm_that_fails_is_passed_over(
    with_library: FakeCublasLt, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = WeightGradient("float32", "linear", 40, 24, 16)
    run = driver.library.run

    def fails(product: Any, stream: int, algorithm: Any) -> None:
        if algorithm.code[8] != sound:  # its number
            raise DeviceError("it fails")
        run(product, stream, algorithm)

    monkeypatch.setattr(driver.library, "run", fails)
    sound = 1
    assert peer("cuda_cublaslt_fused").prepare(case, case.data()).note == "algorithm 2 of 3"
    sound = 7
    with pytest.raises(DeviceError, match="runs none of its 3 algorithms"):
        peer("cuda_cublaslt_fused").prepare(case, case.data())


def test_the_library_has_one_gelu(with_library: FakeCublasLt) -> None:
    fused = peer("cuda_cublaslt_fused")
    for case in questions.cases(["products"], Grid(sizes=((4, 5, 6),), activations=("gelu",))):
        assert (fused.prepare(case, case.data()) is None) == (not isinstance(case, WeightGradient))
    case = Forward("float32", "gelu_tanh", 4, 5, 6)
    with pytest.raises(DeviceError, match="row stride of aux is not a multiple of 8"):
        fused.prepare(case, case.data())


@pytest.mark.parametrize("name", ["cuda_simt", "cuda_mma", "cuda_cublaslt"])
def test_families_are_peers(with_library: FakeCublasLt, name: str) -> None:
    case = WeightGradient("float16", "linear", 40, 24, 16)
    module = peer(name)
    assert dict(module.VERSIONS) == ({"cublaslt": "13.10.0"} if name == "cuda_cublaslt" else {})
    run = module.prepare(case, case.data())
    assert run.note.lower().startswith(name.removeprefix("cuda_"))
    assert error_of(case, run) < (case.tolerance or 0.0)
    assert module.prepare(Launch(launch.HOW[0]), {}) is None


def test_without_the_library_there_is_a_reason(with_library: FakeCublasLt, driver: Any) -> None:
    driver.library, driver.no_library = None, "cuBLASLt 13.1.0 does not start."
    with pytest.raises(DeviceError, match=r"works without cuBLASLt: cuBLASLt 13\.1\.0 does not start\.$"):
        peer("cuda_cublaslt")
