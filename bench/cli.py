"""The command line: measure, show, keep, compare.

Exit codes: 0 done, 1 a regression, 2 a usage error, 3 a device or peer that was asked for is not there.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from fcdense.errors import ArgumentError, DeviceError, FcdenseError

from . import plot, questions, report, runner
from .candidates import PeerError, find, peer_names
from .cases import Grid
from .compare import compare, other_machine, regressions
from .results import Results
from .timing import Plan

DONE, REGRESSION, USAGE, MISSING = range(4)
DTYPES = ("float16", "float32", "float64")

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
    except (DeviceError, PeerError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return MISSING
    except (FcdenseError, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return USAGE


def measure_command(options: argparse.Namespace) -> int:
    """Measure, print the tables, and write what was asked for."""
    before = prepare_outputs(options)
    grid = Grid(options.sizes, options.networks, options.batch, options.dtype, options.activation, options.optimizer)
    cases = questions.cases(options.op, grid)
    for case in cases:
        assert case.function  # an unknown activation is an error now, not after the first minute
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
    found, missing = find(options.device, options.peer)
    try:
        with Console(stderr=True).status("bench") as status:
            results = runner.run(cases, found, Plan(options.min_time, options.warmup), missing, status.update)
    finally:
        for candidate in found:
            candidate.close()
    console = Console()
    report.show(console, results)
    if options.json is not None:
        results.write(options.json)
    return outputs(console, options, before, results)


def report_command(options: argparse.Namespace) -> int:
    """Print results as Markdown, or write them into a README."""
    before = prepare_outputs(options)
    results = Results.read(options.results)
    if options.into is None:
        print(report.markdown(results, options.op), end="")
    else:
        text = options.into.read_text(encoding="utf-8")
        options.into.write_text(report.rewrite(text, options.results.name, results), encoding="utf-8")
    return outputs(Console(), options, before, results)


def prepare_outputs(options: argparse.Namespace) -> Results | None:
    """The results to compare with; and any reason why an output cannot be made, before there is work to lose."""
    if options.fail_above is not None and options.compare is None:
        raise ArgumentError("--fail-above needs --compare FILE: the earlier results to compare with.")
    if options.plot is not None:
        plot.check(options.plot)
    return None if options.compare is None else Results.read(options.compare)


def outputs(console: Console, options: argparse.Namespace, before: Results | None, results: Results) -> int:
    """Draw the plot, compare; returns the exit code."""
    if options.plot is not None:
        plot.plot(results, options.plot)
    if before is None:
        return DONE
    changes = compare(before, results)
    report.show_changes(console, changes, options.fail_above)
    if warning := other_machine(before, results):
        console.print(warning, style="yellow")
    failed = options.fail_above is not None and regressions(changes, options.fail_above)
    return REGRESSION if failed else DONE


def measure_parser(prog: str) -> argparse.ArgumentParser:
    """The options of a measurement."""
    grid, plan = Grid(), Plan()
    parser = argparse.ArgumentParser(
        prog=prog,
        description=f"Measure dense layers and training steps. '{prog} report RESULTS.json' shows an earlier run.",
        epilog="\n".join(["questions:", *(f"  {name:10}{questions.summary(name)}" for name in questions.names())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--device", type=devices, default=["auto"], metavar="cpu,cuda", help="default: cpu, and cuda where it works")
    add("--peer", type=words, default=[], metavar="PEER,...", help=f"also measure: {', '.join(peer_names())}")
    add(
        "--op", type=words, default=["forward", "backward", "train"], metavar="forward,...", help="questions, see below"
    )
    add("--sizes", type=sizes, default=grid.sizes, metavar="BxIxO,...", help="layers: batch, inputs, outputs")
    add(
        "--networks", type=networks, default=grid.networks, metavar="784-512-10,...", help="widths of networks to train"
    )
    add("--batch", type=batches, default=grid.batches, metavar="1,32,...", help="batch sizes of the networks")
    add("--dtype", choices=DTYPES, default=grid.dtype)
    add("--activation", default=grid.activation, metavar="NAME", help=f"default: {grid.activation}")
    add("--optimizer", default=grid.optimizer, metavar="NAME", help=f"default: {grid.optimizer}")
    add("--min-time", type=duration, default=plan.min_time, metavar="S", help=f"seconds per line: {plan.min_time}")
    add("--warmup", type=duration, default=plan.warmup, metavar="S", help=f"seconds before each turn: {plan.warmup}")
    add("--json", type=Path, metavar="PATH", help="write the results here")
    add_outputs(parser)
    return parser


def report_parser(prog: str) -> argparse.ArgumentParser:
    """The options of `report`."""
    parser = argparse.ArgumentParser(
        prog=f"{prog} report", description="Show results of an earlier run in Markdown.", allow_abbrev=False
    )
    parser.add_argument("results", type=Path, metavar="RESULTS.json")
    parser.add_argument("--op", type=words, default=[], help="only these questions")
    parser.add_argument(
        "--into", type=Path, metavar="README.md", help="rewrite this file's blocks <!-- bench: RESULTS.json --> instead"
    )
    add_outputs(parser)
    return parser


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """The options that measuring and `report` share."""
    parser.add_argument("--plot", type=Path, metavar="PATH", help="draw the results (.png, .svg, .pdf)")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="show the change against these earlier results")
    parser.add_argument(
        "--fail-above", type=percent, metavar="10%", help="exit code 1 if a median grew by more than this"
    )


def words(text: str) -> list[str]:
    """Words between commas."""
    return checked(text, r"\w+", "words between commas", str)


def devices(text: str) -> list[str]:
    """Names of devices between commas."""
    return checked(text, r"auto|cpu|cuda(:\d+)?|reference", "cpu, cuda or cuda:N between commas", str)


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


def duration(text: str) -> float:
    """Seconds, not negative."""
    return checked(text, r"\d+(\.\d+)?", "a number of seconds", float)[0]


def percent(text: str) -> float:
    """A number, with or without a percent sign."""
    return checked(text, r"\d+(\.\d+)?%?", "a percentage such as 10%", lambda number: float(number.rstrip("%")))[0]


def checked(text: str, pattern: str, expected: str, convert: Callable[[str], Part]) -> list[Part]:
    """The converted parts of `text` between commas, each of which has to match."""
    parts = text.split(",")
    if not all(re.fullmatch(pattern, part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}")
    return [convert(part) for part in parts]
