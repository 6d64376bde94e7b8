"""Cases times candidates: measures every pair and compares every result with the float64 reference."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace

import numpy as np

from fcdense import backends

from . import machine, peak
from .candidates import Candidate, CandidateError
from .cases import Arrays, Case
from .results import NO_RESULT, NOT_FINITE, Results, Row
from .timing import Plan, Timing, measure


def setting(candidates: Sequence[Candidate], plan: Plan, missing: dict[str, str], with_peak: bool) -> Results:
    """Results without rows: where, with what and how is going to be measured."""
    about = machine.machine()  # before, so that the load is what others make
    if with_peak:
        about["peak_gflops"], reason = peak.gflops(about["cores"])
        if reason:
            missing["share of the FMA peak"] = reason
    versions = machine.versions()
    for candidate in candidates:
        versions |= candidate.versions
    return Results(machine.date(), machine.commit(), about, versions, asdict(plan), missing)


def run(about: Results, case: Case, candidates: Sequence[Candidate], plan: Plan, memory: bool) -> Results:
    """Measure a case on every candidate; with `memory`, each runs it once more in a new process, which is measured."""
    rows, missing = measure_case(case, candidates, plan, memory)
    return replace(about, rows=rows, missing=missing)


def measure_case(
    case: Case, candidates: Sequence[Candidate], plan: Plan, memory: bool
) -> tuple[list[Row], dict[str, str]]:
    """A row for each candidate that has the case, and what could not be measured with the reason."""
    truth = reference(case)
    missing: dict[str, str] = {}
    able, starts, errors = [], [], []
    for candidate in candidates:
        try:
            if candidate.prepare(case):
                starts.append(1e-9 * candidate.time(case.steps).ns)
                errors.append(max_error(candidate.outputs(), truth))
                able.append(candidate)
        except CandidateError as failed:
            missing[name(case, candidate)] = str(failed)
    rows = []
    for candidate, start, error, timing in zip(able, starts, errors, measure(able, plan), strict=True):
        if timing.kept:
            held = peak_memory(case, candidate.name) if memory else None
            rows.append(row(case, candidate.name, start, timing, error, held))
        else:
            missing[name(case, candidate)] = "other processes disturbed every sample."
    return rows, missing


def name(case: Case, candidate: Candidate) -> str:
    """As `Row.name`, where there is no row."""
    return f"{candidate.name}, {case.question} {case.label} ({case.setting})"


def row(case: Case, name: str, start: float, timing: Timing, error: float | str, peak_bytes: int | None) -> Row:
    """One answer."""
    q1, median, q3 = timing.quartiles
    return Row(
        question=case.question,
        label=case.label,
        setting=case.setting,
        candidate=name,
        case=asdict(case),
        flops=case.flops,
        start_s=start,
        median_s=median,
        q1_s=q1,
        q3_s=q3,
        samples=list(timing.samples),
        calls=timing.calls,
        rounds=len(timing.samples),
        error=error,
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
    data = {name: array.astype(np.float64) if array.dtype.kind == "f" else array for name, array in case.data().items()}
    device = backends.device("reference")
    run = case.prepare_eager(device, data) or case.prepare(device, data)
    for _ in range(case.steps):
        run.call()
    return run.outputs()


def max_error(outputs: Arrays, truth: Arrays) -> float | str:
    """The largest |output - truth| / max |truth| over all arrays, or why there is none.

    A single number, the loss, is measured against 1 where it is smaller: near 0 nothing is left of it but the rounding
    of the logits, as after a few steps on a single row.
    """
    if not outputs:
        return NO_RESULT
    errors = []
    for name, exact in truth.items():
        size = float(np.abs(exact).max())
        if exact.ndim == 0:
            size = max(size, 1.0)
        errors.append(float(np.abs(outputs[name].astype(np.float64) - exact).max()) / (size or 1.0))
    worst = float(np.max(errors))
    return worst if np.isfinite(worst) else NOT_FINITE
