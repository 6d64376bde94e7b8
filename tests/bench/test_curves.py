"""Curves of networks."""

from __future__ import annotations

from pathlib import Path

import pytest

from fcdense.bench.curves import curves
from fcdense.bench.results import Row
from fcdense.errors import ArgumentError
from tests.bench.made_up import results, row


def network(candidate: str, widths: list[int], batch: int) -> Row:
    """A row of a network."""
    case = {"widths": widths, "batch": batch}
    return row(candidate, 1e-3, f"{widths}, batch {batch}", question="train", case=case)


def test_a_panel_for_each_network_and_each_batch(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [network("cpu", [8, 8, 4], 1), network("cpu", [8, 8, 4], 32), network("cpu", [64, 4], 32)]
    whole = results(*rows, network("limit_numpy", [64, 4], 32), row("cpu"))
    whole.machine["peak_gflops"] = 100.0
    curves(whole, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    for part in ("8-8-4", "64-4", "batch 1", "batch 32", "limit_numpy", "train (relu, float32)", "GFLOP/s"):
        assert f"<!-- {part} -->" in text
    assert "forward" not in text


def test_layers_have_no_curve(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ArgumentError, match="no row of a network"):
        curves(results(row("cpu")), tmp_path / "a.svg")
