"""Bandwidth: passes over more memory than any cache holds: copies, and AdamW's update of as many parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fcdense.backends import Device
from fcdense.backends.cuda import CudaBackend
from fcdense.backends.replay import Call
from fcdense.optim import AdamW
from fcdense.parameter import Parameter
from fcdense.tensor import tensor

from .. import light
from ..cases import Arrays, Case, Grid, Run, gathered, places, random, synchroniser, tolerance, upload
from ..light import Kernel
from ..networks import replayed
from ..replays import Replays

SIZE = 1 << 26
FLOAT32 = np.dtype(np.float32)
LEARNING_RATE, DECAY, EPSILON = 1e-3, 0.01, 1e-8


@dataclass(frozen=True)
class Pass(Case):
    """One pass over float32 numbers: "copy", "memcpy" or "adamw"."""

    question = "bandwidth"
    steps = 3
    what: str
    size: int = SIZE

    @property
    def setting(self) -> str:
        return FLOAT32.name

    @property
    def label(self) -> str:
        return f"{self.what} of {self.size:,}"

    @property
    def work(self) -> Sequence[Kernel]:
        return (light.update(self.size, 2, 4) if self.what == "adamw" else Kernel(0, 8 * self.size),)

    @property
    def tolerance(self) -> float | None:
        return tolerance("float32", 1) if self.what == "adamw" else 0.0

    def smallest(self) -> Case:
        return replace(self, size=3)

    def data(self) -> Arrays:
        """Parameters w, and their gradients g."""
        return {name: random(number, (self.size,), FLOAT32) for number, name in enumerate("wg")}

    @property
    def compared(self) -> slice:
        """Where results are compared."""
        return places(self.size, 4096)

    def exact(self) -> Arrays:
        """With one and the same gradient the means are it and its square, so that each update is as large as the first:
        w = (1 - learning_rate λ) w - learning_rate g / (|g| + eps)."""
        w, g = (array[self.compared].astype(np.float64) for array in self.data().values())
        for _ in range(self.steps if self.what == "adamw" else 0):
            w = (1.0 - LEARNING_RATE * DECAY) * w - LEARNING_RATE * g / (np.abs(g) + EPSILON)
        return {"w": w}

    def prepare(self, device: Device, data: Arrays) -> Run | None:
        """The primitive `copy`; CUDA's own copy, on a GPU; the optimizer's step, captured."""
        return self._adamw(device, data) if self.what == "adamw" else self._copy(device, data)

    def _copy(self, device: Device, data: Arrays) -> Run | None:
        backend, w = device.backend, upload(device, data["w"])
        out = backend.empty(w.shape, w.dtype)

        def outputs() -> Arrays:
            return {"w": gathered(device, out, self.compared)}

        def memcpy() -> None:
            out[...] = w

        if self.what == "memcpy":
            if not isinstance(backend, CudaBackend):
                return None
            return Replays(memcpy, outputs, timed=backend.driver.timed)
        if isinstance(backend, CudaBackend):
            replay = backend.replay([Call("copy", {"x": w, "out": out}, (w,), (out,))])
            return Replays(replay.run, outputs, timed=backend.driver.timed)
        return Run(lambda: backend.copy(w, out=out), outputs)

    def _adamw(self, device: Device, data: Arrays) -> Run:
        parameter = Parameter(upload(device, data["w"]), device, decay=True)
        optimizer = AdamW([parameter], LEARNING_RATE, weight_decay=DECAY, eps=EPSILON)
        parameter.grad = tensor(data["g"], device=device)

        def step() -> Any:
            optimizer.step()

        def outputs() -> Arrays:
            return {"w": gathered(device, parameter.array, self.compared)}

        return Run(replayed(device, step), outputs, synchroniser(device))


def cases(grid: Grid) -> list[Case]:
    """All three."""
    return [Pass("copy"), Pass("memcpy"), Pass("adamw")]
