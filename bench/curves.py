"""Results of networks as curves: speed against the batch for each network, and against the width for each batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fcdense.errors import ArgumentError

from .results import Results, Row
from .versus import LIMITS


def curves(results: Results, path: Path) -> None:
    """Write GFLOP/s to `path`; its suffix chooses the format (.png, .svg, .pdf).

    Raises
    ------
    ArgumentError
        There is no row of a network.
    """
    from matplotlib.figure import Figure

    groups = {key: [row for row in rows if "widths" in row.case] for key, rows in results.tables().items()}
    groups = {key: rows for key, rows in groups.items() if rows}
    if not groups:
        raise ArgumentError("There is no row of a network to draw; measure train or predict.")
    across = max(max(len(values(rows, network)), len(values(rows, batch))) for rows in groups.values())
    figure = Figure(figsize=(3.4 * across + 1.6, 5.6 * len(groups) + 0.4), layout="constrained")
    names = {row.candidate: None for rows in groups.values() for row in rows}
    colours = iter(f"C{index}" for index in range(len(names)))
    styles = {name: {"color": next(colours), "ls": "-"} for name in names if name not in LIMITS}
    styles |= {
        name: {"color": "black", "ls": ls} for name, ls in zip(LIMITS, ("--", "-."), strict=True) if name in names
    }
    parts = figure.subfigures(len(groups), 1, squeeze=False)[:, 0]
    for part, ((question, setting), rows) in zip(parts, groups.items(), strict=True):
        part.suptitle(f"{question} ({setting})", x=0.01, ha="left")
        panels = part.subplots(2, across, squeeze=False, sharey=True)
        for panel in panels.flat:
            panel.set_visible(False)
        for panel, name in zip(panels[0], values(rows, network), strict=False):
            draw(panel, [row for row in rows if network(row) == name], batch, styles)
            panel.set_title("-".join(map(str, name)))
            panel.set_xlabel("batch")
        for panel, size in zip(panels[1], values(rows, batch), strict=False):
            draw(panel, [row for row in rows if batch(row) == size], width, styles)
            panel.set_title(f"batch {size}")
            panel.set_xlabel("widest layer")
        for panel in panels.flat:
            if panel.get_visible() and results.machine["peak_gflops"]:
                panel.axhline(results.machine["peak_gflops"], color="black", lw=0.8, ls=":")
        for row_of_panels in panels:
            row_of_panels[0].set_ylabel("GFLOP/s")
        handles, labels = legend(panels)
        part.legend(handles, labels, loc="outside right upper", fontsize="small")
    figure.suptitle(f"{results.machine['cpu']}, {results.date[:10]}")
    figure.savefig(path)


def draw(panel: Any, rows: list[Row], place: Callable[[Row], int], styles: dict[str, dict[str, str]]) -> None:
    """A line for each candidate."""
    panel.set_visible(True)
    for name, style in styles.items():
        mine = sorted((row for row in rows if row.candidate == name), key=place)
        if mine:
            panel.plot(
                [place(row) for row in mine], [row.gflops for row in mine], marker="o", ms=3, label=name, **style
            )
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")  # batch 1 and the largest product lie three orders of magnitude apart
    panel.grid(alpha=0.3)


def legend(panels: Any) -> tuple[list[Any], list[str]]:
    """Each candidate once, though it may be in some panels only."""
    found: dict[str, Any] = {}
    for panel in panels.flat:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)


def values(rows: list[Row], of: Callable[[Row], Any]) -> list[Any]:
    """The different ones, in order."""
    return sorted(set(map(of, rows)))


def network(row: Row) -> tuple[int, ...]:
    """The widths of its layers."""
    return tuple(row.case["widths"])


def batch(row: Row) -> int:
    """The rows of its input."""
    return int(row.case["batch"])


def width(row: Row) -> int:
    """The most features that a layer takes."""
    return int(max(row.case["widths"][:-1]))
