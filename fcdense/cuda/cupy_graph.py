"""What is noted of a step, and the CUDA graph that it becomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, NamedTuple

import cupy
from cupy.cuda import runtime

from fcdense.arena import Array
from fcdense.cuda.driver import LANES
from fcdense.cuda.modules import FAILURES, Function


class Part(NamedTuple):
    """A part of a step (`Driver.begin_part`); its launches are told the stream."""

    lane: int
    after: Sequence[int]
    launches: list[Callable[[Any], object]]


class Step(NamedTuple):
    """What is noted of a step: its parts, the kernels that they launch, and the arrays made for it."""

    parts: list[Part]
    kernels: list[Future[Function]]
    arrays: list[Array]

    def note(self, launch: Callable[[Any], object]) -> None:
        """One more launch."""
        if not self.parts:
            self.parts.append(Part(0, (), []))
        self.parts[-1].launches.append(launch)


def graph_of(parts: Sequence[Part]) -> Any:
    """The launches as a graph, for the current device.

    All memory is there by now and every kernel loaded: nothing but launches stands between begin and end. The streams
    are its own, so that neither another thread nor a finalizer can get anything into the graph, and the driver's stays
    as it was if it fails.
    """
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(LANES)]
    streams[0].begin_capture(runtime.streamCaptureModeRelaxed)
    try:
        _give(parts, streams)
    except BaseException:
        with suppress(*FAILURES):
            streams[0].end_capture()
        raise
    return streams[0].end_capture()


def _give(parts: Sequence[Part], streams: Sequence[Any]) -> None:
    """Launch parts on a stream for each lane. All of them join the capture of the first one, and end with it."""

    def mark(stream: Any) -> Any:
        return stream.record(cupy.cuda.Event(disable_timing=True))

    awaited = {number for part in parts for number in part.after}
    ends: dict[int, Any] = {}
    others = {part.lane for part in parts} - {0}
    if others:
        begin = mark(streams[0])
        for lane in others:
            streams[lane].wait_event(begin)
    for number, (lane, after, launches) in enumerate(parts):
        for earlier in after:
            streams[lane].wait_event(ends[earlier])
        for launch in launches:
            launch(streams[lane])
        if number in awaited:
            ends[number] = mark(streams[lane])
    for lane in others:
        streams[0].wait_event(mark(streams[lane]))
