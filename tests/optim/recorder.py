"""A backend that notes the calls of primitives instead of making them, and makes them when it is asked to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fcdense.arena import Array
from fcdense.backends.base import Backend, Replayed
from fcdense.backends.cpu import CpuBackend


class Recorder(CpuBackend):
    """The CPU backend, except inside of `with recorder.recording():`."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], None]] = []
        self.participants: list[Replayed] = []
        self._is_recording = False

    @property
    def is_recording(self) -> bool:
        return self._is_recording

    def hold_back(self, arrays: Sequence[Array], reason: str) -> None:
        """Nothing follows the optimizer's step here."""

    def join(self, participant: Replayed) -> None:
        self.participants.append(participant)

    def to_host(self, array: Any) -> Any:
        assert not self.is_recording, "the host reads while a step is recorded"
        return super().to_host(array)

    @contextmanager
    def recording(self) -> Iterator[None]:
        self.calls, self.participants = [], []
        self._is_recording = True
        try:
            yield
        finally:
            self._is_recording = False

    def replay(self) -> None:  # type: ignore[override]
        """What a captured step does each time."""
        for participant in self.participants:
            participant.before_replay()
        for call in self.calls:
            call()
        for participant in self.participants:
            participant.after_replay()


def _noted(name: str) -> Callable[..., None]:
    def method(self: Recorder, *args: Any, **given: Any) -> None:
        def call() -> None:
            getattr(CpuBackend, name)(self, *args, **given)

        if self.is_recording:
            self.calls.append(call)
        else:
            call()

    return method


for _name in Backend.primitives():
    setattr(Recorder, _name, _noted(_name))
