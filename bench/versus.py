"""Candidates against each other: a line for each case and a column for each candidate."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from itertools import groupby

from .intervals import ratio
from .light import Rates, rates
from .results import Results, Row
from .tables import EMPTY, Table, digits, error, seconds

CPU, GPU = "cpu", "cuda:"
"""What is compared with the others: fcdense on the CPU, else on a GPU."""
BASELINES = (
    "torch", "jax",
    "cuda_torch", "cuda_torch_compile", "cuda_jax", "cuda_cublaslt", "cuda_cublaslt_fused", "cuda_cupy",
)  # fmt: skip
LIMITS = ("limit_numpy", "limit_torch")
"""The peers that only multiply matrices; the faster of the two is the bound."""

Line = dict[str, Row]
Cell = Callable[[Row], str]


def tables(results: Results, questions: Collection[str] = (), settings: Collection[str] = ()) -> list[Table]:
    """For each question and setting (all, or those named): speed, times, errors; and what else was measured: rates and
    shares of the speed of light, memory, what served the case."""
    found = []
    measured = rates(results)
    for title, lines, names in _compared(results, questions, settings):
        libraries = [name for name in names if name not in LIMITS]
        rows = [row for line in lines.values() for row in line.values()]
        ours = own(names)
        if ours is not None and (len(names) > 1 or any(measured.seconds(row) for row in rows)):
            found.append(speed(title, lines, names, results.machine["peak_gflops"], measured))
        found.append(by_candidate(f"{title}: time of a {call_of(rows[0])}", lines, names, time))
        if any(measured.seconds(row) for row in rows):
            found.append(by_candidate(f"{title}: rate", lines, names, rate))
            found.append(by_candidate(f"{title}: of light", lines, names, partial(of_light, measured)))
        found.append(by_candidate(f"{title}: max error", lines, libraries, error))
        if any(row.peak_bytes is not None for row in rows):
            found.append(by_candidate(f"{title}: peak memory", lines, libraries, memory))
        if any(row.note for row in rows):
            found.append(by_candidate(f"{title}: served by", lines, names, lambda row: row.note or EMPTY))
    return found


def speeds(results: Results, questions: Collection[str] = (), settings: Collection[str] = ()) -> list[Table]:
    """The first of these tables alone."""
    peak, measured = results.machine["peak_gflops"], rates(results)
    compared = [one for one in _compared(results, questions, settings) if own(one[2]) is not None]
    return [speed(*one, peak, measured) for one in compared]


def own(names: Sequence[str]) -> str | None:
    """Which of these is compared with the others."""
    return next((name for name in sorted(names) if name == CPU or (name.startswith(GPU) and " " not in name)), None)


def _compared(
    results: Results, questions: Collection[str], settings: Collection[str]
) -> Iterator[tuple[str, dict[str, Line], list[str]]]:
    """Title, lines and candidates of each question and setting."""
    for (question, setting), rows in results.tables(questions, settings).items():
        lines = {label: {row.candidate: row for row in group} for label, group in groupby(rows, lambda row: row.label)}
        names = list({row.candidate: None for row in rows})
        ours = own(names)
        yield f"{question} ({setting})", lines, sorted(names, key=lambda name: (name != ours, name in LIMITS))


def speed(title: str, lines: dict[str, Line], names: Sequence[str], peak: float | None, measured: Rates) -> Table:
    """How fast we are: time, speed-ups, and shares of what is possible."""
    mine = own(names) or ""
    rows_of_mine = [line[mine] for line in lines.values() if mine in line]
    baselines = [name for name in BASELINES if name in names]
    has_limit = any(name in names for name in LIMITS)
    has_light = any(measured.seconds(row) for row in rows_of_mine)
    peak = peak if mine == CPU else None
    headings = ["", mine, *(f"times {name}" for name in baselines)]
    headings += ["products\nonly", "products\n/ step"] if has_limit else []
    headings += ["of FMA\npeak"] if peak else []
    headings += ["light", "of light"] if has_light else []
    rows = []
    for label, line in lines.items():
        if mine not in line:
            continue
        ours = line[mine]
        cells = [label, time(ours), *(speed_up(ours, line[name]) if name in line else EMPTY for name in baselines)]
        if has_limit:
            limits = [line[name] for name in LIMITS if name in line]
            limit = min(limits, key=lambda row: row.median_s, default=None)
            cells += [time(limit), percent(limit.median_s / ours.median_s)] if limit else [EMPTY, EMPTY]
        if peak:
            cells.append(percent(ours.gflops / peak))
        if has_light:
            light = measured.seconds(ours)
            cells += [EMPTY if light is None else seconds(light), of_light(measured, ours)]
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


def call_of(row: Row) -> str:
    """What is repeated."""
    return "step" if row.question in ("train", "predict") else "call"


def time(row: Row) -> str:
    """The median."""
    return seconds(row.median_s)


def rate(row: Row) -> str:
    """Operations per second, or bytes where there are none."""
    if row.flops:
        return f"{digits(1e-12 * row.flops / row.median_s)} TFLOP/s"
    return f"{digits(1e-9 * row.nbytes / row.median_s)} GB/s" if row.nbytes else EMPTY


def of_light(measured: Rates, row: Row) -> str:
    """The share of the speed of light."""
    light = measured.seconds(row)
    return EMPTY if light is None else percent(light / row.median_s)


def memory(row: Row) -> str:
    """MiB."""
    return EMPTY if row.peak_bytes is None else f"{row.peak_bytes / 2**20:,.0f} MiB"


def percent(share: float) -> str:
    """A share without decimals."""
    return f"{100.0 * share:.0f} %"
