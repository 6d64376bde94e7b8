"""Measuring products on the emulated GPU: what is asked, what is kept, and what is chosen afterwards."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fcdense as fc
import fcdense.cli
from fcdense.backends import Device
from fcdense.backends.cuda import CudaBackend
from fcdense.cuda import plan, tables, tuning
from fcdense.cuda.plan import Choice
from fcdense.errors import ArgumentError
from fcdense.tune import tune
from tests import emulation
from tests.emulation import EmulatedDriver

pytestmark = pytest.mark.skipif(not emulation.is_available(), reason="no g++ here")
SMALL = Choice("simt", "float32", plan.SIMT_SMALL, 1)


@pytest.fixture
def emu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    monkeypatch.setenv("FCDENSE_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "ROUNDS", 2)
    monkeypatch.setattr(tuning, "SECONDS", 1e-6)
    monkeypatch.setattr(tuning, "MOST_IN_TURN", 2)
    return Device("emu", 0, backend=CudaBackend(EmulatedDriver()))


class Clock:
    """What is served by the favourite takes a second, all else two."""

    def __init__(self, driver: EmulatedDriver, favourite: str) -> None:
        self._driver, self._favourite = driver, favourite

    def timed(self, calls: Any) -> float:
        del self._driver.launches[:]
        calls()
        return 1.0 if self._favourite in self._driver.launches[0] else 2.0


def step() -> None:
    layer = fc.nn.Dense(5, "gelu", in_features=7)
    layer(fc.tensor(np.ones((3, 7), np.float32))).sum().backward()


def test_the_fastest_is_kept_and_chosen(emu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = emu.backend
    assert isinstance(backend, CudaBackend)
    driver = backend.driver
    assert isinstance(driver, EmulatedDriver)
    monkeypatch.setattr(driver, "timed", Clock(driver, "simt").timed)
    with fc.use_device(emu):
        found = tune(step)
    buckets = ["float32 to float32 4x8x8 dw 4 program", "float32 to float32 8x8x4 ww 4"]
    assert [problem.bucket for problem, *_ in found.lines] == buckets
    assert set(json.loads(found.path.read_text())) == set(buckets)
    assert backend.products.plan.choose(found.lines[0][0]).family == "simt"
    for part in ("3 x 5 x 7 float32", "simt float32", "us", str(found.path)):
        assert part in repr(found)
    again = CudaBackend(EmulatedDriver())
    assert again.products.plan.choose(found.lines[0][0]).family == "simt"


def test_candidates_run_before_they_are_recorded(emu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that compiles itself at its first call, as Numba's does, may not be able to do that in a recording."""
    backend = emu.backend
    assert isinstance(backend, CudaBackend)
    driver = backend.driver
    assert isinstance(driver, EmulatedDriver)
    record, ran = driver.record, []

    def recorded(calls: Any) -> Any:
        ran.append(list(driver.launches))
        del driver.launches[:]
        return record(calls)

    monkeypatch.setattr(driver, "record", recorded)
    monkeypatch.setattr(driver, "timed", lambda calls: driver.launches.clear() or 1.0)
    measured = tuning.measure(backend, plan.Problem("float32", 3, 5, 7, 4, False, True, True, "float32"))
    assert len(ran) == len(measured) > 1
    assert all(ran)


def test_all_that_can_serve_is_measured(emu: Device) -> None:
    backend = emu.backend
    assert isinstance(backend, CudaBackend)
    problem = plan.Problem("float16", 20, 24, 300, 16, True, False, True, "float16")
    measured = tuning.measure(backend, problem)
    assert {choice for choice, _ in measured} == set(backend.products.plan.candidates(problem))
    assert len(measured) == 8  # four tilings, in one part and in two
    assert [m.seconds for m in measured] == sorted(m.seconds for m in measured)


@pytest.mark.parametrize(
    "problem",
    [
        plan.Problem("float16", 20, 24, 36, 8, True, False, True, "float16"),
        plan.Problem("bfloat16", 9, 17, 33, 2, False, True, False, "float32"),
        plan.Problem("float32", 6, 5, 8, 4, False, False, True, "float32"),
        plan.Problem("tf32", 8, 16, 12, 16, True, True, False, "float32"),
    ],
    ids=lambda problem: problem.bucket,
)
def test_what_is_measured_is_the_problem(emu: Device, monkeypatch: pytest.MonkeyPatch, problem: plan.Problem) -> None:
    """On operands that lie as its own do; in turn, by the memory of one set of them."""
    pytest.importorskip("ml_dtypes")  # knows the bfloat16 that arrays of such a problem have
    backend, met, sizes, sets = emu.backend, set(), [], 3
    assert isinstance(backend, CudaBackend)

    def in_turn(nbytes: int) -> int:
        sizes.append(nbytes)
        return sets

    def choose(self: Any, asked: plan.Problem) -> Choice:
        met.add(asked)
        return self._choice  # type: ignore[no-any-return]

    monkeypatch.setattr(tuning, "in_turn", in_turn)
    monkeypatch.setattr(tuning.Only, "choose", choose)
    measured = tuning.measure(backend, problem)
    assert met == {problem}
    width, depth, outs = (2 if "16" in problem.dtype else 4), problem.depth, 1 + problem.has_program
    stored = outs * problem.rows * problem.columns * np.dtype(problem.out).itemsize
    assert sizes == [width * depth * (problem.rows + problem.columns) + stored]
    launches = backend.driver.launches  # type: ignore[attr-defined]
    assert len(measured) > 1
    assert not len(launches) % sets


def test_what_cannot_run_after_all_is_left_out(
    emu: Device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backend, record = emu.backend, EmulatedDriver.record
    assert isinstance(backend, CudaBackend)
    problem = plan.Problem("float32", 8, 8, 8, 16, True, False, False, "float32")
    monkeypatch.setattr(backend.products, "plan", plan.Plan(backend.driver.architecture))  # without numba-cuda
    first, second = backend.products.plan.candidates(problem)

    def recorded(driver: Any, calls: Any) -> Any:
        number["of the record"] += 1
        if number["of the record"] in fails:
            raise ImportError("no compiler here")
        return record(driver, calls)

    monkeypatch.setattr(EmulatedDriver, "record", recorded)
    number, fails = {"of the record": 0}, {1}
    with caplog.at_level(logging.WARNING):
        assert [choice for choice, _ in tuning.measure(backend, problem)] == [second]
    assert f"{first} is left out: no compiler here" in caplog.text
    number, fails = {"of the record": 0}, {1, 2, 3, 4}
    with fc.use_device(emu):
        assert not tune(step).lines


def test_a_table_grows_and_a_damaged_one_is_passed_over(
    emu: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backend = emu.backend
    assert isinstance(backend, CudaBackend)
    monkeypatch.setenv("FCDENSE_CACHE", str(tmp_path / "not" / "there yet"))
    for _ in range(2):
        tables.require_folder(backend.driver)
    tables.write(backend.driver, {"a": SMALL})
    path = tables.write(backend.driver, {"b": Choice("cuBLASLt", "float32")})
    assert tables.read(backend.driver) == {"a": SMALL, "b": Choice("cuBLASLt", "float32")}
    path.write_text(path.read_text()[:-20])
    with caplog.at_level(logging.WARNING):
        assert tables.read(backend.driver) == {}
    for text in ("[]", "null", '{"a": {"family": "of another version", "arithmetic": "", "tiling": [], "parts": 1}}'):
        path.write_text(text)
        assert tables.read(backend.driver) == {}
    assert caplog.text.count("run 'fcdense tune' again") == 4


def test_a_cache_that_cannot_be_written_to_is_seen_before_anything_is_measured(
    emu: Device,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FCDENSE_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(emulation, "cache_folder", lambda: tmp_path / "emulated")
    called = []
    words = r"cannot be kept in .*tuned \(Not a directory\); expected a folder.* Name one in FCDENSE_CACHE"
    with fc.use_device(emu), pytest.raises(ArgumentError, match=words):
        tune(lambda: called.append(1))
    assert not called
    monkeypatch.setattr(fc.cli, "current_device", lambda: emu)
    assert fc.cli.main(["tune", "6,5,3", "--batch-size", "4"]) == 2
    assert "Name one in FCDENSE_CACHE" in capsys.readouterr().err
    assert not caplog.text


def test_what_cannot_be_kept_after_all_holds_for_this_process(
    emu: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backend = emu.backend
    assert isinstance(backend, CudaBackend)
    driver = backend.driver
    assert isinstance(driver, EmulatedDriver)
    monkeypatch.setattr(driver, "timed", Clock(driver, "mma").timed)
    folder = tables.path_of(driver).parent

    def step_and_break() -> None:
        with fc.use_precision("bfloat16"):
            step()
        folder.rmdir()
        folder.touch()

    with fc.use_device(emu), caplog.at_level(logging.WARNING):
        found = tune(step_and_break)
    assert found.path is None
    assert repr(found).endswith("\nnot kept")
    assert f"cannot be kept in {folder} (" in caplog.text
    assert "holds for this process alone. Name a folder that can be written to in FCDENSE_CACHE." in caplog.text
    assert "run 'fcdense tune' again" not in caplog.text
    for problem, _, measured in found.lines:
        assert backend.products.plan.choose(problem) == measured[0].choice
        assert backend.products.plan.why(problem, measured[0].choice) == "as measured"


def test_a_table_that_cannot_be_read_is_passed_over(emu: Device, caplog: pytest.LogCaptureFixture) -> None:
    backend = emu.backend
    assert isinstance(backend, CudaBackend)
    tables.path_of(backend.driver).mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        assert tables.read(backend.driver) == {}
    assert "cannot be read (Is a directory): products are served as if nothing was measured" in caplog.text


def test_what_cannot_be_tuned_is_refused(emu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    probes = fc.backends.probe
    monkeypatch.setattr(probes, "cuda_probes", lambda: (probes.Probe("driver", False, "it is not there."),))
    with pytest.raises(ArgumentError, match=r"nothing to tune on device 'cpu'.* is none: probe 'driver' failed: it is"):
        tune(step, "cpu")
    with fc.use_device("cpu"), pytest.raises(ArgumentError, match="multiplies no matrices on emu:0"):
        tune(step, emu)


def test_the_command(emu: Device, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fc.cli, "current_device", lambda: emu)
    assert fc.cli.main(["tune", "6,5,3", "--batch-size", "4", "--activation", "tanh"]) == 0
    shown = capsys.readouterr().out
    for part in ("products on emu:0", "4 x 5 x 6 float32", "4 x 3 x 5 float32", "5 x 3 x 4 float32", "kept in"):
        assert part in shown
    assert fc.cli.main(["tune", "6,5,3", "--device", "cpu"]) == 2
    assert "nothing to tune on device 'cpu'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        fc.cli.main(["tune", "6"])
    assert "expected features and outputs at least" in capsys.readouterr().err
