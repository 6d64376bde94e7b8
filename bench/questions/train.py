"""Training step: forward, softmax cross entropy, backward and the optimizer's update, on one batch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from fcdense import losses, nn, optim
from fcdense.backends import Device, use_device
from fcdense.tape import no_grad
from fcdense.tensor import Tensor, tensor

from ..cases import Arrays, Case, Grid, Network, Run, host, synchroniser

LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Train(Network):
    """A whole step of one network."""

    question = "train"

    @property
    def flops(self) -> int:
        """Three products for each layer; the first has no input gradient."""
        products = [2 * self.batch * inner * outer for inner, outer in pairwise(self.widths)]
        return 3 * sum(products) - products[0]

    def prepare(self, device: Device, data: Arrays) -> Run:
        """The step as a user writes it, with the batch on the device already."""
        model = self.model(device, data)
        optimizer = optim.get(self.optimizer)(model.parameters(), learning_rate=LEARNING_RATE)
        x, target = tensor(data["x"], device=device), data["target"]  # losses check targets on the host
        last: list[Tensor] = []

        def call() -> None:
            optimizer.zero_grad()
            loss = losses.cross_entropy(model(x), target)
            loss.backward()
            optimizer.step()
            last[:] = [loss.detach()]

        def outputs() -> Arrays:
            # Adam divides by the gradient's size, so weights after the step show rounding, not errors. What the new
            # weights make of the batch shows errors; the loss does not, once it is near 0.
            with no_grad():
                found = {"loss": last[0].array, "logits_after": model(x).array}
            for name, parameter in zip(weights(data), model.parameters(), strict=True):
                assert parameter.grad is not None
                found[name] = parameter.grad.array
            return host(device, found)

        return Run(call, outputs, synchroniser(device))

    def model(self, device: Device, data: Arrays) -> nn.Sequential:
        """The network with the weights of `data`."""
        dtype = data["x"].dtype
        *hidden, (inner, outer) = pairwise(self.widths)
        with use_device(device):
            model = nn.Sequential(
                *(nn.Dense(o, activation=self.function, in_features=i, dtype=dtype) for i, o in hidden),
                nn.Dense(outer, in_features=inner, dtype=dtype),
            )
        for name, parameter in zip(weights(data), model.parameters(), strict=True):
            parameter.assign(data[name])
        return model


def weights(data: Arrays) -> list[str]:
    """Names of kernels and biases, in the order of the layers."""
    return [name for name in data if name[0] in "wb"]


def cases(grid: Grid) -> list[Case]:
    """Every network with every batch size."""
    optim.get(grid.optimizer)
    return [
        Train(grid.dtype, grid.activation, batch, widths, grid.optimizer)
        for widths in grid.networks
        for batch in grid.batches
    ]
