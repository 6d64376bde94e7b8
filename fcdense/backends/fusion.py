"""Rewrites of recorded calls for replays, which need not keep every array that the eager step wrote.

`consume_gradients`: a weight gradient whose only reader is the optimizer's pass over the arena never becomes a matrix;
each block of it updates weights and slots while it is in the cache. `join_passes`: the time of a step with few rows is
that of its passes over the kernels, and the input gradient and the update can share one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fcdense import loops
from fcdense.arena import Array
from fcdense.backends.replay import Call, commute
from fcdense.backends.spans import overlap, span
from fcdense.program import Program


class Update(NamedTuple):
    """An optimizer's pass over one matrix: (gradient, *arrays; scalars) -> new arrays[i] for i in `outputs`."""

    program: Program
    arrays: tuple[Array, ...]
    outputs: tuple[int, ...]
    scalars: Any


def consume_gradients(
    calls: Sequence[Call], kept: Sequence[Array], is_served: Callable[[Call], bool]
) -> tuple[list[Call], list[Array]]:
    """The calls with weight gradients and their updates joined, and the gradients that are no longer written.

    `kept` are gradients that somebody reads after the calls; those that are not served stay as they are.
    """
    result = list(calls)
    consumed: list[Array] = []
    for update in [call for call in calls if call.primitive == "map"]:
        gradient = _gradient_operand(update, calls)
        if gradient is None:
            continue
        result = _with_scalars_first(result, update)
        joined = [
            call
            for call in result
            if call.primitive == "dense_grad_weight"
            and is_served(call)
            and _joins(call, update, gradient, result)
            and not any(overlap(call.arguments["out"], array) for array in kept)
        ]
        if joined:
            result = _rewritten(result, update, gradient, joined)
            consumed += [call.arguments["out"] for call in joined]
    return result, consumed


def join_passes(calls: Sequence[Call], is_served: Callable[[Call], bool]) -> list[Call]:
    """The calls, with the update of a kernel joined to the input gradient that reads it before, if that is served."""
    result = list(calls)
    for update in [call for call in calls if call.primitive == "updated_weight"]:
        weight = update.writes[0]
        place = result.index(update)
        for i in reversed(range(place)):
            call = result[i]
            if call.primitive == "dense_grad_input" and _same(call.arguments["w_io"], weight):
                needs = any(overlap(a, b) for a in call.writes for b in update.reads)
                if needs or not is_served(call):
                    break
                given = {"grad_input": call.arguments, "updated": update.arguments}
                reads, writes = (*call.reads, *update.reads), (*call.writes, *update.writes)
                result[i] = Call("passed_weight", given, reads, writes)
                del result[place]
                break
            if not commute(call, update):
                break
    return result


def _gradient_operand(update: Call, calls: Sequence[Call]) -> int | None:
    """Which input of a pass over flat arrays holds weight gradients; None if it is another kind of pass."""
    arguments = update.arguments
    inputs, outs = arguments["inputs"], arguments["out"]
    flat = all(a.ndim == 1 and a.flags.c_contiguous and a.shape == outs[0].shape for a in (*inputs, *outs))
    in_place = all(any(_same(array, out) for array in inputs) for out in outs)
    if (
        not flat
        or not in_place
        or arguments["when"] is not None
        or not loops.supports(arguments["program"], outs[0].dtype)
    ):
        return None
    gradients = [call.arguments["out"] for call in calls if call.primitive == "dense_grad_weight"]
    for i, array in enumerate(inputs):
        if any(_inside(g, array) for g in gradients) and not any(overlap(array, out) for out in outs):
            return i
    return None


def _joins(gradient_call: Call, update: Call, gradient: int, calls: Sequence[Call]) -> bool:
    """Whether nobody but the update sees the gradient, and nobody in between sees what the update changes."""
    out = gradient_call.arguments["out"]
    if gradient_call.arguments["mode"] != "overwrite" or not _inside(out, update.arguments["inputs"][gradient]):
        return False
    if update not in calls or calls.index(gradient_call) > calls.index(update):
        return False
    changed = [_part(array, update, gradient, out) for array in update.arguments["out"]]
    touches = [a for call in calls if call not in (gradient_call, update) for a in (*call.reads, *call.writes)]
    start, stop = calls.index(gradient_call), calls.index(update)
    between = [a for call in calls[start:stop] for a in (*call.reads, *call.writes)]
    scalars = update.arguments["scalars"]
    late = hasattr(scalars, "strides") and any(overlap(scalars, a) for call in calls[start:stop] for a in call.writes)
    return (
        not late
        and not any(overlap(out, a) for a in touches)
        and not any(overlap(c, a) for c in changed for a in between)
    )


def _rewritten(calls: Sequence[Call], update: Call, gradient: int, joined: Sequence[Call]) -> list[Call]:
    arguments = update.arguments
    inputs, outs, scalars = arguments["inputs"], arguments["out"], arguments["scalars"]
    result = list(calls)
    rest = [i for i in range(len(inputs)) if i != gradient]
    first, program = arguments["program"].reordered([gradient, *rest]).without_scalar_work()
    values = np.empty(program.n_scalars)
    if first is not None:
        cells = tuple(values[k : k + 1].reshape(()) for k in range(len(values)))
        given = {"program": first, "inputs": (), "scalars": scalars, "out": cells, "when": None}
        place = result.index(joined[0])
        result.insert(place, Call("map", given, _arrays(scalars), cells))
        _move_up(result, place)
    for call in joined:
        x_bi, dz_bo, out = (call.arguments[name] for name in ("x_bi", "dz_bo", "out"))
        parts = tuple(_part(inputs[i], update, gradient, out) for i in rest)
        places = tuple(next(k for k, i in enumerate(rest) if _same(inputs[i], o)) for o in outs)
        given = {"x_bi": x_bi, "dz_bo": dz_bo, "update": Update(program, parts, places, values)}
        reads = (x_bi, dz_bo, *parts, values)
        result[result.index(call)] = Call("updated_weight", given, reads, tuple(parts[k] for k in places))
    place = result.index(update)
    result[place : place + 1] = [_over(update, part) for part in _left_over(update, gradient, joined)]
    return result


def _with_scalars_first(calls: Sequence[Call], update: Call) -> list[Call]:
    """The calls that write the update's scalars as early as they can be made: before the weight gradients."""
    scalars = update.arguments["scalars"]
    result = list(calls)
    if not hasattr(scalars, "strides"):
        return result
    for i, call in enumerate(calls[: calls.index(update)]):
        if any(overlap(a, scalars) for a in call.writes):
            _move_up(result, i)
    return result


def _move_up(calls: list[Call], place: int) -> None:
    """Make a call as early as it can be made."""
    call = calls.pop(place)
    while place and commute(calls[place - 1], call):
        place -= 1
    calls.insert(place, call)


def _left_over(update: Call, gradient: int, joined: Sequence[Call]) -> Iterator[slice]:
    """What remains of the flat pass."""
    flat = update.arguments["inputs"][gradient]
    taken = sorted(_slice(call.arguments["out"], flat) for call in joined)
    start = 0
    for first, stop in [*taken, (flat.size, flat.size)]:
        if first > start:
            yield slice(start, first)
        start = stop


def _over(update: Call, part: slice) -> Call:
    arguments = update.arguments
    inputs, outs = ([a[part] for a in arguments[name]] for name in ("inputs", "out"))
    reads = (*inputs, *_arrays(arguments["scalars"]))
    return Call(update.primitive, {**arguments, "inputs": inputs, "out": outs}, reads, tuple(outs))


def _arrays(scalars: Any) -> tuple[Array, ...]:
    """The array that scalars lie in, if they are not numbers."""
    return (scalars,) if hasattr(scalars, "strides") else ()


def _part(array: Array, update: Call, gradient: int, out: Array) -> Array:
    """The part of a flat operand of the update that belongs to the gradient `out`, in its shape."""
    start, stop = _slice(out, update.arguments["inputs"][gradient])
    part: Array = array[start:stop].reshape(out.shape)
    return part


def _slice(part: Array, flat: Array) -> tuple[int, int]:
    start = (span(part)[0] - span(flat)[0]) // flat.itemsize
    return start, start + part.size


def _inside(part: Array, whole: Array) -> bool:
    (p0, p1), (w0, w1) = span(part), span(whole)
    return part.flags.c_contiguous and w0 <= p0 and p1 <= w1 and part.dtype == whole.dtype


def _same(a: Array, b: Array) -> bool:
    return span(a) == span(b)
