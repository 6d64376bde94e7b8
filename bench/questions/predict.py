"""Prediction: the logits of a whole network for one batch, nothing kept for a gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fcdense.backends import Device
from fcdense.tape import no_grad
from fcdense.tensor import Tensor, tensor

from .. import light
from ..cases import Arrays, Case, Grid, Run, host, synchroniser, tolerance
from ..light import Kernel
from ..networks import Network, eager, replayed


@dataclass(frozen=True)
class Predict(Network):
    """The forward pass of one network. Results are those of the third call, in which a captured step is replayed."""

    question = "predict"
    steps = 3

    @property
    def flops(self) -> int:
        return sum(self.products)

    @property
    def work(self) -> Sequence[Kernel]:
        return tuple(light.prediction(self.batch, self.widths, self.itemsize))

    @property
    def tolerance(self) -> float | None:
        return len(self.products) * tolerance(self.dtype, max(self.widths))

    def prepare(self, device: Device, data: Arrays) -> Run:
        """The pass captured, with the batch on the device already."""
        return self._run(device, data, replayed)

    def prepare_eager(self, device: Device, data: Arrays) -> Run:
        """The pass as a user writes it, with the batch on the device already."""
        return self._run(device, data, eager)

    def _run(self, device: Device, data: Arrays, calls: Callable[..., Callable[[], Tensor]]) -> Run:
        model = self.model(device, data)

        def step(x: Tensor) -> Tensor:
            with no_grad(), self.precision():
                found: Tensor = model(x)
            return found

        last: list[Tensor] = []
        one_step = calls(device, step, tensor(data["x"], device=device))

        def call() -> None:
            last[:] = [one_step()]

        return Run(call, lambda: host(device, {"logits": last[0].array[: self.rows]}), synchroniser(device))


def cases(grid: Grid) -> list[Case]:
    """Every network with every batch size and activation."""
    found = [
        Predict(grid.dtype, activation, batch, widths)
        for activation in grid.activations
        for widths in grid.networks
        for batch in grid.batches
    ]
    return [case for case in found if case.flops <= 1e9 * grid.max_gflop]
