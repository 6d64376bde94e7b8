"""Replays on the GPU: all launches of a step as one graph, and of a round."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from fcdense.arena import Array, Buffers
from fcdense.backends.cuda import CudaBackend
from fcdense.backends.replay import Call, Feed, Keep, Replay
from fcdense.backends.spans import overlap
from fcdense.backends.temporaries import Temporaries
from fcdense.cuda import lanes, source
from fcdense.cuda.apart import apart
from fcdense.cuda.driver import LANES
from fcdense.cuda.feeds import converted
from fcdense.cuda.lanes import Work
from fcdense.cuda.launcher import FLOAT64
from fcdense.cuda.source import Kernel
from fcdense.precision import FLOAT_KINDS, use_precision
from fcdense.program import trace

SAME = trace(lambda x: x, 1, name="copy")


class Recorded(CudaBackend):
    """The backend while its launches on one lane are recorded: temporary arrays are those of the graph."""

    def __init__(self, backend: CudaBackend, lane: int = 0) -> None:
        super().__init__(backend.driver, backend.products.plan, lane)
        self._owner = backend
        self.temporaries = Temporaries(self)

    @property
    def workspace(self) -> Buffers:
        return self.temporaries

    def release(self) -> None:
        self._owner.release()

    def make(self, call: Call) -> str:
        """Launch what a call is made of; which of several kernels serves it and why, or ""."""
        self.products.served = ""
        with use_precision(call.precision):
            getattr(self, call.primitive)(**call.arguments)
        self.temporaries.take_back()
        served = self.products.served
        return served and f", {self.products.why}: {served}"


class GraphReplay(Replay):
    """Recorded primitives as launches that the driver repeats; no Python stands between them."""

    def __init__(self, backend: CudaBackend, calls: Sequence[Call]) -> None:
        self._owner = backend
        self._lanes = [Recorded(backend, lane) for lane in range(LANES)]
        self._calls = calls  # whose arrays the graph works on
        self._served = [""] * len(calls)
        self._parts = apart(calls, backend.empty)
        work = [Work(partial(self._make, number, call), call.reads, call.writes) for number, call in self._parts]
        self._launch = lanes.record(backend.driver, work)

    def _make(self, number: int, call: Call, lane: int) -> None:
        served = self._lanes[lane].make(call)
        self._served[number] = f"{self._owner.implementation}{served}"

    def run(self) -> None:
        self._launch()
        self._made += 1

    def rounds(
        self, feeds: Sequence[Feed], keeps: Sequence[Keep], go_on: Array | None = None
    ) -> Callable[[int], int] | None:
        if not all(_is_taken(*feed) for feed in feeds):
            return None
        if not all(_is_copied(x, target, x.shape) for x, target in keeps):
            return None
        if go_on is not None and any(_adds(call) or _decides(call, go_on) for call in self._calls):
            return None  # rounds after the last one would add as well, or go on
        return GraphRounds(self._lanes, self._calls, feeds, keeps, go_on).run

    def describe(self) -> list[str]:
        return self._served


def _is_copied(x: Array, other: Array, row: tuple[int, ...]) -> bool:
    """Whether the kernels of rounds copy `x` to or from an array with such rows."""
    return bool(x.size and x.flags.c_contiguous and x.dtype == other.dtype and other.shape[1:] == row)


def _is_taken(x: Array, order: Array, out: Array) -> bool:
    """Whether the kernels of rounds take rows of `x`."""
    return all(array.flags.c_contiguous for array in (x, order)) and _is_copied(out, x, out.shape[1:])


def _converts(feed: Feed) -> bool:
    return bool(feed.source.dtype != feed.target.dtype)


def _adds(call: Call) -> bool:
    """Whether a call reads what it writes, and is none that can be kept from it."""
    return call.primitive not in ("map", "next_stream") and any(overlap(x, y) for x in call.writes for y in call.reads)


def _decides(call: Call, go_on: Array) -> bool:
    """Whether a call writes `go_on` in rounds after the last one too, where it may find any number."""
    is_gated = call.primitive == "map" and call.arguments["when"] is None
    return not is_gated and any(overlap(array, go_on) for array in call.writes)


def _make(on: Sequence[Recorded], call: Call, lane: int) -> None:
    on[lane].make(call)


def _in_launches(pieces: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """As many at once as a launch takes."""
    for first in range(0, len(pieces), source.PIECES):
        yield pieces[first : first + source.PIECES]


class GraphRounds:
    """A round as one graph, launched n times: it takes its rows, makes the calls, and leaves its results.

    What of `feeds` and `keeps` lies on the host is sent before the first round, or fetched after the last one. The host
    does not look at `go_on` between rounds: those after the last one are launched as well, and change nothing.
    """

    def __init__(
        self, on: Sequence[Recorded], calls: Sequence[Call], feeds: Sequence[Feed], keeps: Sequence[Keep], go_on: Any
    ) -> None:
        self._lanes, self._backend, self._go_on = on, on[0], go_on
        self._round = self._backend.empty((len(source.ROUND.names or ()),), source.WORD)
        self._running = self._round.view(FLOAT64)[-1, ...]
        self._streams = [call.arguments["state"] for call in calls if call.primitive == "next_stream"]
        feeds, calls = converted(feeds, calls, [keep.source for keep in keeps])
        self._calls = [part.call for part in apart([*map(self._gated, calls)], self._backend.empty)]
        self._twins: dict[int, tuple[np.ndarray[Any, Any], Array]] = {}
        self._feeds = [Feed(*map(self._on_device, feed)) for feed in feeds]
        self._keeps = [Keep(*map(self._on_device, keep)) for keep in keeps]
        self._results = [keep.target for keep in keeps]
        self._launch = lanes.record(self._backend.driver, list(self._work()))

    def _on_device(self, array: Array) -> Array:
        """The array itself, or what stands for a host array on the device."""
        if not isinstance(array, np.ndarray):
            return array
        if id(array) not in self._twins:
            self._twins[id(array)] = array, self._backend.empty(array.shape, array.dtype)
        return self._twins[id(array)][1]

    def _work(self) -> Iterator[Work]:
        for feeds in _in_launches([feed for feed in self._feeds if not _converts(feed)]):
            yield self._taking(source.take_rows(), feeds)
        for feed in filter(_converts, self._feeds):
            yield self._taking(source.convert_rows(feed.source.dtype, feed.target.dtype), [feed])
        for call in self._calls:
            yield Work(partial(_make, self._lanes, call), call.reads, call.writes)
        *others, last = list(_in_launches(self._keeps)) or [[]]
        for keeps in others:
            yield self._leaving(keeps)
        yield self._leaving(last, ends=True)

    def _taking(self, kernel: Kernel, feeds: Sequence[Feed]) -> Work:
        pieces = [self._piece(x, out, len(out), order) for x, order, out in feeds]
        reads = [array for x, order, _ in feeds for array in (x, order)]
        launch = partial(self._copy, kernel, pieces, False)
        return Work(launch, (self._round, *reads), [out for *_, out in feeds])

    def _leaving(self, keeps: Sequence[Keep], *, ends: bool = False) -> Work:
        pieces = [self._piece(x, target, 1) for x, target in keeps]
        reads = [x for x, _ in keeps] if self._go_on is None else [*(x for x, _ in keeps), self._go_on]
        launch = partial(self._copy, source.leave_results(), pieces, ends)
        written = [target for _, target in keeps]
        return Work(launch, (self._round, *reads), [*written, self._round] if ends else written)

    def _piece(self, x: Array, out: Array, rows: int, order: Array | None = None) -> dict[str, int]:
        """Rows that are copied, as the fields of a `Piece`."""
        address, length = self._backend.driver.address, math.prod(out.shape[1:])
        row = length * x.dtype.itemsize
        if x.dtype == out.dtype:
            places = row, address(x), address(out)
            unit = next(unit for unit in source.UNITS if not any(place % unit for place in places))
        else:
            unit = x.dtype.itemsize * self._backend.launcher.vector(length, (x,), (out,), [(length, 1)] * 2).width
        words = {"x": address(x), "out": address(out), "rows": rows, "units": row // unit, "bytes": unit}
        return words if order is None else words | {"order": address(order)}

    def _copy(self, kernel: Kernel, pieces: Sequence[dict[str, int]], ends: bool, lane: int) -> None:
        """Launch one of the kernels around the calls: a row of blocks for each piece, and whether it ends the round."""
        launcher = self._lanes[lane].launcher
        address = launcher.driver.address
        words = {"round": address(self._round)}
        if ends:
            words |= {"arrivals": address(launcher.arrivals(1))}
            words |= {"go_on": 0 if self._go_on is None else address(self._go_on)}
        largest = max((piece["rows"] * piece["units"] for piece in pieces), default=1)
        grid = (launcher.grid(largest, kernel.threads)[0], max(len(pieces), 1), 1)
        launcher.launch(kernel, grid, **words, pieces=list(pieces))

    def _gated(self, call: Call) -> Call:
        """The call, or one that changes nothing after the last round in the place of one that may outlive the step."""
        arguments = call.arguments
        if self._go_on is None or arguments.get("when") is not None:
            return call
        if call.primitive == "copy" and arguments["out"].dtype.kind in FLOAT_KINDS:
            arguments = {"program": SAME, "inputs": (arguments["x"],), "scalars": (), "out": (arguments["out"],)}
        elif call.primitive != "map":
            return call
        reads = (*call.reads, self._running)
        return replace(call, primitive="map", arguments={**arguments, "when": self._running}, reads=reads)

    def run(self, count: int) -> int:
        """Make up to `count` rounds; how many."""
        targets = {id(target) for target in self._results}
        for host, twin in self._twins.values():
            if id(host) not in targets:
                twin[...] = host
        begin = np.zeros((), source.ROUND)
        begin["running"] = 1.0
        self._round[...] = begin.reshape(1).view(source.WORD)
        launched = 0
        try:
            for _ in range(count):
                self._launch()
                launched += 1
        finally:  # also where Ctrl-C comes between two rounds
            made = self._made(launched)
            for host, (_, twin) in zip(self._results, self._keeps, strict=True):
                if isinstance(host, np.ndarray):
                    host[:made] = self._backend.to_host(twin[:made])
        return made

    def _made(self, launched: int) -> int:
        """How many rounds there were. What later ones drew from streams is given back."""
        made = int(self._backend.to_host(self._round).view(source.ROUND)["made"][0])
        for state in self._streams if made < launched else ():
            numbers = self._backend.to_host(state)
            numbers[1] -= launched - made
            state[...] = numbers
        return made
