"""Dense forward: y = f(x @ w + b), one fused call, nothing kept for a gradient."""

from __future__ import annotations

from dataclasses import dataclass

from fcdense.backends import Device

from ..cases import Arrays, Case, Grid, Layer, Run, host, synchroniser, upload


@dataclass(frozen=True)
class Forward(Layer):
    """The forward pass of one layer."""

    question = "forward"

    @property
    def flops(self) -> int:
        return self.product

    def prepare(self, device: Device, data: Arrays) -> Run:
        """`Backend.dense` into one output."""
        backend, function = device.backend, self.function
        x, w, b = (upload(device, data[name]) for name in ("x", "w", "b"))
        y = backend.empty((self.batch, self.out_features), x.dtype)

        def call() -> None:
            backend.dense(x, w, b, function, out=y)

        return Run(call, lambda: host(device, {"y": y}), synchroniser(device))


def cases(grid: Grid) -> list[Case]:
    """A row for each size and activation."""
    return [Forward(grid.dtype, activation, *size) for activation in grid.activations for size in grid.sizes]
