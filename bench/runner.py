"""Cases times candidates: measures every pair and compares every result with the float64 reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np

from fcdense import backends

from . import machine
from .candidates import Candidate
from .cases import Arrays, Case
from .results import Results, Row
from .timing import Plan, measure


def run(
    cases: Sequence[Case],
    candidates: Sequence[Candidate],
    plan: Plan,
    missing: dict[str, str],
    progress: Callable[[str], object],
) -> Results:
    """Measure every case on every candidate; `progress` is told which case is next."""
    rows: list[Row] = []
    about = machine.machine()  # before, so that the load is what others make
    for case in cases:
        progress(f"{case.question} {case.label}")
        rows += measure_case(case, candidates, plan)
    versions = machine.versions()
    for candidate in candidates:
        versions |= candidate.versions
    return Results(machine.date(), machine.commit(), about, versions, asdict(plan), missing, rows)


def measure_case(case: Case, candidates: Sequence[Candidate], plan: Plan) -> list[Row]:
    """A row for each candidate that has the case."""
    truth = reference(case)
    able = [candidate for candidate in candidates if candidate.prepare(case)]
    first, errors = [], []
    for candidate in able:
        first.append(1e-9 * candidate.time(1))
        errors.append(max_error(candidate.outputs(), truth))
    rows = []
    for candidate, first_call, error, timing in zip(able, first, errors, measure(able, plan), strict=True):
        q1, median, q3 = timing.quartiles
        row = Row(
            question=case.question,
            label=case.label,
            setting=case.setting,
            candidate=candidate.name,
            case=asdict(case),
            flops=case.flops,
            first_call_s=first_call,
            median_s=median,
            q1_s=q1,
            q3_s=q3,
            calls=timing.calls,
            rounds=plan.rounds,
            error=error,
        )
        rows.append(row)
    return rows


def reference(case: Case) -> Arrays:
    """The case's results in float64 throughout, from the same data."""
    data = {name: array.astype(np.float64) if array.dtype.kind == "f" else array for name, array in case.data().items()}
    run = case.prepare(backends.device("reference"), data)
    run.call()
    return run.outputs()


def max_error(outputs: Arrays, truth: Arrays) -> float | None:
    """The largest |output - truth| / max |truth| over all arrays, or None if there is a NaN or infinity."""
    errors = []
    for name, exact in truth.items():
        size = float(np.abs(exact).max())
        errors.append(float(np.abs(outputs[name].astype(np.float64) - exact).max()) / (size or 1.0))
    worst = float(np.max(errors))
    return worst if np.isfinite(worst) else None
