"""Replays on the GPU: all launches of a step as one graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fcdense.backends.cuda import CudaBackend
from fcdense.backends.replay import Call, Replay
from fcdense.backends.temporaries import Temporaries
from fcdense.cuda.driver import Driver


class _Recorded(CudaBackend):
    """The backend while its launches are recorded: temporary arrays are those of the graph."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(driver)
        self.temporaries = Temporaries(self)

    @property
    def workspace(self) -> Any:
        return self.temporaries


class GraphReplay(Replay):
    """Recorded primitives as launches that the driver repeats; no Python stands between them."""

    def __init__(self, driver: Driver, calls: Sequence[Call], implementation: str) -> None:
        self._backend = _Recorded(driver)
        self._calls = calls  # whose arrays the graph works on
        self._served = [implementation] * len(calls)
        self._launch = driver.record(self._make)

    def _make(self) -> None:
        for call in self._calls:
            getattr(self._backend, call.primitive)(**call.arguments)
            self._backend.temporaries.take_back()

    def run(self) -> None:
        self._launch()
        self._made += 1

    def describe(self) -> list[str]:
        return self._served
