"""Dense backward: from dy to the gradients of x, w and b (act_grad, dense_grad_weight, dense_grad_input)."""

from __future__ import annotations

from dataclasses import dataclass

from fcdense import activations
from fcdense.backends import Device

from ..cases import Arrays, Case, Grid, Layer, Run, host, synchroniser, tolerance, upload


@dataclass(frozen=True)
class Backward(Layer):
    """The backward pass of one layer."""

    question = "backward"

    @property
    def flops(self) -> int:
        return 2 * self.product

    @property
    def tolerance(self) -> float | None:
        """dz is rounded, and what is computed from it."""
        return 2.0 * tolerance(self.dtype, max(self.batch, self.out_features))

    def prepare(self, device: Device, data: Arrays) -> Run:
        """dz and db, then dw, then dx; the forward pass that leaves what f' needs is not timed."""
        backend, function = device.backend, self.function
        x, w, b, dy = (upload(device, data[name]) for name in ("x", "w", "b", "dy"))
        y, slope, dz, dx, dw, db = (backend.empty(a.shape, a.dtype) for a in (dy, dy, dy, x, w, b))
        backend.dense(x, w, b, function, out=y, aux=slope if function.aux == "derivative" else None)
        aux = {"none": None, "output": y, "derivative": slope}[function.aux]

        def call() -> None:
            backend.act_grad(dy, aux, function, out=dz, db=db)
            backend.dense_grad_weight(x, dz, out=dw)
            backend.dense_grad_input(dz, w, activations.linear, None, out=dx)

        return Run(call, lambda: host(device, {"dx": dx, "dw": dw, "db": db}), synchroniser(device))


def cases(grid: Grid) -> list[Case]:
    """A row for each size and activation."""
    return [Backward(grid.dtype, activation, *size) for activation in grid.activations for size in grid.sizes]
