"""An optimizer's memory of its parameters as plain data: read for saving, and checked whole before it is taken back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fcdense.errors import FormatError
from fcdense.optim.slots import HostArray, Slots
from fcdense.parameter import Parameter

Entry = Mapping[str, Any]


class Memory(NamedTuple):
    """Updates and slots by position of the parameter."""

    counts: dict[int, int]
    slots: dict[int, list[HostArray]]


def names(parameters: Sequence[Parameter]) -> list[str]:
    """A key for each parameter: its name, followed by its position where several have the same."""
    counts = Counter(p.name for p in parameters)
    return [p.name if counts[p.name] == 1 else f"{p.name}#{i}" for i, p in enumerate(parameters)]


def read(slots: Slots) -> dict[str, dict[str, Any]]:
    """For each parameter that is built: {"steps": its updates, slot name: array, ...}."""
    slots.settle()
    return {
        name: {"steps": slots.clocks[i].count, **dict(zip(slots.names, slots.read(i), strict=True))}
        for i, name in enumerate(names(slots.parameters))
        if slots.parameters[i].is_built
    }


def check(slots: Slots, entries: Mapping[str, Entry]) -> Memory:
    """What `read` wrote, for these parameters.

    Raises
    ------
    FormatError
        Lists every parameter that is missing, unknown or not built yet, and every slot that does not fit.
    """
    found = Memory({}, {})
    if not isinstance(entries, Mapping):
        raise FormatError(f"expected a mapping from names of parameters, given {type(entries).__name__}.")
    known = dict(zip(names(slots.parameters), enumerate(slots.parameters), strict=True))
    problems = [f"'{name}' is no parameter of this optimizer" for name in entries if name not in known]
    for name, (i, parameter) in known.items():
        if name not in entries:
            if parameter.is_built:
                problems.append(f"'{name}' is missing")
        elif not parameter.is_built:
            problems.append(f"'{name}' has no shape yet: call the model once before loading")
        else:
            problems += [f"'{name}': {problem}" for problem in _read_entry(slots, i, entries[name], found)]
    if problems:
        raise FormatError("; ".join(problems) + ".")
    return found


def _read_entry(slots: Slots, i: int, entry: Entry, found: Memory) -> list[str]:
    """Put one parameter's data into `found`, or say what is wrong with it."""
    expected = ["steps", *slots.names]
    if not isinstance(entry, Mapping) or set(entry) != set(expected):
        given = sorted(entry) if isinstance(entry, Mapping) else type(entry).__name__
        return [f"expected {', '.join(expected)}, given {given}"]
    problems = []
    try:
        found.counts[i] = count(entry["steps"])
    except FormatError as error:
        problems.append(f"steps: {error}")
    found.slots[i] = []
    for name in slots.names:
        array = np.asarray(entry[name])
        if array.shape != slots.parameters[i].shape or array.dtype.kind != "f":
            problems.append(
                f"{name} is {array.dtype} of shape {array.shape}, expected floats of shape {slots.parameters[i].shape}"
            )
        found.slots[i].append(array)
    return problems


def count(value: object) -> int:
    """`value`, if it is an integer >= 0, else `FormatError`."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise FormatError(f"{value!r}, expected an integer >= 0.")
