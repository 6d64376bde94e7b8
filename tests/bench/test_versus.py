"""Tables that compare libraries."""

from __future__ import annotations

from typing import Any

import pytest

from fcdense.bench.results import NO_RESULT, Row
from fcdense.bench.versus import tables
from tests.bench.made_up import results, row


def rows(label: str = "8-6-5, batch 4", **seconds: float) -> list[Row]:
    """A row for each candidate, whose samples all took as long; the limits have no results."""
    found = []
    for name, taken in seconds.items():
        error = NO_RESULT if name.startswith("limit") else 1e-7
        found.append(row(name, taken, label, question="train", samples=[taken] * 9, error=error))
    return found


def test_speed_is_told_against_libraries_and_limits() -> None:
    whole = results(*rows(cpu=2e-3, torch=3e-3, jax=1e-3, limit_numpy=1.2e-3, limit_torch=0.5e-3, sklearn=9e-3))
    whole.machine["peak_gflops"] = 8.0
    speed, times, errors = tables(whole)
    assert speed.title == "train (relu, float32)"
    assert dict(zip(speed.headings, speed.rows[0], strict=True)) == {
        "": "8-6-5, batch 4",
        "cpu": "2.00 ms",
        "times torch": "1.50x (1.50–1.50)",
        "times jax": "0.500x (0.500–0.500)",
        "products\nonly": "500 µs",
        "products\n/ step": "25 %",
        "of FMA\npeak": "25 %",
    }
    assert times.headings == ["", "cpu", "torch", "jax", "sklearn", "limit_numpy", "limit_torch"]
    assert times.rows[0][4] == "9.00 ms"
    assert errors.headings == ["", "cpu", "torch", "jax", "sklearn"]
    assert errors.rows == [["8-6-5, batch 4", *["1.0e-07"] * 4]]


def test_what_is_not_there_is_left_out() -> None:
    speed, times, _ = tables(results(*rows(cpu=2e-3, numpy=3e-3)))
    assert speed.headings == ["", "cpu"]
    assert times.rows == [["8-6-5, batch 4", "2.00 ms", "3.00 ms"]]


def test_a_case_that_a_candidate_lacks_has_an_empty_cell() -> None:
    one, two = rows(cpu=1.0, torch=2.0, limit_numpy=0.5), rows("8-5, batch 1", cpu=1.0)
    speed, times, _ = tables(results(*one, *two))
    assert speed.rows[1] == ["8-5, batch 1", "1.00 s", "–", "–", "–"]
    assert times.rows[1] == ["8-5, batch 1", "1.00 s", "–", "–"]
    speed, times, _ = tables(results(*one, *rows("8-5, batch 1", torch=1.0)))
    assert [line[0] for line in speed.rows] == ["8-6-5, batch 4"], "there is nothing of ours to compare in the other"
    assert times.rows[1] == ["8-5, batch 1", "–", "1.00 s", "–"]
    assert len(tables(results(*rows("8-5, batch 1", torch=1.0)))) == 2


def test_memory_where_it_was_measured() -> None:
    found = tables(results(row("cpu", peak_bytes=270 * 2**20), row("torch", peak_bytes=None)))
    assert [table.title for table in found[2:]] == [
        "forward (relu, float32): max error",
        "forward (relu, float32): peak memory",
    ]
    assert found[-1].rows == [["32x64x64", "270 MiB", "–"]]


@pytest.mark.parametrize("low", [1.0, 1.9])
def test_a_speed_up_comes_with_its_interval(low: float) -> None:
    ours = row("cpu", 1.0, samples=[1.0] * 6)
    theirs = row("torch", 2.0, samples=[low, 2.0, 2.0, 2.0, 2.0, 2.1])
    speed, *_ = tables(results(ours, theirs))
    assert speed.rows[0][2] == f"2.00x ({low:.2f}–2.10)"


def on_gpu(candidate: str, seconds: float, **changes: Any) -> Row:
    """A product in bfloat16 whose samples all took as long."""
    values = {
        "question": "products",
        "case": {"dtype": "bfloat16"},
        "work": [[4_000_000, 1000]],
        "samples": [seconds] * 9,
    }
    return row(candidate, seconds, **{**values, **changes})


def test_a_gpu_is_told_against_its_peers_and_light() -> None:
    copy = row("cuda:0", 1e-3, "copy", case={"what": "copy"}, work=[[0, 10**9]], flops=0, samples=[1e-3] * 9)
    ours, theirs = on_gpu("cuda:0", 4e-6, note="mma"), on_gpu("cuda_cublaslt", 2e-6)
    first, second = (tables(results(copy, ours, theirs), [name]) for name in ("forward", "products"))
    assert [table.title.partition(": ")[2] for table in second] == [
        "", "time of a call", "rate", "of light", "max error", "served by",
    ]  # fmt: skip
    speed, _, rates, light, _, notes = second
    assert dict(zip(speed.headings, speed.rows[0], strict=True)) == {
        "": "32x64x64",
        "cuda:0": "4.00 µs",
        "times cuda_cublaslt": "0.500x (0.500–0.500)",
        "light": "2.00 µs",
        "of light": "50 %",
    }
    assert rates.rows == [["32x64x64", "1.00 TFLOP/s", "2.00 TFLOP/s"]]
    assert light.rows == [["32x64x64", "50 %", "100 %"]]
    assert notes.rows == [["32x64x64", "mma", "–"]]
    assert first[2].rows == [["copy", "1,000 GB/s"]]


def test_launches_have_no_light() -> None:
    whole = results(on_gpu("cuda:0", 1e-6, question="launch", work=[], flops=0))
    assert [table.title for table in tables(whole)] == [
        "launch (relu, float32): time of a call",
        "launch (relu, float32): max error",
    ]


def test_the_cpu_comes_first() -> None:
    speed, *_ = tables(results(*rows(**{"cuda:0": 1e-3}), *rows(cpu=2e-3)))
    assert speed.headings[:2] == ["", "cpu"]
