"""CUDA's streams, events and graphs for fake_cuda.py: a stream does nothing before somebody waits for it."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.cuda.fake_cuda import Machine

Work = Callable[[], None]


class CUDARuntimeError(RuntimeError):
    """What the runtime refuses."""


class Capture:
    """What streams are given while they are captured: each piece of work, and those that it comes after.

    Attributes
    ----------
    origin : Stream
    work : list of Work
    after : list of set of int
        The numbers of what each comes after at once.
    is_broken : bool
    """

    def __init__(self, origin: Stream) -> None:
        self.origin = origin
        self.streams = [origin]
        self.work: list[Work] = []
        self.after: list[set[int]] = []
        self.is_broken = False

    def before(self, ends: set[int]) -> set[int]:
        """All that comes before the end of these, and they themselves."""
        found, waiting = set(ends), list(ends)
        while waiting:
            new = self.after[waiting.pop()] - found
            found |= new
            waiting += new
        return found

    def order(self) -> list[Work]:
        """The work, what was captured last as early as may be."""
        left, order = set(range(len(self.work))), []
        while left:
            number = max(number for number in left if not self.after[number] & left)
            left.remove(number)
            order.append(self.work[number])
        return order


class Stream:
    def __init__(self, machine: Machine, non_blocking: bool = False) -> None:
        self._machine = machine
        self.index = machine.devices[-1]
        self.non_blocking = non_blocking
        self.waiting: deque[Work] = deque()
        self.done = 0
        self.captured: Capture | None = None
        self.tail: set[int] = set()
        machine.streams.append(weakref.ref(self))

    def __enter__(self) -> Stream:
        assert self.index == self._machine.devices[-1], "the stream is another device's"
        self._machine.current[self.index].append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._machine.current[self.index].pop()

    def give(self, work: Work) -> None:
        if self.captured is None:
            self.waiting.append(work)
            return
        self.captured.work.append(work)
        self.captured.after.append(self.tail)
        self.tail = {len(self.captured.work) - 1}

    @property
    def given(self) -> int:
        with self._machine.lock:
            return self.done + len(self.waiting)

    def finish(self, count: int | None = None) -> None:
        """Do what was given, or its first part up to `count`."""
        with self._machine.lock:
            while self.waiting and (count is None or self.done < count):
                self.waiting.popleft()()
                self.done += 1

    def synchronize(self) -> None:
        self._machine.called("streamSynchronize")
        if self.captured is not None:
            self.captured.is_broken = True
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported")
        self.finish()

    def record(self, event: Event) -> Event:
        event.record(self)
        return event

    @property
    def ptr(self) -> int:
        return id(self)

    def wait_event(self, event: Event) -> None:
        self._machine.called("streamWaitEvent")
        if event.captured is not None:  # this stream is captured as well from here on
            capture, ends = event.captured
            assert self.captured in (None, capture)
            if self.captured is None:
                self.captured, self.tail = capture, set()
                capture.streams.append(self)
            self.tail = self.tail | ends
            return
        assert self.captured is None
        stream, count = event.place
        self.give(lambda: stream.finish(count))

    def begin_capture(self, mode: int) -> None:
        self._machine.called("streamBeginCapture", self.index)
        assert mode == 2
        assert self.captured is None
        self.captured, self.tail = Capture(self), set()

    def end_capture(self) -> Graph:
        capture = self.captured
        if capture is None or capture.origin is not self:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnmatched")
        is_joined = len(capture.before(self.tail)) == len(capture.work)
        for stream in capture.streams:
            stream.captured = None
        self._machine.called("streamEndCapture", self.index)
        if capture.is_broken:
            raise CUDARuntimeError("cudaErrorStreamCaptureInvalidated")
        if not is_joined:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnjoined")
        return Graph(self._machine, capture.order())


class Graph:
    def __init__(self, machine: Machine, work: list[Work]) -> None:
        self._machine, self._work = machine, work

    def launch(self, stream: Stream) -> None:
        self._machine.called("graphLaunch", stream.index)
        for work in self._work:
            stream.give(work)


class Event:
    def __init__(self, machine: Machine, disable_timing: bool = False) -> None:
        self._machine, self.has_time = machine, not disable_timing
        self.index = machine.devices[-1]
        self.place: tuple[Stream, int] = machine.null[self.index], 0
        self.captured: tuple[Capture, set[int]] | None = None

    def record(self, stream: Stream) -> None:
        self._machine.called("eventRecord", stream.index)
        assert stream.index == self.index, "the event is another device's"
        if stream.captured is not None:
            self.captured = stream.captured, stream.tail
            return
        self.captured, self.place = None, (stream, stream.given)

    @property
    def done(self) -> bool:
        stream, count = self.place
        return stream.done >= count

    def synchronize(self) -> None:
        stream, count = self.place
        stream.finish(count)


def get_elapsed_time(start: Event, stop: Event) -> float:
    """Each thing that a stream does takes a millisecond."""
    assert start.has_time
    assert stop.has_time
    assert start.done
    assert stop.done
    return float(stop.place[1] - start.place[1])
