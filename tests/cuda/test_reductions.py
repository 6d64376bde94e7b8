"""How reductions are spread over a GPU: enough threads, each with enough to do, that read neighbouring numbers."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from fcdense import activations
from fcdense.backends.cuda import CudaBackend
from fcdense.cuda.launcher import SERIAL, THREADS, WHOLE
from fcdense.cuda.source import Kernel
from tests import emulation
from tests.emulation import EmulatedDriver

pytestmark = pytest.mark.skipif(not emulation.is_available(), reason="no g++ here")
F32 = np.dtype(np.float32)
WARP = 32


class Asked(EmulatedDriver):
    """Launches nothing, and remembers what it was asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Kernel, tuple[int, int, int], Any]] = []

    def launch(self, kernel: Kernel, grid: tuple[int, int, int], arguments: Any) -> None:
        self.asked.append((kernel, grid, arguments[0]))


CASES = [
    ((1 << 20,), (0,)),  # a norm
    ((1 << 17,), (0,)),
    ((4095,), (0,)),
    ((256, 10), (0,)),  # bias gradients
    ((256, 512), (0,)),
    ((4096, 512), (0,)),
    ((1000, 33), (0,)),
    ((1024, 1024), (1,)),  # sums of rows
    ((2, 20000), (1,)),
    ((64, 5000), (1,)),
    ((4096, 10), (1,)),
]


@pytest.mark.parametrize(("shape", "axes"), CASES)
def test_how_sums_are_spread(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    driver = Asked()
    backend = CudaBackend(driver)
    kept = tuple(n for axis, n in enumerate(shape) if axis not in axes)
    backend.reduce("sum", backend.empty(shape, F32), axes, out=backend.empty(kept, F32))
    ((kernel, (across, parts, _), given),) = driver.asked  # the last block joins the parts
    found = re.search(r"reduce<.*, (\d+), (\d+)>", kernel.text)
    assert found
    group, count, length = int(found[1]), math.prod(kept), math.prod(shape) // math.prod(kept)
    assert across * (kernel.threads // group) >= count
    assert parts * given["part"] >= length > (parts - 1) * given["part"]
    threads = count * group * parts
    each = given["part"] / group
    assert each <= WHOLE or threads > THREADS / 2, "few threads take long"
    assert parts == 1 or each >= SERIAL, "parts that are not worth their joining"
    assert parts == 1 or length > WHOLE * group or count * group < 1024, "parts that are not needed"
    assert threads >= 1024 or length <= SERIAL * group, "a few threads have it all to do"
    assert threads <= max(THREADS, count * group)
    reads_along_rows = axes[-1] == len(shape) - 1
    assert group % WARP == 0 if reads_along_rows else group == 1 or count < WARP, "a warp reads numbers far apart"


@pytest.mark.parametrize("length", [4096, 4097, 8191, 8192, 12287, 12288])
def test_sums_of_one_part_and_of_a_few(length: int, rng: np.random.Generator) -> None:
    backend = CudaBackend(EmulatedDriver())
    values, out = rng.integers(-9, 10, length), backend.zeros((), F32)
    backend.reduce("sum", backend.from_host(values.astype(np.float32)), (0,), out=out)
    assert backend.to_host(out) == values.sum()


@pytest.mark.parametrize("mode", ["overwrite", "accumulate"])
def test_sums_of_more_parts_than_a_block_joins(mode: Any, rng: np.random.Generator) -> None:
    """They are summed up by a second launch."""
    driver = EmulatedDriver()
    backend = CudaBackend(driver)
    dy, db = rng.integers(-9, 10, (5000, 40)), np.arange(40)
    dy_bo, db_o = (backend.from_host(array.astype(np.float32)) for array in (dy, db))
    backend.act_grad(dy_bo, None, activations.linear, out=None, db=db_o, mode=mode)
    assert driver.launches == ["sum"] * 2
    np.testing.assert_array_equal(backend.to_host(db_o), dy.sum(axis=0) + (db if mode == "accumulate" else 0))
    assert driver.damaged_guards() == 0
