"""Two results of the same cases beside each other: what became slower?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fcdense.errors import ArgumentError

from .results import Results, Row, gpu_name


@dataclass(frozen=True)
class Change:
    """One row, measured twice."""

    before: Row
    after: Row

    @property
    def ratio(self) -> float:
        """Time after over time before: above 1 is slower."""
        return self.after.median_s / self.before.median_s


def compare(before: Results, after: Results) -> list[Change]:
    """The rows that both have, in the order of `after`.

    Raises
    ------
    ArgumentError
        They have none in common.
    """
    known = {row.key: row for row in before.rows}
    changes = [Change(known[row.key], row) for row in after.rows if row.key in known]
    if not changes:
        raise ArgumentError("The two results have no row in common: measure the same questions, sizes and settings.")
    return changes


def regressions(changes: Sequence[Change], fail_above: float) -> list[Change]:
    """The changes whose time grew by more than `fail_above` percent."""
    return [change for change in changes if change.ratio > 1.0 + fail_above / 100.0]


def other_machine(before: Results, after: Results) -> str:
    """A sentence when the two were measured on different machines, or ""."""
    names = []
    for machine in (before.machine, after.machine):
        gpu = gpu_name(machine)
        names.append(f"{machine['cpu']} ({machine['cores']} cores){f' and {gpu}' if gpu else ''}")
    return "" if names[0] == names[1] else f"Measured on different machines: {names[0]} before, {names[1]} after."
