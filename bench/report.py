"""Results as tables: for the terminal, in Markdown, and as marked blocks of a README."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from fcdense.errors import ArgumentError

from . import versus
from .compare import Change
from .light import rates
from .results import Results
from .tables import MARK, Table, digits, seconds, tables

BLOCK = re.compile(r"(<!-- bench: (\S+?\.json)((?: \w+)*) -->\n).*?(<!-- /bench -->)", re.DOTALL)


MIN_LABEL = 8

Layout = Callable[[Results, Collection[str], Collection[str]], list[Table]]

LAYOUTS: dict[str, Layout] = {"lines": tables, "peers": versus.tables, "speed": versus.speeds}
"""A line for each candidate, a column for each, or ratios alone; these words choose in the marks of a block."""


def notes(results: Results) -> list[str]:
    """Sentences under the tables: where it was measured, how, and what is empty for which reason."""
    machine, versions, plan = results.machine, results.versions, results.plan
    blas = machine["blas"]
    threads = f", {blas['threads']} threads" if blas["threads"] else ""
    parts = [f"{machine['cpu']}, {machine['cores']} cores, {blas['name']} {blas['version']}{threads}, {machine['os']}"]
    if machine["gpu"]:
        parts.append(gpu(machine["gpu"]))
    where = "; ".join([*parts, ", ".join(f"{name} {version}" for name, version in versions.items())])
    how = (
        f"Medians over {plan['rounds']} interleaved rounds, at least {plan['min_time']:g} s of calls in each line; IQR "
        "is the interquartile range relative to the median; errors are relative to the float64 reference."
    )
    disturbed = sum(row.disturbed for row in results.rows)
    if disturbed:
        taken = sum(row.rounds for row in results.rows)
        how += f" {disturbed} of {taken} samples are left out because other processes disturbed them."
    if not all(row.is_rounding for row in results.rows):
        how += f" Rounding does not explain those marked {MARK}."
    how += light(results)
    when = f"{results.date}, commit {results.commit}." if results.commit else f"{results.date}."
    reasons: dict[str, list[str]] = {}
    for name, reason in results.missing.items():
        reasons.setdefault(reason, []).append(name)
    empty = [f"{'; '.join(names)} {plural(names)} not measured: {reason}" for reason, names in reasons.items()]
    return [f"{where}.", f"{how} {when}", *empty]


def gpu(facts: dict[str, Any]) -> str:
    """The GPU, its driver and what it is programmed with."""
    used = [f"{title} {facts[name]}" for title, name in (("NVRTC", "nvrtc"), ("cuBLASLt", "cublaslt")) if facts[name]]
    driver = f"driver {facts['driver'] or 'unknown'} for CUDA {facts['cuda'] // 1000}.{facts['cuda'] % 1000 // 10}"
    return ", ".join([f"{facts['name']} ({facts['architecture']})", driver, *used])


def light(results: Results) -> str:
    """The rates of which the speed of light is made, in a sentence; "" where it is not told."""
    found = rates(results)
    if not found.nbytes:
        return ""
    parts = [f"{digits(1e-12 * rate)} TFLOP/s for products of {dtype}" for dtype, rate in found.flops.items()]
    parts.append(f"{digits(1e-12 * found.nbytes)} TB/s for copies")
    parts += [f"{seconds(found.kernel)} for a kernel of one thread in a graph"] if found.kernel else []
    return (
        " Light is what the least operations and bytes of each kernel would take at the rates of this run: "
        f"{', '.join(parts)}."
    )


def plural(names: Collection[str]) -> str:
    """The verb that goes with one name or several."""
    return "was" if len(names) == 1 else "were"


def show(console: Console, results: Results, layout: Layout = tables) -> None:
    """Print all tables and notes."""
    for table in layout(results, (), ()):
        _print(console, table)
    for note in notes(results):
        console.print(note, style="dim", highlight=False, markup=False)


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
    console.print(table.title, style="bold", highlight=False)
    rich = RichTable(box=box.SIMPLE_HEAD)
    rich.padding, rich.pad_edge = (0, 1, 0, 0), False
    for index, heading in enumerate(table.headings):
        rich.add_column(heading, justify="right" if index else "left", overflow="fold", no_wrap=index > 0)
    for row in table.rows:
        rich.add_row(*row)
    needed = console.measure(rich, options=console.options.update(max_width=10_000)).maximum
    longest = max((len(row[0]) for row in table.rows), default=0)
    # Labels may be folded, numbers not: a table that is too wide is left to the terminal to break.
    if console.width < needed - longest + MIN_LABEL:
        rich.width = needed
    console.print(rich, crop=rich.width is None, soft_wrap=rich.width is not None)


def markdown(results: Results, words: Collection[str] = (), layout: Layout = tables) -> str:
    """Tables and notes in Markdown: all of them, or those of the questions and settings that the words name.

    Raises
    ------
    ArgumentError
        A word that is neither a question nor a part of a setting ("adam", "relu") of these results.
    """
    asked = {row.question for row in results.rows} & set(words)
    set_to = set(words) - asked
    absent = set_to - {part for row in results.rows for part in row.setting.split(", ")}
    if absent:
        raise ArgumentError(f"The results have no rows of: {', '.join(sorted(absent))}.")
    paragraphs = []
    for table in layout(results, asked, set_to):
        headings = [heading.replace("\n", " ") for heading in table.headings]
        lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *table.rows]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        paragraphs.append(f"**{table.title}**\n\n{body}")
    return "\n\n".join([*paragraphs, *notes(results)]) + "\n"


def rewrite(text: str, name: str, results: Results) -> str:
    """`text` with every block of the results file called `name` written anew.

    A block stands between the lines `<!-- bench: NAME.json -->` and `<!-- /bench -->`; words after the name choose
    questions and settings, "peers" the tables that compare libraries, "speed" the first one of these.

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
        words = match[3].split()
        layout = next((LAYOUTS[word] for word in words if word in LAYOUTS), tables)
        return f"{match[1]}{markdown(results, [word for word in words if word not in LAYOUTS], layout)}{match[4]}"

    return BLOCK.sub(block, text)
