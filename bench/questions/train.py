"""Training step: forward, softmax cross entropy, backward and the optimizer's update, on one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fcdense import losses, optim
from fcdense.backends import Device
from fcdense.optim import LossScale
from fcdense.tape import no_grad
from fcdense.tensor import Tensor, tensor

from .. import light
from ..cases import Arrays, Case, Grid, Run, host, synchroniser, tolerance
from ..light import Kernel
from ..networks import Network, eager, replayed

LEARNING_RATE = {"sgd": 1e-2}  # of the others: 1e-3
OPTIONS: dict[str, dict[str, Any]] = {"adamw": {"exclude": ()}}
"""Biases decay too, as in PyTorch."""
ADAPTIVE = {"bfloat16": 0.05, "float16": 0.02, "float32": 5e-3, "float64": 1e-9}
"""Errors that rounding explains where an update is divided by the size of its gradient: one that is nothing but
rounding makes as large an update as any other. PyTorch, JAX and NumPy show up to half of these."""


@dataclass(frozen=True)
class Train(Network):
    """A whole step of one network.

    Results are those after three steps: a captured step is replayed in the third. Weights are not compared, because
    Adam divides by the gradient's size and so shows rounding, not errors. What the new weights make of the batch shows
    errors.
    """

    question = "train"
    steps = 3
    optimizer: str

    @property
    def setting(self) -> str:
        return f"{super().setting}, {self.optimizer}"

    @property
    def learning_rate(self) -> float:
        return LEARNING_RATE.get(self.optimizer, 1e-3)

    @property
    def flops(self) -> int:
        """Three products for each layer; the first has no input gradient."""
        return 3 * sum(self.products) - self.products[0]

    @property
    def work(self) -> Sequence[Kernel]:
        slots = len(optim.get(self.optimizer).slots)
        return tuple(light.training(self.batch, self.widths, self.itemsize, self.function.aux, slots))

    @property
    def tolerance(self) -> float | None:
        if self.optimizer != "sgd":
            return ADAPTIVE[self.dtype]
        return len(self.products) * tolerance(self.dtype, max(self.batch, *self.widths))

    def prepare(self, device: Device, data: Arrays) -> Run:
        """The step captured, with the batch on the device already."""
        return self._run(device, data, replayed)

    def prepare_eager(self, device: Device, data: Arrays) -> Run:
        """The step as a user writes it, with the batch on the device already."""
        return self._run(device, data, eager)

    def _run(self, device: Device, data: Arrays, calls: Callable[..., Callable[[], Tensor]]) -> Run:
        model = self.model(device, data)
        options = OPTIONS.get(self.optimizer, {})
        optimizer = optim.get(self.optimizer)(model.parameters(), learning_rate=self.learning_rate, **options)
        scale = LossScale(device=device) if self.dtype == "float16" else None
        x, target = tensor(data["x"], device=device), data["target"]

        def step(x: Tensor, target: Tensor) -> Tensor:
            optimizer.zero_grad()
            with self.precision():
                loss = losses.cross_entropy(model(x), target)
            if scale is None:
                loss.backward()
            else:
                scale.backward(loss)
            optimizer.step(loss_scale=scale)
            found: Tensor = loss.detach()
            return found

        last: list[Tensor] = []
        one_step = calls(device, step, x, target)

        def call() -> None:
            last[:] = [one_step()]

        def outputs() -> Arrays:
            with no_grad(), self.precision():
                return host(device, {"loss": last[0].array, "logits": model(x[: self.rows]).array})

        return Run(call, outputs, synchroniser(device))


def cases(grid: Grid) -> list[Case]:
    """Every network with every batch size, activation and optimizer."""
    found = [
        Train(grid.dtype, activation, batch, widths, optimizer)
        for activation in grid.activations
        for optimizer in grid.optimizers
        for widths in grid.networks
        for batch in grid.batches
        if optim.get(optimizer)
    ]
    return [case for case in found if case.flops <= 1e9 * grid.max_gflop]
