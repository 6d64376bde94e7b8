"""Launches: what kernels of one thread cost from Python and in a graph, and what the launch of a graph costs."""

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
PAIR = "two side by side in a graph"
HOW = ("primitive from Python", "kernel from Python", "kernel in a graph", PAIR, "graph of one kernel")


@dataclass(frozen=True)
class Launch(Case):
    """Launches one after another, or two by two, of a kernel that counts how often it ran."""

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
        """The states of two kernels: a key, and the number of launches."""
        return {"states": np.array([[1, 0], [1, 0]], np.uint64)}

    def exact(self) -> Arrays:
        return {"launches": np.array({"kernel in a graph": IN_A_GRAPH, PAIR: 2 * IN_A_GRAPH}.get(self.how, 1))}

    def prepare(self, device: Device, data: Arrays) -> Run | None:
        """On a GPU."""
        backend = device.backend
        if not isinstance(backend, CudaBackend):
            return None
        driver, kernel = backend.driver, next_stream()
        memory = backend.from_host(np.stack([data["states"], data["states"]]))  # as long as there are states to look at
        states, outs = memory[0], memory[1]
        arguments = np.zeros(2, kernel.arguments)
        for number in range(2):
            arguments[number] = driver.address(states[number]), driver.address(outs[number])

        def primitive() -> None:
            backend.next_stream(states[0], out=outs[0])

        def launch(number: int = 0) -> None:
            driver.launch(kernel, (1, 1, 1), arguments[number : number + 1])

        def many() -> None:
            for _ in range(IN_A_GRAPH):
                launch()

        def pairs() -> None:
            for first in range(0, 2 * IN_A_GRAPH, 2):
                for number in range(2):  # after both of the pair before: the one on the other lane is told
                    driver.begin_part(number, (first - 1 - number,) if first else ())
                    launch(number)

        def outputs() -> Arrays:
            return {"launches": host(device, {"states": states})["states"][:, 1].sum()}

        recorded = {"kernel in a graph": many, PAIR: pairs}.get(self.how)
        if recorded:
            return Replays(driver.record(recorded), outputs, timed=driver.timed, each=IN_A_GRAPH)
        calls: dict[str, Callable[[], None]] = {"primitive from Python": primitive, "kernel from Python": launch}
        return Run(calls.get(self.how) or driver.record(launch), outputs, synchroniser(device))


def cases(grid: Grid) -> list[Case]:
    """All kinds."""
    return [Launch(how) for how in HOW]
