"""Damaged kernels on the emulated GPU: that a kernel passes the tests means little if a damaged one would pass too."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcdense.backends.cuda import CudaBackend
from fcdense.cuda.source import Kernel, next_stream
from tests import emulation
from tests.cuda.work import F32, TWICE, WORK, HostArray, products, rows, undamaged
from tests.emulation import ORDERS, SOURCES, EmulatedDriver

pytestmark = pytest.mark.skipif(not emulation.is_available(), reason="no g++ here")


class DamagedDriver(EmulatedDriver):
    """Replaces the text `old` in one header, at its `number`-th place."""

    def __init__(self, header: str, old: str, new: str, number: int, options: tuple[str, ...] = ()) -> None:
        super().__init__(options)
        self._header = header
        text = Path(SOURCES / "cuda" / header).read_text(encoding="utf-8")
        parts = text.split(old)
        assert len(parts) > number + 1, f"{header} has no place {number} of {old!r}"
        self._text = old.join(parts[: number + 1]) + new + old.join(parts[number + 1 :])
        self._kept: list[Any] = []

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> emulation.EmulatedArray:
        self._kept.append(super().empty(shape, dtype))
        made: emulation.EmulatedArray = self._kept[-1]
        return made

    def launch(self, kernel: Kernel, grid: tuple[int, int, int], arguments: HostArray) -> None:
        super().launch(kernel._replace(text=self._expanded(kernel.text, set())), grid, arguments)

    def _expanded(self, text: str, seen: set[str]) -> str:
        """`text` with each header in the place of its first inclusion."""

        def header(found: re.Match[str]) -> str:
            name = found[1]
            if name in seen:
                return ""
            seen.add(name)
            path = SOURCES / "cuda" / name
            if not path.exists():
                return found[0]
            own = self._text if name == self._header else path.read_text(encoding="utf-8")
            return self._expanded(own.replace("#pragma once", ""), seen)

        return re.sub(r'#include "(.*)"', header, text)


DAMAGE = {
    "a block is used before it is there": ("products", "gemm_simt.cuh", "        __syncthreads();\n", "", 0),
    "a block is written over while it is used": ("products", "gemm_simt.cuh", "        __syncthreads();\n", "", 1),
    "column sums before all are there": ("products", "product.cuh", "    __syncthreads();\n", "", 0),
    "the next block of the depth": ("products", "gemm_simt.cuh", "k0 + Tiling::DEPTH, depth", "k0, depth", 0),
    "a column too many": ("products", "gemm_simt.cuh", "row >= p.rows || column >= p.columns", "row >= p.rows", 0),
    "a row too many": ("products", "gemm_simt.cuh", "row >= p.rows || column >= p.columns", "column >= p.columns", 0),
    "depth beyond the end": ("products", "gemm_simt.cuh", "i < end && k < depth", "i < end", 0),
    "a tile nobody waits for": ("tensor cores", "gemm_mma.cuh", "cp_async_wait<STAGES - 2>();", "", 0),
    "a tile waited for too late": (
        "tensor cores",
        "gemm_mma.cuh",
        "cp_async_wait<STAGES - 2>",
        "cp_async_wait<STAGES - 1>",
        0,
    ),
    "a tile that others have not copied": ("tensor cores", "gemm_mma.cuh", "        __syncthreads();", "", 0),
    "a slab written over": ("tensor cores", "gemm_mma.cuh", "        __syncthreads();\n", "", 0),
    "a slab that is not there": ("tensor cores", "gemm_mma.cuh", "        __syncthreads();\n", "", 1),
    "another permutation": ("tensor cores", "fragments.cuh", "chunk ^ (line & 7)", "chunk ^ (at & 7)", 0),
    "a line too many": (
        "tensor cores",
        "fragments.cuh",
        "line0 + line < line_end ? of_line : 0",
        "of_line",
        0,
    ),
    "a line too long": ("tensor cores", "fragments.cuh", "rest < NUMBERS ? rest : NUMBERS", "NUMBERS", 0),
    "a part left out": ("tensor cores", "product.cuh", "z < gridDim.z; z++", "z + 1 < gridDim.z; z++", 0),
    "a row of parts too many": ("tensor cores", "product.cuh", " && i0 + line < p.rows", "", 0),
    "a column of parts too many": ("tensor cores", "product.cuh", " && column < p.columns; line", "; line", 0),
    "the first to come": ("tensor cores", "arrivals.cuh", "before == count - 1", "before == 0", 0),
    "a count that nobody waits for": ("tensor cores", "arrivals.cuh", "    __syncthreads();\n", "", 0),
    "a count that is written over": (
        "tensor cores",
        "arrivals.cuh",
        "    __syncthreads();  // the place in shared memory is free again\n",
        "",
        0,
    ),
    "one count for all tiles": ("tensor cores", "gemm_mma.cuh", "arrivals + blockIdx.x", "arrivals", 0),
    "column sums of one tile": ("products", "product.cuh", "i < tile_rows; i++", "i < 1; i++", 0),
    "a part that is not joined": ("rows", "reductions.cuh", "y < gridDim.y; y", "y + 1 < gridDim.y; y", 0),
    "one count for all columns": ("many sums", "reductions.cuh", "a.arrivals + blockIdx.x", "a.arrivals", 0),
    "no maximum of the row": ("rows", "rows.cuh", "group.template joined<Maximum>(largest)", "largest", 0),
    "a row that is not there": ("rows", "rows.cuh", "row < a.rows && group.rank == 0", "group.rank == 0", 0),
    "a maximum before all are there": ("rows", "groups.cuh", "            __syncthreads();\n", "", 1),
    "a maximum that is written over": ("rows", "groups.cuh", "            __syncthreads();\n", "", 0),
    "a block counted before it is done": (
        "tensor cores",
        "arrivals.cuh",
        "    __syncthreads();  // all of this block have written\n",
        "",
        0,
    ),
    # What is read and then left aside changes no number: it is seen because it lies in no array.
    "a row of A too many": ("products", "gemm_simt.cuh", "i < end && k < depth", "k < depth", 0),
    "a part too long": ("products", "gemm_simt.cuh", "p.depth - start < p.part ? p.depth : ", "", 0),
    "a part too long for tensor cores": (
        "tensor cores",
        "gemm_mma.cuh",
        "p.depth - start < p.part ? p.depth : ",
        "",
        0,
    ),
    "a row too many on tensor cores": ("tensor cores", "gemm_mma.cuh", "target.i0 + row >= p.rows || ", "", 0),
    "a column too many on tensor cores": ("tensor cores", "gemm_mma.cuh", " || column >= p.columns", "", 0),
    "less than nothing": ("tensor cores", "fragments.cuh", "rest < 0 ? 0 : ", "", 0),
    "a number too many": ("odd lines", "fragments.cuh", "count ? *source : T{}", "*source", 0),
    "a row of the next tile": ("added parts", "product.cuh", "line < Tiling::ROWS && ", "", 0),
    "a part too many": ("added parts", "product.cuh", "z < gridDim.z; z++", "z <= gridDim.z; z++", 0),
    "a sum of a column too many": ("products", "product.cuh", " && j0 + j < p.columns", "", 0),
    "a sum of sums too many": ("products", "product.cuh", " && j0 + j < p.columns", "", 1),
    "a row of tiles too many": ("products", "product.cuh", "i < tile_rows", "i <= tile_rows", 0),
    "rows that are not there": ("rows", "rows.cuh", "row < a.rows ? row : a.rows - 1", "row", 0),
    "losses of rows that are not there": ("cross entropy", "rows.cuh", "row < a.rows ? row : a.rows - 1", "row", 1),
    "a class too many for the maximum": ("rows", "rows.cuh", "k < classes", "k <= classes", 0),
    **{
        f"a class too many at loop {number}": (work, "rows.cuh", "k < a.classes", "k <= a.classes", number)
        for number, work in enumerate(["rows", "rows", *["cross entropy"] * 3])
    },
    "a gradient nobody asked for": ("cross entropy", "rows.cuh", "a.dz && row < a.rows", "row < a.rows", 0),
    "a gradient of a row too many": ("cross entropy", "rows.cuh", "a.dz && row < a.rows", "a.dz", 0),
    "a weight that is not there": ("cross entropy", "rows.cuh", "if (a.weight) ", "", 0),
    "a loss too many": ("cross entropy", "rows.cuh", "b < a.rows", "b <= a.rows", 0),
    "a sum too many": ("many sums", "reductions.cuh", "i >= a.kept || ", "", 0),
    "sums that are not there": ("many sums", "reductions.cuh", "i < a.kept ? i : a.kept - 1", "i", 0),
    "a number of the next part": ("many sums", "reductions.cuh", "k < end", "k <= end", 0),
    "a last part too long": ("many sums", "reductions.cuh", "rest < a.part ? rest : a.part", "a.part", 0),
    "a part of sums too many": ("many sums", "reductions.cuh", "y < gridDim.y; y", "y <= gridDim.y; y", 0),
    "an element too many": ("elements", "elementwise.cuh", "i < a.size", "i <= a.size", 0),
    "a copy too many": ("elements", "elementwise.cuh", "i < a.size", "i <= a.size", 1),
    "a number read for dropout too many": ("elements", "random.cuh", "e < rest", "e <= rest", 0),
    "a number dropped too many": ("elements", "random.cuh", "e < rest", "e <= rest", 1),
    "eight numbers read that are not there": ("elements", "random.cuh", "n < a.packed", "n <= a.packed", 0),
    "eight numbers written that are not there": ("elements", "random.cuh", "n < a.packed", "n <= a.packed", 1),
    "a number of a row too many": ("elements", "indexing.cuh", "i < size;", "i <= size;", 0),
    "a number added too many": ("elements", "indexing.cuh", "i < size;", "i <= size;", 1),
    "an index too many": ("elements", "indexing.cuh", "k < a.count;", "k <= a.count;", 0),
    "a unit of a round too many": ("rounds", "rounds.cuh", "i < size;", "i <= size;", 0),
    "a row that was not asked for": ("rounds", "rounds.cuh", "order[place.quotient]", "place.quotient", 0),
    "numbers to convert that are not there": ("rounds", "rounds.cuh", "p.bytes == sizeof(T)", "false", 0),
    "results of the first round alone": ("rounds", "rounds.cuh", "(order ? 0 : number * size)", "0", 0),
    "an end of a round too many": ("rounds", "rounds.cuh", "!is_last_of(gridDim.x * gridDim.y, a.arrivals) || ", "", 0),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_seen(name: str) -> None:
    work, header, old, new, number = DAMAGE[name]
    seen = False
    for order in ORDERS:
        driver = DamagedDriver(header, old, new, number)
        driver.order = order
        try:
            results = WORK[work](CudaBackend(driver))
        except RuntimeError:
            seen = True
            break
        same = [np.array_equal(a, b, equal_nan=True) for a, b in zip(results, undamaged(work), strict=True)]
        seen = not all(same) or driver.damaged_guards() > 0
        if seen:
            break
    assert seen


def test_threads_that_wait_for_each_other_are_named() -> None:
    driver = DamagedDriver(
        "rows.cuh",
        "    const Group<THREADS> group;\n",
        "    const Group<THREADS> group;\n    if (threadIdx.x) __syncthreads();\n",
        0,
    )
    with pytest.raises(RuntimeError, match=r"softmax, block \(0, 0, 0\): threads wait for each other for ever"):
        rows(CudaBackend(driver))


def test_addresses_that_no_copy_takes_are_seen() -> None:
    """Also where nothing is copied from them, so that no number tells."""
    driver = DamagedDriver("fragments.cuh", "source = from +", "source = !count + from +", 0)
    with pytest.raises(RuntimeError, match=r"gemm_mma.*: an address is no multiple of the bytes"):
        WORK["tensor cores"](CudaBackend(driver))


def test_addresses_from_which_numbers_cannot_be_read_at_once_are_seen() -> None:
    driver = DamagedDriver("operands.cuh", "static_cast<T*>(operand.data) +", "static_cast<T*>(operand.data) + 1 +", 0)
    backend = CudaBackend(driver)
    x, out = (backend.empty((8,), F32) for _ in range(2))
    with pytest.raises(RuntimeError, match=r"twice, block \(0, 0, 0\): an address is no multiple of the bytes"):
        backend.map(TWICE, (x,), out=(out,))


def test_what_is_undefined_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    driver = DamagedDriver(
        "gemm_simt.cuh",
        "    FromA next_a;\n",
        "    const int huge = p.rows + 2147483647;\n    FromA next_a;\n    if (huge == 5) return;\n",
        0,
        ("-fsanitize=undefined",),
    )
    products(CudaBackend(driver))
    assert "runtime error: signed integer overflow" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a row of A too many", r"gemm_simt and relu_epilogue, block \(1, 0, 0\): it reads what is in no array"),
        ("a loss too many", r"cross_entropy, block \(0, 0, 0\): it reads what is in no array"),
        ("a sum too many", r"sum, block \(1, \d+, 0\): it writes what is in no array"),
        ("a block counted before it is done", r"a thread writes to an array although its block was counted as done"),
    ],
)
def test_what_lies_outside_is_named(name: str, words: str) -> None:
    work, *damage = DAMAGE[name]
    with pytest.raises(RuntimeError, match=words):
        WORK[work](CudaBackend(DamagedDriver(*damage)))


def test_memory_is_gone_with_its_array() -> None:
    driver, kernel = EmulatedDriver(), next_stream()
    state, out = driver.upload(np.zeros(2, np.uint64)), driver.empty((2,), np.dtype(np.uint64))
    arguments = np.zeros(1, kernel.arguments)
    arguments["state"], arguments["out"] = driver.address(state), driver.address(out)
    driver.launch(kernel, (1, 1, 1), arguments)
    del out
    with pytest.raises(RuntimeError, match="it writes what is in no array"):
        driver.launch(kernel, (1, 1, 1), arguments)


def test_shared_memory_is_as_large_as_was_asked_for() -> None:
    class Frugal(EmulatedDriver):
        def launch(self, kernel: Kernel, grid: tuple[int, int, int], arguments: HostArray) -> None:
            super().launch(kernel._replace(shared=0), grid, arguments)

    with pytest.raises(RuntimeError, match="nor in the shared memory that it asked for"):
        products(CudaBackend(Frugal()))
