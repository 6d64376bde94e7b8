"""Rows and results that nobody measured."""

from __future__ import annotations

from typing import Any

from fcdense.bench.results import Results, Row


def row(candidate: str = "cpu", median: float = 2e-3, label: str = "32x64x64", **changes: Any) -> Row:
    """A row that took `median` seconds."""
    values: dict[str, Any] = {
        "question": "forward",
        "label": label,
        "setting": "relu, float32",
        "candidate": candidate,
        "case": {"batch": 32},
        "flops": 4_000_000,
        "work": [],
        "start_s": 0.5,
        "median_s": median,
        "q1_s": 0.9 * median,
        "q3_s": 1.2 * median,
        "samples": [0.9 * median, median, 1.2 * median],
        "calls": 10,
        "rounds": 3,
        "error": 1e-7,
        "tolerance": None,
        "note": "",
        "peak_bytes": None,
    }
    return Row(**{**values, **changes})


def results(*rows: Row, cpu: str = "Chip", **changes: Any) -> Results:
    """Results of a made-up machine without a GPU."""
    machine = {"cpu": cpu, "cores": 4, "os": "Linux", "gpu": None, "peak_gflops": None, "load_average": 0.5}
    machine["blas"] = {"name": "openblas", "version": "0.3", "threads": 4, "architecture": None}
    values: dict[str, Any] = {
        "date": "2026-01-02T03:04:05+00:00",
        "commit": "abc123",
        "machine": machine,
        "versions": {"numpy": "2.4"},
        "plan": {"min_time": 0.2, "warmup": 0.1, "rounds": 11},
        "missing": {"cuda": "probe 'driver' failed: no driver."},
        "rows": list(rows),
    }
    return Results(**{**values, **changes})
