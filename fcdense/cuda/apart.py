"""Recorded calls cut in two where a graph gains by it: what others wait for, and what they need not wait for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from fcdense.arena import Array
from fcdense.backends.replay import Call

FLOAT64 = np.dtype(np.float64)


def apart(call: Call, empty: Callable[[tuple[int, ...], np.dtype[Any]], Array]) -> list[Call]:
    """The call, or two that do the same; memory between them is made by `empty`.

    The gradients below an activation do not wait for the column sums of its own, and an update whose numbers are read
    on the device finds what follows from these alone computed before.
    """
    if call.primitive == "act_grad":
        return _sums_apart(call)
    if call.primitive == "map":
        return _scalars_apart(call, empty)
    return [call]


def _sums_apart(call: Call) -> list[Call]:
    arguments = call.arguments
    dy, act, out, db = (arguments[name] for name in ("dy_bo", "act", "out", "db"))
    if db is None or arguments["mode"] != "overwrite":
        return [call]
    x = dy if act.is_linear else out
    gradient = replace(call, arguments={**arguments, "db": None}, writes=(out,))
    sums = {"operation": "sum", "x": x, "axes": (0,), "out": db}
    return [gradient, Call("reduce", sums, (x,), (db,), call.precision)]


def _scalars_apart(call: Call, empty: Callable[[tuple[int, ...], np.dtype[Any]], Array]) -> list[Call]:
    arguments = call.arguments
    scalars = arguments["scalars"]
    first, body = arguments["program"].without_scalar_work()
    if not arguments["inputs"] or first is None or isinstance(scalars, (list, tuple)):
        return [call]
    live = empty((body.n_scalars,), FLOAT64)
    cells = tuple(live[k, ...] for k in range(body.n_scalars))
    alone = {"program": first, "inputs": (), "scalars": scalars, "out": cells, "when": None}
    reads = (live, *(array for array in call.reads if array is not scalars))
    rest = replace(call, arguments={**arguments, "program": body, "scalars": live}, reads=reads)
    return [Call("map", alone, (scalars,), (live,), call.precision), rest]
