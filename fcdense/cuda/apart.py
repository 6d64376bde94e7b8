"""Recorded calls cut in two where a graph gains by it: what others wait for, and what they need not wait for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from fcdense.arena import Array
from fcdense.backends.replay import Call, commute
from fcdense.cuda.launcher import FLOAT64


class Part(NamedTuple):
    """All of a call, or one of two that do the same; the number of the call."""

    number: int
    call: Call


def apart(calls: Sequence[Call], empty: Callable[[tuple[int, ...], np.dtype[Any]], Array]) -> list[Part]:
    """The calls in parts; memory between two of one call is made by `empty`.

    The gradients below an activation do not wait for the column sums of its own, and what follows from the numbers of
    an update alone, where they are read on the device, is computed as soon as they are there.
    """
    parts: list[Part] = []
    for number, call in enumerate(calls):
        if call.primitive == "act_grad":
            parts += [Part(number, half) for half in _sums_apart(call)]
        elif call.primitive == "map":
            *first, rest = _scalars_apart(call, empty)
            for alone in first:
                place = len(parts)
                while place and commute(parts[place - 1].call, alone):
                    place -= 1
                parts.insert(place, Part(number, alone))
            parts.append(Part(number, rest))
        else:
            parts.append(Part(number, call))
    return parts


def _sums_apart(call: Call) -> list[Call]:
    arguments = call.arguments
    out, db = arguments["out"], arguments["db"]
    if db is None or out is None or arguments["mode"] != "overwrite":
        return [call]
    gradient = replace(call, arguments={**arguments, "db": None}, writes=(out,))
    sums = {"operation": "sum", "x": out, "axes": (0,), "out": db}
    return [gradient, Call("reduce", sums, (out,), (db,), call.precision)]


def _scalars_apart(call: Call, empty: Callable[[tuple[int, ...], np.dtype[Any]], Array]) -> list[Call]:
    arguments = call.arguments
    inputs, scalars = arguments["inputs"], arguments["scalars"]
    first, body = arguments["program"].without_scalar_work()
    if not inputs or first is None or first.copies_scalars or isinstance(scalars, (list, tuple)):
        return [call]
    live = empty((body.n_scalars,), FLOAT64)
    cells = tuple(live[k, ...] for k in range(body.n_scalars))
    alone = {"program": first, "inputs": (), "scalars": scalars, "out": cells, "when": None}
    reads = (*inputs, live, *call.reads[len(inputs) + 1 :])
    rest = replace(call, arguments={**arguments, "program": body, "scalars": live}, reads=reads)
    return [Call("map", alone, (scalars,), (live,), call.precision), rest]
