"""What is measured beside time: other processes, memory, the processor's peak."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fcdense.bench import disturbance, machine, memory, peak
from fcdense.bench.disturbance import Watch
from fcdense.errors import ArgumentError

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="read from /proc, which only Linux has")


def spin(seconds: float) -> None:
    """Use a core."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@linux
def test_own_work_is_no_disturbance() -> None:
    """The machine may be busy; but what this process takes, others cannot have."""
    start, watch = time.perf_counter(), Watch()
    spin(0.2)
    others, elapsed = watch.cores(), time.perf_counter() - start
    assert disturbance.clocks()[os.getpid()] >= 200_000_000
    assert 0.0 <= others <= machine.cores() - 0.2 / elapsed + 0.2


@linux
def test_the_work_of_others_is_one() -> None:
    process = multiprocessing.get_context("spawn").Process(target=spin, args=(60.0,), daemon=True)
    process.start()
    try:
        while disturbance.clocks()[process.pid or 0] < 100_000_000:
            time.sleep(0.01)
        before, start, watch = disturbance.clocks()[process.pid or 0], time.perf_counter(), Watch()
        time.sleep(0.2)
        used = disturbance.clocks()[process.pid or 0] - before
        assert used > 0
        assert watch.cores() >= 0.9e-9 * used / (time.perf_counter() - start)
    finally:
        process.kill()
        process.join()


def test_without_proc_nothing_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(disturbance, "PROC", tmp_path / "none")
    assert Watch().cores() == 0.0


def peaks() -> tuple[int, int]:
    """What 64 MiB of work add to this process, and what no work adds after it."""
    np.ones(32 * 2**20, np.uint8)  # held before, and given back
    before = memory.resident()
    found = memory.peak(lambda: np.ones(64 * 2**20, np.uint8).sum())
    return found - before, memory.peak(lambda: None) - memory.resident()


@linux
def test_peak_memory_is_that_of_the_work() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as fresh:  # this process has memory to give back meanwhile
        work, nothing = fresh.apply(peaks)
    assert 60 * 2**20 < work < 80 * 2**20
    assert nothing < 8 * 2**20, "the peak before is forgotten"


def test_memory_needs_linux(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "STATUS", tmp_path / "none")
    with pytest.raises(ArgumentError, match="measure without --memory"):
        memory.peak(lambda: pytest.fail("nothing is run"))


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")
def test_the_peak_of_this_processor() -> None:
    one, reason = peak.gflops(1)
    assert reason == ""
    assert one is not None
    a = np.random.default_rng(0).standard_normal((512, 512), dtype=np.float32)
    a @ a
    start = time.process_time()
    for _ in range(4):
        a @ a
    reached = 4 * 2e-9 * 512**3 / (time.process_time() - start)  # per core and second, whichever cores did it
    assert 1.0 < one < 2000.0
    assert reached < 1.3 * one, "a product is not faster than the peak; clocks vary"


def test_without_a_compiler_there_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peak.shutil, "which", lambda name: None)
    assert peak.gflops(1) == (None, "there is no C compiler (gcc or cc) to build bench/peak.c with.")
    monkeypatch.undo()
    if shutil.which("gcc"):
        monkeypatch.setattr(peak, "SOURCE", tmp_path / "none.c")
        found, reason = peak.gflops(1)
        assert found is None
        assert reason.startswith("bench/peak.c cannot be built")
