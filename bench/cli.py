"""The command line: measure, show, keep, compare.

Exit codes: 0 done, 1 a regression, 2 a usage error, 3 a device or peer that was asked for is not there.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from fcdense.errors import ArgumentError, DeviceError, FcdenseError

from . import plot, questions, report, runner, whole
from .candidates import EAGER, PLAIN, CandidateError, find, peer_names
from .cases import Activated, Case, Grid
from .compare import compare, other_machine, regressions
from .curves import curves
from .memory import resident
from .networks import Network
from .results import Results, merge
from .timing import Plan

DONE, REGRESSION, USAGE, MISSING = range(4)
QUESTIONS = ("forward", "backward", "train")
PEER_QUESTIONS = ("train", "predict")
PEER_GRID = Grid(networks=(*Grid.networks, (4096, 4096)), batches=(*Grid.batches, 4096), optimizers=("adam", "sgd"))
DTYPES = ("bfloat16", "float16", "float32", "float64")

OVER = "the time was over (--time-limit); --append adds what is missing."

Part = TypeVar("Part")


def main(argv: Sequence[str] | None = None, prog: str = f"python -m {__package__}") -> int:
    """Run the bench, or `report` on results of an earlier run; returns the exit code.

    `prog` is what the user typed, for messages.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        if arguments[:1] == ["report"]:
            return report_command(report_parser(prog).parse_args(arguments[1:]))
        return measure_command(measure_parser(prog).parse_args(arguments))
    except (DeviceError, CandidateError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return MISSING
    except (FcdenseError, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return USAGE


def measure_command(options: argparse.Namespace) -> int:
    """Measure, print the tables, and write what was asked for."""
    start = time.monotonic()
    before = prepare_outputs(options)
    is_on_gpu = all(name.startswith("cuda") for name in options.device)
    is_whole = is_on_gpu and not options.op
    if is_whole:
        options.peers = options.peers or ["all"]
        cases = whole.cases(given(options, Grid))
    else:
        cases = questions.cases(options.op or (PEER_QUESTIONS if options.peers else QUESTIONS), grid_of(options))
    check(options, cases)
    earlier = Results.read(options.json) if options.append and options.json.exists() else None
    if is_whole and earlier is not None:
        cases = [case for case in cases if not earlier.has_all_of(problem(case))]
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
    plan = replace(whole.PLAN if is_on_gpu else Plan(), **given(options, Plan))
    limit = options.time_limit or (whole.TIME_LIMIT if is_on_gpu else math.inf)
    found, missing = find(options.device, options.peers, whole.patience(limit) if is_on_gpu else math.inf)
    try:
        results = runner.setting(found, plan, missing, bool(options.peers) and not is_on_gpu, options.commit)
        if earlier is not None:
            results = merge(earlier, results)
        with Console(stderr=True).status("bench") as status:
            for case in cases:
                status.update(problem(case))
                if time.monotonic() < start + limit:
                    part = runner.run(results, case, found, plan, options.memory, start + limit)
                else:
                    part = replace(results, rows=[], missing={problem(case): OVER})
                results = merge(results, part)
                if options.json is not None:
                    results.write(options.json)  # after every case, so that an interruption loses one only
    finally:
        for candidate in found:  # they leave side by side
            candidate.dismiss()
        for candidate in found:
            candidate.close()
    console = Console()
    report.show(console, results, layout_of(options))
    return outputs(console, options, before, results)


def check(options: argparse.Namespace, cases: Sequence[Case]) -> None:
    """Raise for what cannot be measured or written, before there is work to lose."""
    if not cases:
        raise ArgumentError("No case is left: all have more operations than --max-gflop allows.")
    for case in cases:
        if isinstance(case, Activated):
            assert case.function  # an unknown activation is an error now, not after the first minute
    if options.curves is not None and not any(isinstance(case, Network) for case in cases):
        raise ArgumentError("--curves draws networks, and none is measured: --op train or predict.")
    if options.memory:
        resident()  # an error where it cannot be had
    if options.append and options.json is None:
        raise ArgumentError("--append needs --json PATH: the results to add to.")


def problem(case: Case) -> str:
    """As `Row.problem`."""
    return f"{case.question} {case.label} ({case.setting})"


def report_command(options: argparse.Namespace) -> int:
    """Print results as Markdown, or write them into a README."""
    before = prepare_outputs(options)
    results = Results.read(options.results)
    if options.into is None:
        print(report.markdown(results, options.op, layout_of(options)), end="")
    else:
        text = options.into.read_text(encoding="utf-8")
        options.into.write_text(report.rewrite(text, options.results.name, results), encoding="utf-8")
    return outputs(Console(), options, before, results)


def grid_of(options: argparse.Namespace) -> Grid:
    """The grid of the options, and the default for what they leave open."""
    return replace(PEER_GRID if options.peers else Grid(), **given(options, Grid))


def given(options: argparse.Namespace, kind: type[Grid | Plan]) -> dict[str, Any]:
    """The options that are fields of a dataclass, as far as there are any."""
    values = {entry.name: getattr(options, entry.name) for entry in fields(kind)}
    return {name: value for name, value in values.items() if value is not None}


def layout_of(options: argparse.Namespace) -> report.Layout:
    """A column for each library where libraries are compared, else a line."""
    return report.LAYOUTS["peers" if options.peers else "lines"]


def prepare_outputs(options: argparse.Namespace) -> Results | None:
    """The results to compare with; and any reason why an output cannot be made, before there is work to lose."""
    if options.fail_above is not None and options.compare is None:
        raise ArgumentError("--fail-above needs --compare FILE: the earlier results to compare with.")
    for option, path in (("--plot", options.plot), ("--curves", options.curves)):
        if path is not None:
            plot.check(path, option)
    return None if options.compare is None else Results.read(options.compare)


def outputs(console: Console, options: argparse.Namespace, before: Results | None, results: Results) -> int:
    """Draw the plot, compare; returns the exit code."""
    if options.plot is not None:
        plot.plot(results, options.plot)
    if options.curves is not None:
        curves(results, options.curves)
    if before is None:
        return DONE
    changes = compare(before, results)
    report.show_changes(console, changes, options.fail_above)
    if warning := other_machine(before, results):
        console.print(warning, style="yellow", markup=False)
    failed = options.fail_above is not None and regressions(changes, options.fail_above)
    return REGRESSION if failed else DONE


def measure_parser(prog: str) -> argparse.ArgumentParser:
    """The options of a measurement."""
    grid, plan = Grid(), Plan()
    parser = argparse.ArgumentParser(
        prog=prog,
        description=(
            f"Measure dense layers and training steps. '{prog} report RESULTS.json' shows an earlier run. "
            f"'{prog} --device cuda' makes the whole comparison on a GPU."
        ),
        epilog="\n".join(["questions:", *(f"  {name:10}{questions.summary(name)}" for name in questions.names())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--device", type=devices, default=["auto"], metavar="cpu,cuda", help="default: cpu, and cuda where it works")
    add(
        "--peers",
        type=words,
        nargs="?",
        const=["all"],
        default=[],
        metavar="PEER,...",
        help=f"compare with other libraries: {', '.join(peer_names())}; without names: all that are installed",
    )
    add("--op", type=words, metavar="forward,...", help="questions, see below")
    add("--sizes", type=sizes, metavar="BxIxO,...", help="layers: batch, inputs, outputs")
    add("--networks", type=networks, metavar="784-512-10,...", help="widths of networks")
    add("--batches", type=batches, metavar="1,32,...", help="batch sizes of the networks")
    add("--max-gflop", type=number, metavar="N", help=f"leave out larger network cases: {grid.max_gflop:g}")
    add("--dtype", choices=DTYPES)
    add("--activation", dest="activations", type=names, metavar="NAME,...", help=f"default: {grid.activations[0]}")
    add("--optimizer", dest="optimizers", type=names, metavar="NAME,...", help=f"default: {grid.optimizers[0]}")
    add("--min-time", type=number, metavar="S", help=f"seconds per line: {plan.min_time}")
    add("--warmup", type=number, metavar="S", help=f"seconds before each turn: {plan.warmup}")
    add("--rounds", type=count, metavar="N", help=f"samples per line: {plan.rounds}")
    add(
        "--max-others",
        type=number,
        metavar="CORES",
        help=f"throw away samples during which other processes used more: {plan.max_others}",
    )
    add("--time-limit", type=number, metavar="S", help="begin nothing after so many seconds; on GPUs alone 450")
    add("--commit", metavar="ID", help="what is measured, where git cannot tell: in a copy without .git")
    add("--memory", action="store_true", help="measure peak memory too, each line in a new process")
    add("--json", type=Path, metavar="PATH", help="write the results here")
    add("--append", action="store_true", help="add to the results that are there already")
    add_outputs(parser)
    return parser


def report_parser(prog: str) -> argparse.ArgumentParser:
    """The options of `report`."""
    parser = argparse.ArgumentParser(
        prog=f"{prog} report", description="Show results of an earlier run in Markdown.", allow_abbrev=False
    )
    parser.add_argument("results", type=Path, metavar="RESULTS.json")
    parser.add_argument("--op", type=words, default=[], help="only these questions")
    parser.add_argument("--peers", action="store_true", help="a column for each library, not a line")
    parser.add_argument(
        "--into", type=Path, metavar="README.md", help="rewrite this file's blocks <!-- bench: RESULTS.json --> instead"
    )
    add_outputs(parser)
    return parser


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """The options that measuring and `report` share."""
    parser.add_argument("--plot", type=Path, metavar="PATH", help="draw the results (.png, .svg, .pdf)")
    parser.add_argument("--curves", type=Path, metavar="PATH", help="draw networks' speed against batch and width")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="show the change against these earlier results")
    parser.add_argument(
        "--fail-above", type=percent, metavar="10%", help="exit code 1 if a median grew by more than this"
    )


def words(text: str) -> list[str]:
    """Words between commas."""
    return checked(text, r"\w+", "words between commas", str)


def devices(text: str) -> list[str]:
    """Names of devices between commas."""
    pattern = rf"auto|(cpu|cuda(:\d+)?|reference)({EAGER})?|cpu{PLAIN}"
    return checked(text, pattern, f"cpu, cuda, cuda:N, 'cpu{EAGER}' or 'cpu{PLAIN}' between commas", str)


def sizes(text: str) -> tuple[tuple[int, int, int], ...]:
    """BxIxO,..."""
    found = checked(text, r"[1-9]\d*(x[1-9]\d*){2}", "BxIxO,... such as 32x784x512", lambda size: size.split("x"))
    return tuple((int(batch), int(inner), int(outer)) for batch, inner, outer in found)


def networks(text: str) -> tuple[tuple[int, ...], ...]:
    """Widths joined by dashes."""
    found = checked(text, r"[1-9]\d*(-[1-9]\d*)+", "widths such as 784-512-10", lambda widths: widths.split("-"))
    return tuple(tuple(map(int, widths)) for widths in found)


def batches(text: str) -> tuple[int, ...]:
    """Positive numbers between commas."""
    return tuple(checked(text, r"[1-9]\d*", "positive numbers between commas", int))


def names(text: str) -> tuple[str, ...]:
    """Words between commas."""
    return tuple(words(text))


def number(text: str) -> float:
    """Not negative."""
    return checked(text, r"\d+(\.\d+)?", "a number", float)[0]


def count(text: str) -> int:
    """A positive number."""
    return batches(text)[0]


def percent(text: str) -> float:
    """A number, with or without a percent sign."""
    return checked(text, r"\d+(\.\d+)?%?", "a percentage such as 10%", lambda number: float(number.rstrip("%")))[0]


def checked(text: str, pattern: str, expected: str, convert: Callable[[str], Part]) -> list[Part]:
    """The converted parts of `text` between commas, each of which has to match."""
    parts = text.split(",")
    if not all(re.fullmatch(pattern, part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}")
    return [convert(part) for part in parts]
