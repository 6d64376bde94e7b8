"""Data sets in text tables (CSV)."""

from __future__ import annotations

import csv
import math
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fcdense.data.datasets import Dataset, Task
from fcdense.errors import ArgumentError, DataError, FormatError, unknown_name

FEW, ROWS_PER_CLASS = 10, 5
"""More than FEW different whole numbers with fewer rows each are not taken for classes without being asked."""
MISSING = frozenset({"", "?", "-", "na", "n/a", "nan", "null", "none"})


@dataclass(frozen=True)
class _Table:
    """The cells of a file: features as numbers, the target column as text, and the line that each row ends on."""

    path: Path
    columns: tuple[str, ...]
    target: int | None
    lines: array[int]
    values: array[float]
    labels: list[str]

    def fail(self, line: int, column: int, message: str) -> NoReturn:
        raise DataError(f"{self.path}, line {line}, column {self.columns[column]!r} (index {column}): {message}")


def load_csv(
    path: str | os.PathLike[str],
    target: str | int | None = -1,
    delimiter: str = ",",
    *,
    task: Task | None = None,
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """Read a table of numbers with one target column from a text file (UTF-8).

    The first line is the header if `target` is a name, or if no cell of it is a number; otherwise it is data and the
    columns are named column_0, column_1, ... Blank lines are skipped, blanks around a cell are stripped.

    Parameters
    ----------
    path : path
    target : str, int or None
        Name or index (from 0; negative from the end) of the target column; None where there is none.
    delimiter : str
        One character, e.g. ";" or "\\t".
    task : "classification" or "regression", optional
        Default: classification if a target is text or all targets are whole numbers, else regression. Many different
        whole numbers could be either, and have to be named.
    class_names : sequence of str, optional
        Number the classes in this order (that of the training file, say) and refuse any other label.

    Returns
    -------
    Dataset
        x float32 (N, I); y int64 (N,), places in `class_names`, which are sorted (whole numbers by value); or y
        float32 (N,) for regression; None without a target.

    Raises
    ------
    DataError
        A cell that is missing, no number or not finite, by line and column; a target that mixes text and fractions.
    FormatError
        An empty file, lines with more or fewer cells than the first, broken quotes, bytes that are not UTF-8.
    UnknownNameError
        No column of the name `target`, with near matches.
    ArgumentError
        An index, delimiter or task that cannot be.
    """
    if not isinstance(delimiter, str) or len(delimiter) != 1:
        raise ArgumentError(f"delimiter is {delimiter!r}, expected one character.")
    if task not in (None, "classification", "regression"):
        raise ArgumentError(f"task is {task!r}, expected 'classification', 'regression' or None.")
    path = Path(path)
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = _table(path, _records(path, file, delimiter), target, delimiter)
    features = tuple(name for i, name in enumerate(table.columns) if i != table.target)
    x = _features(table, len(features))
    if table.target is None:
        return Dataset(name=path.name, task=None, feature_names=features, x=x, y=None)
    if task is None:
        task = "classification" if class_names is not None else _task(table)
    if task == "regression":
        return Dataset(name=path.name, task=task, feature_names=features, x=x, y=_values(table))
    y, names = _classes(table, class_names)
    return Dataset(name=path.name, task=task, class_names=names, feature_names=features, x=x, y=y)


def _records(path: Path, file: IO[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and stripped cells of every line that is not blank; all of one length."""
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    width = 0
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if not any(cells) and len(cells) < 2:
                continue
            width = width or len(cells)
            if len(cells) != width:
                raise FormatError(f"{path}, line {reader.line_num}: {len(cells)} cells, the first line has {width}.")
            yield reader.line_num, cells
    except csv.Error as error:
        raise FormatError(f"{path}, line {reader.line_num}: {error}.") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}, after line {reader.line_num}: not UTF-8 text ({error}).") from error


def _table(path: Path, records: Iterator[tuple[int, list[str]]], target: str | int | None, delimiter: str) -> _Table:
    first_line, first = next(records, (0, []))
    if not first:
        raise FormatError(f"{path}: empty, expected a header and lines of numbers.")
    if target is not None and len(first) == 1:
        raise FormatError(
            f"{path}: one column with delimiter {delimiter!r} (first line {first[0]!r}), expected features and a "
            "target; pass the delimiter that the file uses."
        )
    header = isinstance(target, str) or all(_number(cell) is None for cell in first)
    columns = tuple(first) if header else tuple(f"column_{i}" for i in range(len(first)))
    place = _target_index(path, columns, target)
    table = _Table(path, columns, place, array("q"), array("d"), [])
    if not header:
        _append(table, first_line, first)
    for line, cells in records:
        _append(table, line, cells)
    if not table.lines:
        raise FormatError(f"{path}: a header and no rows below it.")
    return table


def _target_index(path: Path, columns: tuple[str, ...], target: str | int | None) -> int | None:
    if target is None:
        return None
    if isinstance(target, str):
        if target not in columns:
            if any(_number(cell) is not None for cell in columns):
                raise DataError(
                    f"{path}: no column {target!r}; the first line ({', '.join(columns[:5])}, ...) holds numbers and "
                    "seems to be no header. Give target as an index, or add a header."
                )
            unknown_name(f"target column in {path}:", target, columns)
        if columns.count(target) > 1:
            raise DataError(f"{path}: {columns.count(target)} columns are named {target!r}; give target as an index.")
        return columns.index(target)
    if isinstance(target, bool) or not isinstance(target, int | np.integer):
        raise ArgumentError(f"target is {target!r}, expected the name or the index of a column, or None.")
    if not -len(columns) <= target < len(columns):
        raise ArgumentError(f"target is {target}, but {path} has {len(columns)} columns: 0 to {len(columns) - 1}.")
    return int(target) % len(columns)


def _append(table: _Table, line: int, cells: list[str]) -> None:
    if table.target is not None:
        label = cells.pop(table.target)
        if not label:
            table.fail(line, table.target, "the target is missing; fill it in or remove the line.")
        table.labels.append(label)
    try:
        if "_" in "".join(cells):
            raise ValueError("float() would read 1_0 as 10")
        table.values.extend(map(float, cells))
    except ValueError:
        place = next(i for i, cell in enumerate(cells) if _number(cell) is None)
        _refuse(table, line, _column(table, place), cells[place])
    table.lines.append(line)


def _column(table: _Table, place: int) -> int:
    """Index in the file of the feature at `place`."""
    return place + (table.target is not None and place >= table.target)


def _refuse(table: _Table, line: int, column: int, cell: str) -> NoReturn:
    if cell.lower() in MISSING:
        table.fail(
            line, column, f"a missing value ({cell!r}); fill it, e.g. with the column's mean, or remove the line."
        )
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if math.isinf(value):
        table.fail(line, column, f"{cell!r} is not finite.")
    table.fail(line, column, f"{cell!r} is not a number; encode text as numbers, or remove the column.")


def _number(cell: str) -> float | None:
    """The finite number that `cell` is, else None."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in cell else None


def _features(table: _Table, width: int) -> NDArray[np.float32]:
    values = np.frombuffer(table.values, np.float64).reshape(len(table.lines), width)
    with np.errstate(over="ignore"):
        x = values.astype(np.float32)
    wrong = ~np.isfinite(x)
    if wrong.any():
        row, place = (int(i) for i in np.argwhere(wrong)[0])
        column = _column(table, place)
        value = values[row, place]
        if math.isfinite(value):
            table.fail(table.lines[row], column, f"{value:g} does not fit into float32 (at most 3.4e38).")
        _refuse(table, table.lines[row], column, str(value))
    return x


def _task(table: _Table) -> Task:
    numbers = [_number(label) for label in table.labels]
    text = next((row for row, number in enumerate(numbers) if number is None), None)
    fractions = any(number is not None and not number.is_integer() for number in numbers)
    if text is None and not fractions:
        values, rows = len(set(numbers)), len(numbers)
        if values > FEW and rows < ROWS_PER_CLASS * values:
            raise DataError(
                f"{table.path}: the target column {_target_name(table)!r} has {values} different whole numbers in "
                f"{rows} rows: are they a quantity or classes? Say task='regression' or task='classification' (--task)."
            )
    if text is None:
        return "regression" if fractions else "classification"
    if any(number is not None for number in numbers):
        label = table.labels[text]
        if label.lower() in MISSING:
            _fail_target(table, text, f"a missing target ({label!r}) among numbers; fill it in or remove the line.")
        if fractions:
            _fail_target(
                table, text, f"{label!r} is no number, but other lines have fractions; correct it, or pass task=."
            )
    return "classification"


def _target_name(table: _Table) -> str:
    assert table.target is not None
    return table.columns[table.target]


def _fail_target(table: _Table, row: int, message: str) -> NoReturn:
    assert table.target is not None
    table.fail(table.lines[row], table.target, message)


def _values(table: _Table) -> NDArray[np.float32]:
    largest = float(np.finfo(np.float32).max)
    values = np.empty(len(table.labels), np.float32)
    for row, label in enumerate(table.labels):
        number = _number(label)
        if number is None or abs(number) > largest:
            _fail_target(table, row, f"{label!r} is no finite float32; a regression needs one.")
        values[row] = number
    return values


def _classes(table: _Table, class_names: Sequence[str] | None) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    labels: list[Any] = table.labels
    numbers = [_number(label) for label in labels]
    if all(number is not None and number.is_integer() for number in numbers):
        labels = [int(label) if label.lstrip("+-").isdigit() else int(float(label)) for label in labels]
    names = tuple(map(str, sorted(set(labels)))) if class_names is None else tuple(class_names)
    place = {name: k for k, name in enumerate(names)}
    y = np.empty(len(labels), np.int64)
    for row, label in enumerate(labels):
        k = place.get(str(label))
        if k is None:
            _fail_target(table, row, f"label {str(label)!r} is not among class_names ({', '.join(names)}).")
        y[row] = k
    return y, names
