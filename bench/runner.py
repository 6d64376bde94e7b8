"""Cases times candidates: measures every pair and compares every result with the float64 reference."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, replace
from typing import NamedTuple

import numpy as np

from . import machine, peak
from .candidates import Candidate, CandidateError
from .cases import Arrays, Case
from .results import NO_RESULT, NOT_FINITE, Results, Row
from .timing import Plan, Timing, measure

AT_LEAST = 10.0
"""Seconds that a candidate has for a case which was begun in time, though others have used up the rest."""


def setting(
    candidates: Sequence[Candidate], plan: Plan, missing: dict[str, str], with_peak: bool, commit: str | None = None
) -> Results:
    """Results without rows: where, with what and how is going to be measured; of this commit if git cannot tell."""
    about = machine.machine()  # before, so that the load is what others make
    if with_peak:
        about["peak_gflops"], reason = peak.gflops(about["cores"])
        if reason:
            missing["share of the FMA peak"] = reason
    versions = machine.versions()
    for candidate in candidates:
        versions |= candidate.versions
    return Results(machine.date(), machine.commit() or commit, about, versions, asdict(plan), missing)


def run(
    about: Results, case: Case, candidates: Sequence[Candidate], plan: Plan, memory: bool, until: float = math.inf
) -> Results:
    """Measure a case on every candidate; with `memory`, each runs it once more in a new process, which is measured.

    None takes much longer than `until`, a time of the monotonic clock.
    """
    rows, missing = measure_case(case, candidates, plan, memory, until)
    return replace(about, rows=rows, missing=missing)


def measure_case(
    case: Case, candidates: Sequence[Candidate], plan: Plan, memory: bool, until: float
) -> tuple[list[Row], dict[str, str]]:
    """A row for each candidate that has the case, and what could not be measured with the reason."""
    missing: dict[str, str] = {}
    able: list[tuple[Candidate, Start]] = []
    with ThreadPoolExecutor(1) as elsewhere:
        truth = elsewhere.submit(reference, case)
        if not all(candidate.name.startswith("cuda") for candidate in candidates):
            truth.result()  # it would take the processor from those that begin
        for candidate in candidates:
            candidate.patience = min(candidate.patience, max(until - time.monotonic(), AT_LEAST))
            try:
                if candidate.prepare(case):
                    seconds = 1e-9 * candidate.time(case.steps).ns
                    able.append((candidate, Start(seconds, candidate.outputs(), candidate.note())))
            except CandidateError as failed:
                missing[name(case, candidate)] = str(failed)
        exact = truth.result()
    rows = []
    timings = measure([candidate for candidate, _ in able], plan)
    for (candidate, start), timing in zip(able, timings, strict=True):
        if timing.failure or not timing.kept:
            missing[name(case, candidate)] = timing.failure or "other processes disturbed every sample."
            continue
        held = peak_memory(case, candidate.name) if memory else None
        rows.append(row(case, candidate.name, start, max_error(start.outputs, exact), timing, held))
    return rows, missing


class Start(NamedTuple):
    """What a candidate's first calls gave: their seconds, the results, and what served them."""

    seconds: float
    outputs: Arrays
    note: str


def name(case: Case, candidate: Candidate) -> str:
    """As `Row.name`, where there is no row."""
    return f"{candidate.name}, {case.question} {case.label} ({case.setting})"


def row(case: Case, name: str, start: Start, error: float | str, timing: Timing, peak_bytes: int | None) -> Row:
    """One answer."""
    q1, median, q3 = timing.quartiles
    return Row(
        question=case.question,
        label=case.label,
        setting=case.setting,
        candidate=name,
        case=asdict(case),
        flops=case.flops,
        work=[list(kernel) for kernel in case.work],
        start_s=start.seconds,
        median_s=median,
        q1_s=q1,
        q3_s=q3,
        samples=list(timing.samples),
        calls=timing.calls,
        rounds=len(timing.samples),
        error=error,
        tolerance=case.tolerance,
        note=start.note,
        peak_bytes=peak_bytes,
    )


def peak_memory(case: Case, name: str) -> int:
    """Bytes that a new process holds at most in three calls when all is set up, over those after a very small case.

    That one makes libraries load what they put off until their first use. What imports left behind may be given back
    later, so that the difference of very small cases could be negative.
    """
    with closing(Candidate(name)) as candidate:
        candidate.wait()
        small = case.smallest()
        candidate.prepare(small)
        candidate.time(small.steps)
        before = candidate.resident()
        candidate.prepare(case)
        candidate.time(case.steps)
        return max(0, candidate.peak(3) - before)


def reference(case: Case) -> Arrays:
    """The case's results in float64 throughout, from the same data."""
    return case.exact()


def max_error(outputs: Arrays, truth: Arrays) -> float | str:
    """The largest |output - truth| / max |truth| over all arrays that there are, or why there is none.

    Of logits there may be more rows than in `truth`, the same ones again (`Network.rows`).

    A single number, the loss, is measured against 1 where it is smaller: near 0 nothing is left of it but the rounding
    of the logits, as after a few steps on a single row.
    """
    if not outputs:
        return NO_RESULT
    errors = []
    for name, output in outputs.items():
        exact = truth[name]
        size = float(np.abs(exact).max())
        if exact.ndim == 0:
            size = max(size, 1.0)
        found = output[: len(exact)] if exact.ndim else output
        errors.append(float(np.abs(found.astype(np.float64) - exact).max()) / (size or 1.0))
    worst = float(np.max(errors))
    return worst if np.isfinite(worst) else NOT_FINITE
