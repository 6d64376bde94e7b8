"""Results: the rows that were measured, with the machine, versions, date and commit, as JSON that is kept."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any

from fcdense.errors import ArgumentError, FormatError

FORMAT = "fcdense bench 3"
NOT_FINITE = "not finite"
NO_RESULT = "–"


@dataclass(frozen=True)
class Row:
    """One candidate's answer to one case.

    Attributes
    ----------
    question, label, setting, candidate : str
        What was measured; together they name the row.
    case : dict
        All parameters of the case.
    flops : int
        Multiplications and additions of its matrix products.
    work : list of [int, int]
        For each kernel that the case needs at least: operations, and bytes that it reads and writes. Empty where nobody
        has counted them.
    start_s : float
        Seconds of the first calls, after which results are compared; with whatever is compiled or allocated then.
    median_s, q1_s, q3_s : float
        Quartiles over the samples, seconds per call.
    samples : list of float or None
        One for each round: the mean over `calls` calls. None: other processes disturbed it.
    calls, rounds : int
    error : float or str
        Largest difference from the float64 reference, relative to the largest value of the array it is in; a word where
        there is no such number.
    tolerance : float or None
        The largest error that rounding explains.
    note : str
        What served the case, where there is a choice.
    peak_bytes : int or None
        Memory that a process holds at most during three calls, over what it held after a very small case. None: not
        measured.
    """

    question: str
    label: str
    setting: str
    candidate: str
    case: dict[str, Any]
    flops: int
    work: list[list[int]]
    start_s: float
    median_s: float
    q1_s: float
    q3_s: float
    samples: list[float | None]
    calls: int
    rounds: int
    error: float | str
    tolerance: float | None
    note: str
    peak_bytes: int | None

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.question, self.label, self.setting, self.candidate

    @property
    def name(self) -> str:
        """All of the key in words."""
        return f"{self.candidate}, {self.problem}"

    @property
    def problem(self) -> str:
        """The same without the candidate."""
        return f"{self.question} {self.label} ({self.setting})"

    @property
    def iqr_s(self) -> float:
        return self.q3_s - self.q1_s

    @property
    def disturbed(self) -> int:
        """Rounds without a sample."""
        return self.samples.count(None)

    @property
    def gflops(self) -> float:
        """Billions of operations per second."""
        return 1e-9 * self.flops / self.median_s

    @property
    def nbytes(self) -> int:
        """Bytes that have to be read and written at least."""
        return sum(nbytes for _, nbytes in self.work)

    @property
    def is_on_gpu(self) -> bool:
        """Whether the candidate computes on a GPU."""
        return self.candidate.startswith("cuda")

    @property
    def is_rounding(self) -> bool:
        """Whether rounding explains the error, if it is a number."""
        return isinstance(self.error, str) or self.tolerance is None or self.error <= self.tolerance


@dataclass(frozen=True)
class Results:
    """Everything one run of the bench found.

    Attributes
    ----------
    date : str
        UTC, ISO 8601.
    commit : str or None
        None outside of a checkout; "-dirty" at the end when files had been changed since.
    machine, versions, plan : dict
        Where, with what, and for how long it was measured.
    missing : dict of str
        Candidates, rows (by `Row.name`) and problems (by `Row.problem`) that were not measured, with the reason.
    rows : list of Row
    """

    date: str
    commit: str | None
    machine: dict[str, Any]
    versions: dict[str, str]
    plan: dict[str, Any]
    missing: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def tables(
        self, questions: Collection[str] = (), settings: Collection[str] = ()
    ) -> dict[tuple[str, str], list[Row]]:
        """The rows by question and setting, of all questions or those named, and of settings that have all these words;
        those of one case beside each other."""
        found: dict[tuple[str, str], dict[str, list[Row]]] = {}
        for row in self.rows:
            if (not questions or row.question in questions) and set(settings) <= set(row.setting.split(", ")):
                found.setdefault((row.question, row.setting), {}).setdefault(row.label, []).append(row)
        return {key: list(chain.from_iterable(labels.values())) for key, labels in found.items()}

    def has_all_of(self, problem: str) -> bool:
        """Whether there are rows of a problem (`Row.problem`), and none is missing."""
        is_there = any(row.problem == problem for row in self.rows)
        return is_there and not any(name.endswith(problem) for name in self.missing)

    def write(self, path: Path) -> None:
        """Write JSON."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1, allow_nan=False, ensure_ascii=False)
        unfinished = path.with_suffix(f"{path.suffix}.unfinished")
        unfinished.write_text(text + "\n", encoding="utf-8")
        unfinished.replace(path)  # what was measured before is not lost in between

    @staticmethod
    def read(path: Path) -> Results:
        """What `write` wrote.

        Raises
        ------
        FormatError
            The file is missing or is not of that form.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FormatError(f"{path} cannot be read as results of the bench: {error}") from None
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise FormatError(f"{path} is not a results file: expected JSON with the format {FORMAT!r}.")
        _check_fields(path, data, Results)
        for row in data["rows"]:
            _check_fields(path, row, Row)
        return Results(**{**data, "rows": [Row(**row) for row in data["rows"]]})


def merge(before: Results, after: Results) -> Results:
    """Both in one: `after` wins where both have a row.

    Raises
    ------
    ArgumentError
        They were not measured on the same machine, with the same versions and plan, from the same commit.
    """
    differing = [
        *(f"machine.{name}" for name in ("cpu", "cores", "os") if before.machine[name] != after.machine[name]),
        *(["machine.gpu"] if gpu_name(before.machine) != gpu_name(after.machine) else []),
        *(
            f"{name} version"
            for name, version in before.versions.items()
            if after.versions.get(name, version) != version
        ),
        *(["plan"] if before.plan != after.plan else []),
        *(["commit"] if before.commit != after.commit else []),
    ]
    if differing:
        raise ArgumentError(
            f"These results cannot be put together with the earlier ones; these differ: {', '.join(differing)}. "
            "Measure all of it anew, or write to another file."
        )
    rows = {row.key: row for row in [*before.rows, *after.rows]}
    measured = {name for row in rows.values() for name in (row.candidate, row.name, row.problem)}
    missing = {name: why for name, why in (before.missing | after.missing).items() if name not in measured}
    machine = after.machine | {"load_average": max_or_none(before.machine, after.machine, "load_average")}
    machine["peak_gflops"] = max_or_none(before.machine, after.machine, "peak_gflops")
    return Results(
        after.date, after.commit, machine, before.versions | after.versions, after.plan, missing, list(rows.values())
    )


def gpu_name(machine: dict[str, Any]) -> str:
    """What a machine's GPU is called; "" if it has none."""
    return str(machine["gpu"]["name"]) if machine["gpu"] else ""


def max_or_none(first: dict[str, Any], second: dict[str, Any], name: str) -> Any:
    """The larger of two values of which either may be missing."""
    return max((value for value in (first[name], second[name]) if value is not None), default=None)


def _check_fields(path: Path, data: Any, kind: type) -> None:
    """Raise `FormatError` unless `data` has the fields of the dataclass `kind`, no more and no less."""
    expected = {entry.name for entry in fields(kind)}
    given = set(data) if isinstance(data, dict) else set()
    if given != expected:
        wrong = ", ".join(sorted(given ^ expected))
        raise FormatError(f"{path}: {kind.__name__} has missing or unknown fields: {wrong}.")
