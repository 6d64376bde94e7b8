"""What rounds take for a step, where the step would only convert it first: written as the step reads it."""

from __future__ import annotations

from collections.abc import Sequence

from fcdense.arena import Array
from fcdense.backends.replay import Call, Feed, commute
from fcdense.backends.spans import overlap, same_memory


def converted(feeds: Sequence[Feed], calls: Sequence[Call], kept: Sequence[Array]) -> tuple[list[Feed], list[Call]]:
    """The feeds, those that nobody but a copy reads with what it writes as their target, and the calls without it.

    In mixed precision the first layer reads a batch in 16 bits: it is rounded as it is taken. `kept` are read after the
    calls.
    """
    result, left = [], list(calls)
    for feed in feeds:
        copy = _only_reader(feed.target, left, kept)
        if copy is not None:
            left.remove(copy)
            feed = feed._replace(target=copy.arguments["out"])
        result.append(feed)
    return result, left


def _only_reader(target: Array, calls: Sequence[Call], kept: Sequence[Array]) -> Call | None:
    """The copy of all of `target`, where nothing else uses that, and which may be made before all other calls."""
    users = [call for call in calls if any(overlap(target, array) for array in (*call.reads, *call.writes))]
    if len(users) != 1 or users[0].primitive != "copy" or any(overlap(target, array) for array in kept):
        return None
    copy = users[0]
    x, out = copy.arguments["x"], copy.arguments["out"]
    is_whole = same_memory(x, target) and out.shape == x.shape and out.flags.c_contiguous
    is_first = all(commute(earlier, copy) for earlier in calls[: calls.index(copy)])
    return copy if is_whole and is_first else None
