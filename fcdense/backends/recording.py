"""Recording a step without running it: the primitives are noted, and the arrays that they would fill stay untouched.

Nothing that the step does can depend on values, because there are none: what reads them on the host is refused. Two
recordings of one step are equal unless Python handed it something new, which a replay would not know.
"""

from __future__ import annotations

import abc
import functools
import threading
from bisect import bisect_right, insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from fcdense.arena import Array, Buffers
from fcdense.backends import Device, known_devices
from fcdense.backends.base import ADDED_TO, Backend, Replayed
from fcdense.backends.liveness import Span, place
from fcdense.backends.noted import Noted, Operand, Temporary, address, alike, first_difference
from fcdense.backends.replay import Call
from fcdense.backends.signatures import SIGNATURES
from fcdense.backends.spans import overlap
from fcdense.errors import CaptureError
from fcdense.precision import current_precision

_busy = threading.Lock()
_current: Recording | None = None


class Recording:
    """The calls of one step, in order."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.is_open = True
        self.backend: Backend | None = None
        self.calls: list[Noted] = []
        self.participants: dict[Replayed, None] = {}
        self.held: list[tuple[Array, str]] = []
        self._temporaries: list[Temporary] = []
        self._alive: dict[int, Temporary] = {}
        self._starts: list[int] = []
        self._constants: dict[int, tuple[Array, bytes]] = {}

    @property
    def is_here(self) -> bool:
        """Whether this thread is recording now; others compute as ever."""
        return self.is_open and threading.get_ident() == self.thread

    def lend(self, array: Array) -> Array:
        """Note that the step makes `array`."""
        if array.nbytes:
            start = address(array)

            def gone(_: Any) -> None:
                if self._alive.pop(start, None) is not None:
                    del self._starts[bisect_right(self._starts, start) - 1]

            temporary = Temporary(len(self._temporaries), array, gone)
            self._temporaries.append(temporary)
            self._alive[start] = temporary
            insort(self._starts, start)
        return array

    def constant(self, array: Array, number: bytes) -> Array:
        """Note that `array`, a single number, comes from the host."""
        self._constants[address(array)] = array, number
        return array

    def note(self, backend: Backend, primitive: str, arguments: Mapping[str, Any]) -> None:
        """One more call, on `backend`.

        Raises
        ------
        CaptureError
            The calls before were on another one.
        """
        self.backend = self.backend or backend
        if self.backend is not backend:
            raise CaptureError(
                f"The step computes on {self.backend.name} and on {backend.name}. Capture one step for each device."
            )
        noted = {name: self._noted(value) for name, value in arguments.items()}
        self.calls.append(Noted(primitive, noted, current_precision()))

    def _noted(self, value: Any) -> Any:
        if hasattr(value, "strides"):
            return self.operand(value)
        if isinstance(value, (list, tuple)):
            return tuple([self._noted(item) for item in value])
        return value

    def operand(self, array: Array) -> Operand:
        """Where `array` lies."""
        start, form = address(array), (array.shape, array.strides, array.dtype)
        for held, reason in self.held:
            if overlap(array, held):
                raise CaptureError(reason)
        if not array.nbytes:
            return Operand(0, *form, None, array)
        if start in self._constants:
            return Operand(start, *form, self._constants[start][1], array)
        index = bisect_right(self._starts, start) - 1
        if index >= 0:
            temporary = self._alive[self._starts[index]]
            if start < temporary.start + temporary.nbytes:
                return Operand((temporary.number, start - temporary.start), *form, None, None)
        return Operand(start, *form, None, array)

    def difference(self, other: Recording) -> str:
        """What `other`, a later recording of the same step, has otherwise; "" where nothing is."""
        for number, (ours, theirs) in enumerate(zip(self.calls, other.calls, strict=False)):
            if ours.primitive != theirs.primitive:
                return f"call {number} is `{ours.primitive}`, then `{theirs.primitive}`"
            for name, value in ours.arguments.items():
                if not alike(value, theirs.arguments[name]):
                    before, after = first_difference(value, theirs.arguments[name])
                    return f"`{ours.primitive}` (call {number}) got {name} {before}, then {after}"
        if len(self.calls) != len(other.calls):
            return f"the step made {len(self.calls)} calls, then {len(other.calls)}"
        return ""

    def finished(self) -> list[Call]:
        """The calls over memory of their own, without those whose results nobody reads.

        Arrays of the step that live on outside of it stay where they are.
        """
        spans: dict[int, Span] = {}
        calls = self._needed()
        for number, call in enumerate(calls):
            for operand in _operands(call.arguments.values()):
                if isinstance(operand.place, tuple):
                    which = operand.place[0]
                    first = spans[which].first if which in spans else number
                    spans[which] = Span(self._temporaries[which].nbytes, first, number)
        owners = {which: self._temporaries[which].owner() for which in spans}
        passing = [which for which in spans if owners[which] is None]
        backend = self.backend
        if backend is None:
            return []
        offsets, total = place([spans[which] for which in passing], backend.cache)
        pool = backend.empty((total,), np.dtype(np.uint8)) if total else None
        memory = {which: (pool, offset) for which, offset in zip(passing, offsets, strict=True)}
        for which, owner in owners.items():
            if owner is not None:
                memory[which] = owner, self._temporaries[which].start - address(owner)
        return [
            _call(primitive, {name: _located(value, memory, backend) for name, value in arguments.items()}, precision)
            for primitive, arguments, precision in calls
        ]

    def _needed(self) -> list[Noted]:
        """The calls that write something that is read later, or that is no passing array of the step."""
        read: set[Any] = set()
        needed = []
        for call in reversed(self.calls):
            _, inputs, outputs = SIGNATURES[call.primitive]
            written = _operands(call.arguments[name] for name in outputs)
            if any(self._lives_on(operand) or operand.place[0] in read for operand in written):  # type: ignore[index]
                needed.append(call)
                places = (operand.place for operand in _operands(call.arguments[name] for name in inputs))
                read.update(place[0] for place in places if isinstance(place, tuple))
        return needed[::-1]

    def _lives_on(self, operand: Operand) -> bool:
        """Whether an operand is there before the step or after it."""
        return not isinstance(operand.place, tuple) or self._temporaries[operand.place[0]].owner() is not None


def _operands(values: Any) -> Iterator[Operand]:
    for value in values:
        if isinstance(value, Operand):
            yield value
        elif type(value) is tuple:
            yield from _operands(value)


def _call(primitive: str, arguments: Mapping[str, Any], precision: str) -> Call:
    _, inputs, outputs = SIGNATURES[primitive]
    adds = arguments.get("mode", "accumulate") == "accumulate"
    kept = [name for name in outputs if ((primitive, name) in ADDED_TO and adds) or arguments.get("when") is not None]
    reads, writes = (tuple(_arrays(arguments[name] for name in names)) for names in ((*inputs, *kept), outputs))
    return Call(primitive, arguments, reads, writes, precision)


def _arrays(values: Any) -> Iterator[Array]:
    for value in values:
        if hasattr(value, "strides"):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _arrays(value)


def _located(value: Any, memory: Mapping[int, tuple[Array, int]], backend: Backend) -> Any:
    """A noted argument with arrays in the place of operands."""
    if isinstance(value, Operand):
        if not isinstance(value.place, tuple):
            return value.array
        base, offset = memory[value.place[0]]
        return backend.view(base, offset + value.place[1], value.shape, value.strides, value.dtype)
    if type(value) is tuple:
        return tuple([_located(item, memory, backend) for item in value])
    return value


class RecordingBackend(Backend):
    """Stands in for `inner` while a step is recorded by this thread."""

    def __init__(self, inner: Backend, recording: Recording) -> None:
        super().__init__()
        self.inner = inner
        self.name, self.is_host, self.mixed_precision = inner.name, inner.is_host, inner.mixed_precision
        self._recording = recording

    @property
    def is_recording(self) -> bool:
        return self._recording.is_here

    @property
    def unrecorded(self) -> Backend:
        return self.inner

    def join(self, participant: Replayed) -> None:
        if self._recording.is_here:
            self._recording.participants[participant] = None

    def hold_back(self, arrays: Sequence[Array], reason: str) -> None:
        self._recording.held += [(array, reason) for array in arrays]

    @property
    def workspace(self) -> Buffers:
        """No pool: every array is new, and `Recording.finished` finds places for them."""
        return self if self._recording.is_here else self.inner.workspace

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        array = self.inner.empty(shape, dtype)
        return self._recording.lend(array) if self._recording.is_here else array

    def broadcast_to(self, x: Array, shape: tuple[int, ...]) -> Array:
        return self.inner.broadcast_to(x, shape)

    def from_host(self, array: np.ndarray[Any, Any]) -> Array:
        if not self._recording.is_here:
            return self.inner.from_host(array)
        if array.ndim:
            raise CaptureError(
                f"A tensor of shape {array.shape} was made from an array of the host while a step was recorded; every "
                "replay would see the values of this moment. Make it a tensor outside of the step, or an argument."
            )
        return self._recording.constant(self.inner.from_host(array.copy()), array.tobytes())

    def adopt(self, array: Array) -> Array:
        if not self._recording.is_here:
            return self.inner.adopt(array)
        raise CaptureError(
            f"A caller's array (shape {array.shape}) was used while a step was recorded; every replay would read that "
            "memory. Make it a tensor outside of the step, or an argument."
        )

    def hand_over(self, array: Array) -> Array:
        self._refuse_reading(array)
        return self.inner.hand_over(array)

    def to_host(self, array: Array) -> np.ndarray[Any, Any]:
        self._refuse_reading(array)
        return self.inner.to_host(array)

    def _refuse_reading(self, array: Array) -> None:
        if self._recording.is_here:
            raise CaptureError(
                f"Values (shape {array.shape}) were read on the host while a step was recorded; nothing has been "
                "computed yet, and a replay does not run Python. Read results after the step: return them. For a "
                "choice by value use np.where."
            )


def _recorded(primitive: str) -> Callable[..., None]:
    signature = SIGNATURES[primitive]

    @functools.wraps(getattr(Backend, primitive))
    def method(self: RecordingBackend, *args: Any, **kwargs: Any) -> None:
        if self._recording.is_here:
            self._recording.note(self.inner, primitive, signature.bind(args, kwargs))
        else:
            getattr(self.inner, primitive)(*args, **kwargs)

    method.__isabstractmethod__ = False  # type: ignore[attr-defined]
    return method


for _primitive in Backend.primitives():
    setattr(RecordingBackend, _primitive, _recorded(_primitive))
_concrete: Any = RecordingBackend
abc.update_abstractmethods(_concrete)


@contextmanager
def recording() -> Iterator[Recording]:
    """Record what this thread computes inside the `with` block, on every device; nothing is run.

    Raises
    ------
    CaptureError
        A recording is under way in this thread already.
    """
    global _current
    if is_recording():
        raise CaptureError("A captured step was called inside of a step that is being captured. Capture only one.")
    with _busy:
        made = Recording()
        places = [(device, device.backend.unrecorded) for device in known_devices()]
        try:
            _current = made
            for device, backend in places:
                device.put(_concrete(backend, made))
            yield made
        finally:
            made.is_open = False
            _current = None
            try:
                _put_back(places)
            finally:
                _put_back(places)  # once more: Ctrl-C may have come between two of them


def _put_back(places: Sequence[tuple[Device, Backend]]) -> None:
    for device, backend in places:
        device.put(backend)


def is_recording() -> bool:
    """Whether this thread is recording a step."""
    return _current is not None and _current.is_here
