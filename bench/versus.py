"""Libraries against each other: a line for each case and a column for each candidate."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import groupby

from .intervals import ratio
from .results import Results, Row
from .tables import EMPTY, Table, digits, error, seconds

OURS = "cpu"
BASELINES = ("torch", "jax")
LIMITS = ("limit_numpy", "limit_torch")
"""The peers that only multiply matrices; the faster of the two is the bound."""

Line = dict[str, Row]
Cell = Callable[[Row], str]


def tables(results: Results, questions: Collection[str] = ()) -> list[Table]:
    """For each question (all, or those named) and setting: speed, times, errors, and memory where it was measured."""
    found = []
    for title, lines, names in _compared(results, questions):
        libraries = [name for name in names if name not in LIMITS]
        if OURS in names:
            found.append(speed(title, lines, names, results.machine["peak_gflops"]))
        found.append(by_candidate(f"{title}: time of a step", lines, names, time))
        found.append(by_candidate(f"{title}: max error", lines, libraries, error))
        if any(row.peak_bytes is not None for line in lines.values() for row in line.values()):
            found.append(by_candidate(f"{title}: peak memory", lines, libraries, memory))
    return found


def speeds(results: Results, questions: Collection[str] = ()) -> list[Table]:
    """The first of these tables alone."""
    peak = results.machine["peak_gflops"]
    return [speed(*compared, peak) for compared in _compared(results, questions) if OURS in compared[2]]


def _compared(results: Results, questions: Collection[str]) -> Iterator[tuple[str, dict[str, Line], list[str]]]:
    """Title, lines and candidates of each question and setting."""
    for (question, setting), rows in results.tables(questions).items():
        lines = {label: {row.candidate: row for row in group} for label, group in groupby(rows, lambda row: row.label)}
        names = sorted({row.candidate: None for row in rows}, key=lambda name: (name != OURS, name in LIMITS))
        yield f"{question} ({setting})", lines, names


def speed(title: str, lines: dict[str, Line], names: Sequence[str], peak: float | None) -> Table:
    """How fast `OURS` is: its time, speed-ups, and shares of what is possible."""
    baselines = [name for name in BASELINES if name in names]
    has_limit = any(name in names for name in LIMITS)
    headings = ["", OURS, *(f"times {name}" for name in baselines)]
    headings += ["products\nonly", "products\n/ step"] if has_limit else []
    headings += ["of FMA\npeak"] if peak else []
    rows = []
    for label, line in lines.items():
        if OURS not in line:
            continue
        ours = line[OURS]
        cells = [label, time(ours), *(speed_up(ours, line[name]) if name in line else EMPTY for name in baselines)]
        if has_limit:
            limits = [line[name] for name in LIMITS if name in line]
            limit = min(limits, key=lambda row: row.median_s, default=None)
            cells += [time(limit), percent(limit.median_s / ours.median_s)] if limit else [EMPTY, EMPTY]
        if peak:
            cells.append(percent(ours.gflops / peak))
        rows.append(cells)
    return Table(title, headings, rows)


def by_candidate(title: str, lines: dict[str, Line], names: Sequence[str], cell: Cell) -> Table:
    """One number of each row."""
    rows = [[label, *(cell(line[name]) if name in line else EMPTY for name in names)] for label, line in lines.items()]
    return Table(title, ["", *names], rows)


def speed_up(ours: Row, theirs: Row) -> str:
    """1.95x (1.88–2.01): the median over rounds of their time over ours, and the interval that holds the true one."""
    found = ratio(ours, theirs)
    return f"{digits(found.median)}x ({digits(found.low)}–{digits(found.high)})" if found else EMPTY


def time(row: Row) -> str:
    """The median."""
    return seconds(row.median_s)


def memory(row: Row) -> str:
    """MiB."""
    return EMPTY if row.peak_bytes is None else f"{row.peak_bytes / 2**20:,.0f} MiB"


def percent(share: float) -> str:
    """A share without decimals."""
    return f"{100.0 * share:.0f} %"
