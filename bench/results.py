"""Results: the rows that were measured, with the machine, versions, date and commit, as JSON that is kept."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fcdense.errors import FormatError

FORMAT = "fcdense bench 1"


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
    first_call_s : float
        Seconds of the first call of this case, with whatever is compiled or allocated then.
    median_s, q1_s, q3_s : float
        Quartiles over the rounds, seconds per call.
    calls, rounds : int
        Each round's sample is the mean over so many calls.
    error : float or None
        Largest difference from the float64 reference, relative to the largest value of the array it is in. None:
        there is a NaN or infinity.
    """

    question: str
    label: str
    setting: str
    candidate: str
    case: dict[str, Any]
    flops: int
    first_call_s: float
    median_s: float
    q1_s: float
    q3_s: float
    calls: int
    rounds: int
    error: float | None

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.question, self.label, self.setting, self.candidate

    @property
    def iqr_s(self) -> float:
        return self.q3_s - self.q1_s

    @property
    def gflops(self) -> float:
        """Billions of operations per second."""
        return 1e-9 * self.flops / self.median_s


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
        Devices that could not be measured, with the reason.
    rows : list of Row
    """

    date: str
    commit: str | None
    machine: dict[str, Any]
    versions: dict[str, str]
    plan: dict[str, Any]
    missing: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write JSON."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1, allow_nan=False, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")

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


def _check_fields(path: Path, data: Any, kind: type) -> None:
    """Raise `FormatError` unless `data` has the fields of the dataclass `kind`, no more and no less."""
    expected = {entry.name for entry in fields(kind)}
    given = set(data) if isinstance(data, dict) else set()
    if given != expected:
        wrong = ", ".join(sorted(given ^ expected))
        raise FormatError(f"{path}: {kind.__name__} has missing or unknown fields: {wrong}.")
