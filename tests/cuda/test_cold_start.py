"""What tests/gpu measures of a cold start runs; how long it takes is asked on a GPU alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from fcdense.backends import Device
from fcdense.backends.cuda import CudaBackend
from tests import emulation
from tests.cuda.cold_start import first_epoch, in_a_new_process
from tests.emulation import EmulatedDriver


@pytest.mark.skipif(not emulation.is_available(), reason="no g++ here")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_on_the_emulated_gpu(precision: str) -> None:
    driver = EmulatedDriver()
    assert first_epoch(Device("emu", 0, backend=CudaBackend(driver)), precision, (16, 8, 8, 4), 12) > 0.0
    assert any("gemm" in name for name in driver.launches)


def test_in_a_new_process(tmp_path: Path) -> None:
    assert in_a_new_process("cpu", "float32", tmp_path) > 0.0
