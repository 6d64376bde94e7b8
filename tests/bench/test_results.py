"""Results on disk, and two of them compared."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fcdense.bench.compare import compare, other_machine, regressions
from fcdense.bench.results import FORMAT, NO_RESULT, NOT_FINITE, Results, merge
from fcdense.errors import ArgumentError, FormatError
from tests.bench.made_up import results, row


def test_rows_derive_rates() -> None:
    assert row(median=2e-3).gflops == pytest.approx(2.0)
    assert row(median=2e-3).iqr_s == pytest.approx(0.6e-3)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    whole = results(row(), row("cuda:0", error=NOT_FINITE))
    path = tmp_path / "a.json"
    whole.write(path)
    assert Results.read(path) == whole
    assert json.loads(path.read_text())["format"] == FORMAT


def test_numbers_that_json_has_not_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        results(row(error=float("nan"))).write(tmp_path / "a.json")


def without(data: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key != name}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: [],
        lambda data: without(data, "format"),
        lambda data: {**data, "format": "fcdense bench 0"},
        lambda data: without(data, "machine"),
        lambda data: {**data, "extra": 1},
        lambda data: {**data, "rows": [without(data["rows"][0], "median_s")]},
        lambda data: {**data, "rows": [3]},
    ],
)
def test_files_of_another_form_are_refused(tmp_path: Path, spoil: Any) -> None:
    path = tmp_path / "a.json"
    results(row()).write(path)
    path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    with pytest.raises(FormatError, match=r"a\.json"):
        Results.read(path)


@pytest.mark.parametrize("content", ["{", "", None])
def test_files_that_cannot_be_read(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(FormatError, match="cannot be read"):
        Results.read(path)


def test_compare_pairs_rows_by_what_was_measured() -> None:
    before = results(row("cpu", 1.0), row("cuda:0", 1.0), row("cpu", 1.0, label="gone"))
    after = results(row("cuda:0", 0.5), row("cpu", 1.25), row("cpu", 9.0, label="new"))
    changes = compare(before, after)
    assert [(change.after.candidate, change.ratio) for change in changes] == [("cuda:0", 0.5), ("cpu", 1.25)]


def test_another_setting_is_another_row() -> None:
    with pytest.raises(ArgumentError, match="no row in common"):
        compare(results(row()), results(row(setting="relu, float64")))


@pytest.mark.parametrize(("median", "failed"), [(1.0, False), (1.1, False), (1.11, True), (0.5, False)])
def test_a_regression_is_more_than_the_limit(median: float, failed: bool) -> None:
    changes = compare(results(row(median=1.0)), results(row(median=median)))
    assert bool(regressions(changes, 10.0)) is failed


def test_other_machines_are_noticed() -> None:
    here, there = results(row()), results(row(), cpu="Another")
    assert other_machine(here, here) == ""
    assert "Chip (4 cores) before, Another (4 cores) after" in other_machine(here, there)
    other_gpu = replace(here, machine={**here.machine, "gpu": {"name": "Chip 200"}})
    assert "Chip (4 cores) before, Chip (4 cores) and Chip 200 after" in other_machine(here, other_gpu)
    fewer = replace(here, machine={**here.machine, "cores": 2})
    assert other_machine(here, fewer)


def test_rows_are_gathered_by_table_and_case() -> None:
    train = row("cpu", question="train")
    here, there = row("cpu", label="1x2x3"), row("cpu", label="4x5x6")
    later = row("torch", label="1x2x3", samples=[1.0, None])
    found = results(here, there, train, later).tables()
    assert list(found) == [("forward", "relu, float32"), ("train", "relu, float32")]
    assert found["forward", "relu, float32"] == [here, later, there]
    assert list(results(here, train).tables(["train"])) == [("train", "relu, float32")]
    assert later.disturbed == 1


def test_merging_replaces_rows_and_adds_others() -> None:
    stays, measured_again = row("cpu", label="1x2x3"), row("cpu")
    added, torch = row("cpu", 5.0), row("torch")
    before = results(stays, measured_again, missing={"torch": "not installed", "jax": "not installed"})
    after = results(added, torch, versions={"numpy": "2.4", "torch": "2.13"}, missing={"keras": "not installed"})
    whole = merge(before, after)
    assert whole.rows == [stays, added, torch]
    assert whole.versions == {"numpy": "2.4", "torch": "2.13"}
    assert whole.missing == {"jax": "not installed", "keras": "not installed"}


def test_merging_forgets_why_a_row_was_missing() -> None:
    failed = {"torch, forward 32x64x64 (relu, float32)": "boom", "torch, forward 1x2x3 (relu, float32)": "boom"}
    whole = merge(results(missing=failed), results(row("torch"), missing={}))
    assert whole.missing == {"torch, forward 1x2x3 (relu, float32)": "boom"}


def test_merging_forgets_why_a_case_was_missing() -> None:
    over = {"forward 32x64x64 (relu, float32)": "no time", "train 32x64x64 (relu, float32)": "no time"}
    whole = merge(results(missing=over), results(row("cuda:0"), missing={}))
    assert whole.missing == {"train 32x64x64 (relu, float32)": "no time"}


def test_what_is_left_to_measure() -> None:
    problem = "forward 32x64x64 (relu, float32)"
    assert results(row("cuda:0")).has_all_of(problem)
    assert not results(row("cuda:0", label="1x2x3")).has_all_of(problem)
    assert not results(row("cuda:0"), missing={f"cuda_jax, {problem}": "boom"}).has_all_of(problem)
    assert not results(row("cuda:0"), missing={problem: "no time"}).has_all_of(problem)


@pytest.mark.parametrize(
    ("error", "tolerance", "is_rounding"),
    [(1e-3, 1e-3, True), (1.1e-3, 1e-3, False), (5.0, None, True), (NOT_FINITE, 1e-3, True), (NO_RESULT, 1e-3, True)],
)
def test_errors_within_the_tolerance_are_rounding(error: Any, tolerance: float | None, is_rounding: bool) -> None:
    assert row(error=error, tolerance=tolerance).is_rounding is is_rounding


def test_bytes_are_those_of_all_kernels() -> None:
    assert row(work=[[1, 20], [3, 40]]).nbytes == 60
    assert row("cuda_jax").is_on_gpu
    assert not row("cpu").is_on_gpu


def test_merging_keeps_the_highest_peak() -> None:
    parts = [results(machine={**results().machine, "peak_gflops": peak}) for peak in (None, 480.0, 491.0)]
    assert merge(parts[2], parts[1]).machine["peak_gflops"] == 491.0
    assert merge(parts[0], parts[1]).machine["peak_gflops"] == 480.0
    assert merge(parts[0], parts[0]).machine["peak_gflops"] is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"cpu": "Another"}, "machine.cpu"),
        ({"machine": {**results().machine, "gpu": {"name": "Chip 200"}}}, "machine.gpu"),
        ({"commit": "def456"}, "commit"),
        ({"plan": {}}, "plan"),
        ({"versions": {"numpy": "2.5"}}, "numpy version"),
    ],
)
def test_only_what_was_measured_alike_is_merged(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ArgumentError, match=rf"these differ: {re.escape(named)}\."):
        merge(results(row()), results(row(), **changes))
