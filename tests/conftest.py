"""What every test may rely on: which markers need what, and the same random numbers every time."""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import signal
import zlib
from pathlib import Path

import hypothesis
import numpy as np
import pytest

# The same examples on every machine, and no failure because a machine was busy.
hypothesis.settings.register_profile("fcdense", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fcdense")

os.environ.setdefault("FCDENSE_DEVICE", "cpu")  # what names no device is a test of the CPU, beside a GPU too

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells have it in what they start in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@functools.cache
def cuda_missing() -> str:
    """Why there is no CUDA device, or "". Asks the driver, so that a broken backend cannot skip its own tests."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no CUDA driver (libcuda.so.1) on this machine"
    count = ctypes.c_int()
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status:
        return f"the CUDA driver answers with error {status}"
    return "" if count.value else "the CUDA driver finds no device"


def pytest_collection_finish() -> None:
    """Leave what was collected out of garbage collection: with it, each of the suite's collections takes 0.3 s."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked ``gpu`` where there is none, with the reason."""
    if item.get_closest_marker("gpu") and (reason := cuda_missing()):
        pytest.skip(reason)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by the test's own name: repeatable, and different from test to test.

    A GPU is given the numbers of its emulation.
    """
    name = request.node.nodeid.replace("-cuda]", "-emu]")
    return np.random.default_rng(zlib.crc32(name.encode()))


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a user who begins: with nothing in it, no cache, and no device chosen."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FCDENSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FCDENSE_DEVICE", raising=False)
    return tmp_path
