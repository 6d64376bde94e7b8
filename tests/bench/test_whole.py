"""The whole comparison on a GPU, which is the emulated one: what is asked for, what is printed, what is left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fcdense.backends import Device
from fcdense.backends.cuda import CudaBackend
from fcdense.bench import cli, runner, whole
from fcdense.bench.candidates import CandidateError
from fcdense.bench.cases import Arrays, Case, Grid, Lap, Run
from fcdense.bench.cli import DONE, main
from fcdense.bench.families import by_family
from fcdense.bench.questions import bandwidth, launch
from fcdense.bench.questions.products import Product
from fcdense.bench.questions.train import Train
from fcdense.cuda import tuning
from tests import emulation
from tests.emulation import EmulatedDriver

LAUNCHES, PASSES, PRODUCTS = 5, 3, 3
"""Cases of a question; products for each size."""

GPU = {"name": "Chip 200", "architecture": "sm_90", "multiprocessors": 2, "memory_bytes": 1, "l2_bytes": 1}
GPU |= {"driver": "580.1", "cuda": 13000, "runtime": 13000, "nvrtc": "13.5", "cublaslt": "13.1.0"}


class Local:
    """A candidate in this process. A call of it takes as long as its name; only the first ones are made."""

    def __init__(self, name: str, prepare: Callable[[Case, Arrays], Run | None]) -> None:
        self.name, self.patience = name, 250.0
        self.versions: dict[str, str] = {}
        self.patiences: list[float] = []
        self.prepared: list[Case] = []
        self._prepare = prepare
        self.run: Any = None

    def prepare(self, case: Case) -> bool:
        self.patiences.append(self.patience)
        self.prepared.append(case)
        self.run = self._prepare(case, case.data())
        self._is_new = True
        return self.run is not None

    def time(self, calls: int) -> Lap:
        if self._is_new:
            self.run.time(calls)
        self._is_new = False
        return Lap(1000 * len(self.name) * calls, 0.0)

    def outputs(self) -> Arrays:
        found: Arrays = self.run.outputs()
        return found

    def note(self) -> str:
        return str(self.run.note)

    def dismiss(self) -> None:
        """There is no process."""

    close = dismiss


@pytest.fixture(scope="module")
def emu() -> Device:
    if not emulation.is_available():
        pytest.skip("no g++ here")
    return Device("emu", 0, backend=CudaBackend(EmulatedDriver()))


@pytest.fixture
def candidates(emu: Device, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Local]]:
    """Candidates on the emulated GPU, and all that is measured there at tiny sizes."""
    found = [
        Local("cuda:0", lambda case, data: case.prepare(emu, data)),
        Local("cuda_simt", lambda case, data: by_family(emu, "simt", case, data)),
        Local("cuda_torch", lambda case, data: case.prepare_eager(emu, data) if isinstance(case, Train) else None),
    ]
    asked: list[Any] = []

    def find(devices: list[str], others: list[str], patience: float) -> Any:
        asked.append((devices, others, patience))
        return found, {"cuda_jax": "there is no JAX."}

    monkeypatch.setattr(cli, "find", find)
    monkeypatch.setattr(cli.runner.machine, "gpu", lambda: dict(GPU))
    monkeypatch.setattr(tuning, "MOST_IN_TURN", 2)
    monkeypatch.setattr(launch, "IN_A_GRAPH", 3)
    monkeypatch.setattr(
        bandwidth, "cases", lambda grid: [bandwidth.Pass(what, 1000) for what in ("copy", "memcpy", "adamw")]
    )
    sizes = Grid(sizes=((40, 24, 16),), activations=("gelu_tanh",), dtype="bfloat16")
    small = Grid(networks=((16, 8, 8),), batches=(12,), optimizers=("sgd",), dtype="bfloat16")
    parts = ((("launch", "bandwidth"), Grid()), (("products",), sizes), (("train",), small))
    monkeypatch.setattr(whole, "PARTS", parts)
    monkeypatch.setenv("COLUMNS", "200")
    yield found
    assert all(one == (["cuda"], ["all"], 250.0) for one in asked)


QUICK = ["--min-time", "0.001", "--warmup", "0", "--rounds", "3"]


def test_one_option_is_enough(candidates: list[Local], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "a.json"
    assert main(["--device", "cuda", *QUICK, "--commit", "abc123", "--json", str(path)]) == DONE
    data = json.loads(path.read_text())
    rows = {(row["question"], row["label"], row["candidate"]): row for row in data["rows"]}
    assert len(rows) == LAUNCHES + PASSES + 2 * PRODUCTS + 2
    assert all(row["error"] <= row["tolerance"] for row in rows.values() if row["tolerance"] is not None)
    assert rows["products", "forward 40x24x16", "cuda:0"]["note"] == "mma bfloat16, 64 x 64 x 32"
    assert rows["products", "forward 40x24x16", "cuda:0"]["work"] == [[30720, 5248]]
    assert data["machine"]["gpu"] == GPU
    assert data["machine"]["peak_gflops"] is None, "of the processor"
    assert data["missing"] == {"cuda_jax": "there is no JAX."}
    assert data["plan"] == {"min_time": 0.001, "warmup": 0.0, "rounds": 3, "max_others": whole.PLAN.max_others}
    assert data["commit"]
    shown = " ".join(capsys.readouterr().out.split())
    # 6 letters are 6 us; the copy of 8000 bytes is as fast as that, and so is the light of every other kernel at most
    for part in (
        "launch (one thread): time of a call",
        "kernel in a graph 6.00 µs",
        "bandwidth (float32): rate",
        "copy of 1,000 1.33 GB/s",
        "products (gelu_tanh, bfloat16): of light",
        "forward 40x24x16 100 % 67 %",
        "simt bfloat16, 64 x 64 x 16",
        "train (relu, bfloat16, sgd)",
        "16-8-8, batch 12 6.00 µs 1.67x",
        "Chip 200 (sm_90), driver 580.1 for CUDA 13.0, NVRTC 13.5, cuBLASLt 13.1.0",
        "0.00512 TFLOP/s for products of bfloat16, 0.00133 TB/s for copies, 6.00 µs for a kernel of one thread",
        "cuda_jax was not measured: there is no JAX.",
    ):
        assert part in shown
    assert main(["report", str(path), "--peers", "--op", "train"]) == DONE
    assert "of light" in capsys.readouterr().out, "by rates that stand in other tables"


def test_options_narrow_it(candidates: list[Local], tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert main(["--device", "cuda", *QUICK, "--dtype", "float32", "--sizes", "9x8x7", "--json", str(path)]) == DONE
    rows = json.loads(path.read_text())["rows"]
    assert {row["case"]["dtype"] for row in rows if "dtype" in row["case"]} == {"float32"}
    assert {row["label"] for row in rows if row["question"] == "products"} == {
        f"{role} 9x8x7" for role in ("forward", "input gradient", "weight gradient")
    }


def test_when_the_time_is_over_nothing_is_begun(
    candidates: list[Local], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50 seconds pass with each case; the first product is the ninth."""
    now = [0.0]
    run = cli.runner.run

    def slowly(*arguments: Any) -> Any:
        now[0] += 50.0
        return run(*arguments)

    monkeypatch.setattr(cli.runner, "run", slowly)
    monkeypatch.setattr(cli.time, "monotonic", lambda: now[0])
    path = tmp_path / "a.json"
    assert main(["--device", "cuda", *QUICK, "--time-limit", "450", "--json", str(path)]) == DONE
    data = json.loads(path.read_text())
    assert {row["question"] for row in data["rows"]} == {"launch", "bandwidth", "products"}
    over = [
        "products input gradient 40x24x16 (gelu_tanh, bfloat16)",
        "products weight gradient 40x24x16 (gelu_tanh, bfloat16)",
        "train 16-8-8, batch 12 (relu, bfloat16, sgd)",
    ]
    assert data["missing"] == {"cuda_jax": "there is no JAX."} | dict.fromkeys(over, cli.OVER)
    assert candidates[0].patiences == [250.0] * 4 + [200.0, 150.0, 100.0, 50.0, runner.AT_LEAST]
    monkeypatch.setattr(cli, "find", lambda *_: (candidates, {}))
    again_measured: list[str] = []

    def note(*arguments: Any) -> Any:
        again_measured.append(cli.problem(arguments[1]))
        return run(*arguments)

    monkeypatch.setattr(cli.runner, "run", note)
    assert main(["--device", "cuda", *QUICK, "--json", str(path), "--append"]) == DONE
    assert again_measured == over
    again = json.loads(path.read_text())
    assert again["missing"] == {"cuda_jax": "there is no JAX."}
    assert len(again["rows"]) == LAUNCHES + PASSES + 2 * PRODUCTS + 2


def test_one_that_compiles_until_the_end_leaves_the_others(
    candidates: list[Local], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one takes all the time that there is, and is ended; the others still have their turn."""
    now = [0.0]
    first = candidates[0]
    first.patience = 1000.0
    prepare = first.prepare

    def for_ever(case: Case) -> bool:
        if isinstance(case, Train):
            now[0] += first.patience
            raise CandidateError("its time is over")
        return prepare(case)

    monkeypatch.setattr(first, "prepare", for_ever)
    monkeypatch.setattr(cli.time, "monotonic", lambda: now[0])
    path = tmp_path / "a.json"
    assert main(["--device", "cuda", *QUICK, "--json", str(path)]) == DONE
    assert now[0] == 450.0
    data = json.loads(path.read_text())
    assert [row["candidate"] for row in data["rows"] if row["question"] == "train"] == ["cuda_torch"]
    assert data["missing"]["cuda:0, train 16-8-8, batch 12 (relu, bfloat16, sgd)"] == "its time is over"
    assert candidates[2].patiences[-1] == runner.AT_LEAST


def test_a_candidate_that_breaks_down_leaves_the_others(candidates: list[Local], tmp_path: Path) -> None:
    def breaks(calls: int) -> Lap:
        if calls > 1 and isinstance(candidates[1].prepared[-1], Product):
            raise CandidateError("an illegal memory access")
        return time(calls)

    time = candidates[1].time
    candidates[1].time = breaks  # type: ignore[method-assign]
    path = tmp_path / "a.json"
    assert main(["--device", "cuda", *QUICK, "--json", str(path)]) == DONE
    data = json.loads(path.read_text())
    failed = "cuda_simt, products forward 40x24x16 (gelu_tanh, bfloat16)"
    assert data["missing"][failed] == "an illegal memory access"
    assert {row["candidate"] for row in data["rows"]} == {"cuda:0", "cuda_torch"}


@pytest.mark.parametrize("limit", [40.0, 100.0, 240.0, 350.0, 450.0])
def test_what_is_kept_for_the_others(limit: float) -> None:
    """At least 200 seconds, or what is left beside 0.3 of a short time."""
    assert limit - whole.patience(limit) == pytest.approx(min(200.0, 0.7 * limit))


def test_what_is_measured() -> None:
    found = whole.cases({})
    count = {question: sum(case.question == question for case in found) for question in questions_of(found)}
    assert count == {"launch": LAUNCHES, "bandwidth": PASSES, "products": 2 * PRODUCTS * 6, "train": 4 + 2}
    labels = [case.label for case in found if case.question == "train"]
    small = "784-512-512-10, batch 256"
    wide = [f"{'-'.join([str(d)] * 5)}, batch 16384" for d in (512, 1024, 2048, 4096)]
    assert labels == [small, *wide, small]
    quick = [case.question == "products" and case.setting.endswith("bfloat16") for case in found]
    last = len(quick) - 1 - quick[::-1].index(True)
    assert last < found.index(next(case for case in found if case.label == wide[0])), "minutes come after seconds"
    assert {case.setting for case in found if case.question == "train"} == {
        "gelu, bfloat16, adamw",
        "relu, bfloat16, adam",
        "relu, float32, adam",
    }


def questions_of(cases: list[Case]) -> dict[str, None]:
    return dict.fromkeys(case.question for case in cases)


def check_small_sizes(path: Path) -> None:
    """Our own part of it, at small sizes."""
    options = ["--op", "launch,bandwidth,products,train", "--sizes", "256x128x64", "--networks", "64-64-10"]
    options += ["--dtype", "bfloat16", "--activation", "gelu_tanh", "--optimizer", "adamw", "--json", str(path)]
    assert main(["--device", "cuda", *QUICK, *options]) == DONE
    data = json.loads(path.read_text())
    assert len(data["rows"]) == LAUNCHES + PASSES + PRODUCTS + 3
    assert data["missing"] == {}
    for row in data["rows"]:
        assert row["tolerance"] is None or row["error"] <= row["tolerance"], row["label"]


def test_small_sizes(candidates: list[Local], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "find", lambda *_: (candidates[:1], {}))
    check_small_sizes(tmp_path / "a.json")


@pytest.mark.gpu
@pytest.mark.alone
def test_on_a_gpu(tmp_path: Path) -> None:
    check_small_sizes(tmp_path / "a.json")
