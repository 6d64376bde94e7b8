"""Launches: what a kernel of one thread costs from Python and in a graph, and what the launch of a graph costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fcdense.backends import Device
from fcdense.backends.cuda import CudaBackend
from fcdense.cuda.source import next_stream

from ..cases import Arrays, Case, Grid, Run, host, synchroniser
from ..replays import Replays

IN_A_GRAPH = 1000
HOW = ("primitive from Python", "kernel from Python", "kernel in a graph", "graph of one kernel")


@dataclass(frozen=True)
class Launch(Case):
    """Launches one after another, of a kernel that counts how often it ran."""

    question = "launch"
    how: str

    @property
    def setting(self) -> str:
        return "one thread"

    @property
    def label(self) -> str:
        return self.how

    def smallest(self) -> Case:
        return self

    def data(self) -> Arrays:
        """The kernel's state: a key, and the number of launches."""
        return {"state": np.array([1, 0], np.uint64)}

    def exact(self) -> Arrays:
        return {"launches": np.array(IN_A_GRAPH if self.how == "kernel in a graph" else 1)}

    def prepare(self, device: Device, data: Arrays) -> Run | None:
        """On a GPU."""
        backend = device.backend
        if not isinstance(backend, CudaBackend):
            return None
        driver, kernel = backend.driver, next_stream()
        state, out = backend.from_host(data["state"]), backend.empty((2,), np.dtype(np.uint64))
        arguments = np.zeros(1, kernel.arguments)
        arguments["state"], arguments["out"] = driver.address(state), driver.address(out)

        def primitive() -> None:
            backend.next_stream(state, out=out)

        def launch() -> None:
            driver.launch(kernel, (1, 1, 1), arguments)

        def many() -> None:
            for _ in range(IN_A_GRAPH):
                launch()

        def outputs() -> Arrays:
            return {"launches": host(device, {"state": state})["state"][1]}

        if self.how == "kernel in a graph":
            return Replays(driver.record(many), outputs, timed=driver.timed, each=IN_A_GRAPH)
        calls: dict[str, Callable[[], None]] = {"primitive from Python": primitive, "kernel from Python": launch}
        return Run(calls.get(self.how) or driver.record(launch), outputs, synchroniser(device))


def cases(grid: Grid) -> list[Case]:
    """All kinds."""
    return [Launch(how) for how in HOW]
