"""Results as tables: for the terminal, in Markdown, and as marked blocks of a README."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from fcdense.errors import ArgumentError

from .compare import Change
from .results import Results, Row

BLOCK = re.compile(r"(<!-- bench: (\S+?\.json)((?: \w+)*) -->\n).*?(<!-- /bench -->)", re.DOTALL)
EMPTY = "–"


@dataclass(frozen=True)
class Table:
    """Text in cells: a line for each case and candidate."""

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


def tables(results: Results, questions: Collection[str] = ()) -> list[Table]:
    """One table for each question and setting; of all questions unless some are named."""
    wanted = [row for row in results.rows if not questions or row.question in questions]
    return [
        _table(f"{question} ({setting})", list(rows), results.missing)
        for (question, setting), rows in groupby(wanted, key=lambda row: (row.question, row.setting))
    ]


def _table(title: str, rows: list[Row], missing: dict[str, str]) -> Table:
    baseline = rows[0].candidate
    against = len({row.candidate for row in rows}) > 1
    headings = ["", "on", "median", "IQR", "GFLOP/s", *([f"against\n{baseline}"] if against else [])]
    headings += ["first\ncall", "max\nerror"]
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
                    digits(row.gflops),
                    *([speedup] if against else []),
                    seconds(row.first_call_s),
                    "not finite" if row.error is None else f"{row.error:.1e}",
                ]
            )
    lines += [["", name, *[EMPTY] * (len(headings) - 2)] for name in missing]
    return Table(title, headings, lines)


def notes(results: Results) -> list[str]:
    """Sentences under the tables: where it was measured, how, and what is empty for which reason."""
    machine, versions, plan = results.machine, results.versions, results.plan
    blas = machine["blas"]
    threads = f", {blas['threads']} threads" if blas["threads"] else ""
    parts = [f"{machine['cpu']}, {machine['cores']} cores, {blas['name']} {blas['version']}{threads}, {machine['os']}"]
    if machine["gpu"]:
        parts.append(f"{machine['gpu']['name']} ({machine['gpu']['architecture']})")
    where = "; ".join([*parts, ", ".join(f"{name} {version}" for name, version in versions.items())])
    how = (
        f"Medians over {plan['rounds']} interleaved rounds, at least {plan['min_time']:g} s of calls in each line; IQR "
        "is the interquartile range relative to the median; errors are relative to the float64 reference."
    )
    when = f"{results.date}, commit {results.commit}." if results.commit else f"{results.date}."
    empty = [f"{name} was not measured: {reason}" for name, reason in results.missing.items()]
    return [f"{where}.", f"{how} {when}", *empty]


def show(console: Console, results: Results) -> None:
    """Print all tables and notes."""
    for table in tables(results):
        _print(console, table)
    for note in notes(results):
        console.print(note, style="dim", highlight=False)


def show_changes(console: Console, changes: Sequence[Change], fail_above: float | None) -> None:
    """Print before and after; what grew by more than `fail_above` percent stands out."""
    title = "before and after" if fail_above is None else f"before and after (regression: more than {fail_above:g} %)"
    lines = []
    for change in changes:
        slower = fail_above is not None and change.ratio > 1.0 + fail_above / 100.0
        ratio = f"{100.0 * (change.ratio - 1.0):+.1f} %"
        lines.append(
            [
                f"{change.after.question} {change.after.label} ({change.after.setting}) on {change.after.candidate}",
                seconds(change.before.median_s),
                seconds(change.after.median_s),
                f"[red]{ratio} regression[/red]" if slower else ratio,
            ]
        )
    _print(console, Table(title, ["", "before", "after", "time"], lines))


def _print(console: Console, table: Table) -> None:
    rich = RichTable(title=table.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    rich.padding, rich.pad_edge = (0, 1, 0, 0), False
    for index, heading in enumerate(table.headings):
        rich.add_column(heading, justify="right" if index else "left", overflow="fold", no_wrap=index > 0)
    for row in table.rows:
        rich.add_row(*row)
    console.print(rich)


def markdown(results: Results, questions: Collection[str] = ()) -> str:
    """All tables and notes in Markdown.

    Raises
    ------
    ArgumentError
        A question that these results have no row of.
    """
    absent = set(questions) - {row.question for row in results.rows}
    if absent:
        raise ArgumentError(f"The results have no rows of: {', '.join(sorted(absent))}.")
    paragraphs = []
    for table in tables(results, questions):
        headings = [heading.replace("\n", " ") for heading in table.headings]
        lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *table.rows]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        paragraphs.append(f"**{table.title}**\n\n{body}")
    return "\n\n".join([*paragraphs, *notes(results)]) + "\n"


def rewrite(text: str, name: str, results: Results) -> str:
    """`text` with every block of the results file called `name` written anew.

    A block stands between the lines `<!-- bench: NAME.json -->` and `<!-- /bench -->`; words after the name choose
    questions.

    Raises
    ------
    ArgumentError
        There is no such block.
    """
    if name not in (match[2] for match in BLOCK.finditer(text)):
        raise ArgumentError(
            f"There is no block for {name}. Write: <!-- bench: {name} --> and <!-- /bench --> on lines."
        )

    def block(match: re.Match[str]) -> str:
        if match[2] != name:
            return match[0]
        return f"{match[1]}{markdown(results, match[3].split())}{match[4]}"

    return BLOCK.sub(block, text)
