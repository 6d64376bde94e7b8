"""Results as text in cells: a line for each case and candidate."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from itertools import groupby

from .results import Results, Row

EMPTY = "–"
MARK = "(!)"


@dataclass(frozen=True)
class Table:
    """Text in cells."""

    title: str
    headings: list[str]
    rows: list[list[str]]


def seconds(value: float) -> str:
    """Three digits and a unit: 12.3 µs."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= 0.9995 * size:
            return f"{digits(value / size)} {unit}"
    return f"{digits(value / 1e-9)} ns"


def digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    rounded = float(f"{value:.3g}")
    decimals = 2 - math.floor(math.log10(rounded)) if rounded else 0
    return f"{rounded:,.{max(decimals, 0)}f}"


def tables(results: Results, questions: Collection[str] = (), settings: Collection[str] = ()) -> list[Table]:
    """One table for each question and setting; of all unless some are named (`Results.tables`)."""
    return [
        _table(f"{question} ({setting})", rows, results.missing)
        for (question, setting), rows in results.tables(questions, settings).items()
    ]


def _table(title: str, rows: list[Row], missing: dict[str, str]) -> Table:
    baseline = rows[0].candidate
    against = len({row.candidate for row in rows}) > 1
    headings = ["", "on", "median", "IQR", "GFLOP/s", *([f"against\n{baseline}"] if against else [])]
    headings += ["start", "max\nerror"]
    lines = []
    for label, group in groupby(rows, key=lambda row: row.label):
        first: Row | None = None
        for row in group:
            first = first or row
            speedup = f"{digits(first.median_s / row.median_s)}x" if first.candidate == baseline else EMPTY
            lines.append(
                [
                    label if row is first else "",
                    row.candidate,
                    seconds(row.median_s),
                    f"{100.0 * row.iqr_s / row.median_s:.0f} %",
                    digits(row.gflops) if row.flops else EMPTY,
                    *([speedup] if against else []),
                    seconds(row.start_s),
                    error(row),
                ]
            )
    lines += [
        ["", name, *[EMPTY] * (len(headings) - 2)] for name in missing if " " not in name
    ]  # others are no columns
    return Table(title, headings, lines)


def error(row: Row) -> str:
    """Two digits, or the word that is there instead; a mark where rounding does not explain it."""
    text = row.error if isinstance(row.error, str) else f"{row.error:.1e}"
    return text if row.is_rounding else f"{text} {MARK}"
