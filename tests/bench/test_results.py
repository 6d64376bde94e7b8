"""Results on disk, and two of them compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fcdense.bench.compare import compare, other_machine, regressions
from fcdense.bench.results import FORMAT, Results, Row
from fcdense.errors import ArgumentError, FormatError


def row(candidate: str = "cpu", median: float = 2e-3, label: str = "32x64x64", **changes: Any) -> Row:
    """A row that took `median` seconds."""
    values: dict[str, Any] = {
        "question": "forward",
        "label": label,
        "setting": "relu, float32",
        "candidate": candidate,
        "case": {"batch": 32},
        "flops": 4_000_000,
        "first_call_s": 0.5,
        "median_s": median,
        "q1_s": 0.9 * median,
        "q3_s": 1.2 * median,
        "calls": 10,
        "rounds": 11,
        "error": 1e-7,
    }
    return Row(**{**values, **changes})


def results(*rows: Row, cpu: str = "Chip") -> Results:
    """Results of a made-up machine."""
    machine = {"cpu": cpu, "cores": 4, "os": "Linux", "gpu": None}
    machine["blas"] = {"name": "openblas", "version": "0.3", "threads": 4, "architecture": None}
    plan = {"min_time": 0.2, "warmup": 0.1, "rounds": 11}
    return Results("2026-01-02T03:04:05+00:00", "abc123", machine, {"numpy": "2.4"}, plan, {}, list(rows))


def test_rows_derive_rates() -> None:
    assert row(median=2e-3).gflops == pytest.approx(2.0)
    assert row(median=2e-3).iqr_s == pytest.approx(0.6e-3)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    whole = results(row(), row("cuda:0", error=None))
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
    fewer = replace(here, machine={**here.machine, "cores": 2})
    assert other_machine(here, fewer)
