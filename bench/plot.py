"""Results as a picture: one panel for each table, one point for each row and candidate."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from fcdense.errors import ArgumentError

from .results import Results, Row


def check(path: Path, option: str) -> None:
    """Make sure that a plot can be written to `path`, which was given for `option`, before anything is measured.

    Raises
    ------
    ArgumentError
        matplotlib is not installed, or does not know the suffix.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ArgumentError(f"{option} needs matplotlib, which is not installed: pip install 'fcdense[plot]'.")
    from matplotlib.figure import Figure

    formats = Figure().canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in formats:
        raise ArgumentError(f"{option} {path}: the suffix chooses the format; use one of {', '.join(sorted(formats))}.")


def plot(results: Results, path: Path) -> None:
    """Write GFLOP/s with their interquartile ranges to `path`; its suffix chooses the format (.png, .svg, .pdf).

    Raises
    ------
    ArgumentError
        No row has any.
    """
    from matplotlib.figure import Figure

    drawn = {key: [row for row in rows if row.flops] for key, rows in results.tables().items()}
    groups = [(f"{question} ({setting})", rows) for (question, setting), rows in drawn.items() if rows]
    if not groups:
        raise ArgumentError("There is no row with operations to draw; measure layers, networks or products.")
    heights = [1.0 + 0.25 * len(rows) for _, rows in groups]
    figure = Figure(figsize=(8.0, sum(heights) + 0.8), layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, (title, rows) in zip(panels, groups, strict=True):
        labels = list(dict.fromkeys(row.label for row in rows))
        names = list(dict.fromkeys(row.candidate for row in rows))
        for index, name in enumerate(names):
            mine = [row for row in rows if row.candidate == name]
            places = [labels.index(row.label) + 0.5 * (index + 0.5) / len(names) - 0.25 for row in mine]
            panel.errorbar([row.gflops for row in mine], places, xerr=_whiskers(mine), fmt="o", capsize=3, label=name)
        panel.set_yticks(range(len(labels)), labels)
        panel.invert_yaxis()
        panel.grid(alpha=0.3)
        panel.set_xscale("log")  # batch 1 and the largest product lie three orders of magnitude apart
        panel.set_title(title, loc="left")
        panel.legend()
    panels[-1].set_xlabel("GFLOP/s, median and quartiles")
    figure.suptitle(f"{results.machine['cpu']}, {results.date[:10]}")
    figure.savefig(path)


def _whiskers(rows: list[Row]) -> list[list[float]]:
    """Distances from the median to the slower and the faster quartile."""
    slower = [row.gflops - 1e-9 * row.flops / row.q3_s for row in rows]
    faster = [1e-9 * row.flops / row.q1_s - row.gflops for row in rows]
    return [slower, faster]
