"""Products: those of a layer, forward and back, each with all that a training step does to its sums."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fcdense import emit
from fcdense.backends import Device
from fcdense.backends.cuda import CudaBackend
from fcdense.backends.replay import Call, Replay
from fcdense.cuda import tuning

from .. import light
from ..cases import MIXED, Arrays, Case, Grid, Layer, Run, array_dtype, gathered, places, random, tolerance, upload
from ..light import Kernel
from ..replays import Replays, served_by

Operands = dict[str, Any]


@dataclass(frozen=True)
class Product(Layer):
    """One product of a layer, called `role`, as a `primitive` of the contract computes it."""

    question = "products"
    role: ClassVar[str]
    primitive: ClassVar[str]

    @property
    def label(self) -> str:
        return f"{self.role} {super().label}"

    @property
    def flops(self) -> int:
        return self.product

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, features in, features out."""
        return self.batch, self.in_features, self.out_features

    @property
    def operand(self) -> np.dtype[Any]:
        """The dtype of what is multiplied."""
        return array_dtype(self.dtype)

    @property
    def compared(self) -> tuple[slice, slice]:
        """At which rows and columns of the result it is compared."""
        rows, columns = next(iter(self.room.values()))[0]
        return places(rows), places(columns)

    @property
    @abstractmethod
    def room(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape and dtype of each result, the product first."""

    @abstractmethod
    def arguments(self, on: Operands) -> dict[str, Any]:
        """What the primitive is called with."""

    def outputs(self, device: Device, on: Operands) -> Arrays:
        """The results, where they are compared."""
        name = next(iter(self.room))
        return {name: gathered(device, on[name], *self.compared)}

    def prepare(self, device: Device, data: Arrays) -> Run | None:
        """By what the device's plan chooses."""
        return self.run(device, data, lambda calls: device.backend.replay(calls))

    def run(self, device: Device, data: Arrays, chosen: Callable[[Sequence[Call]], Replay | None]) -> Run | None:
        """By the replay that is chosen of calls over operands that no cache holds; None where there is none.

        The processor makes one call, as it stands.
        """
        backend = device.backend
        sets = self.sets(device, data)

        def outputs() -> Arrays:
            return self.outputs(device, sets[0])

        if not isinstance(backend, CudaBackend):
            primitive, arguments = getattr(backend, self.primitive), self.arguments(sets[0])
            return Run(lambda: primitive(**arguments), outputs)
        common = sets[0][next(iter(self.room))]  # as if all wrote it, so that they run one after another
        replay = chosen([Call(self.primitive, self.arguments(on), (), (common,)) for on in sets])
        if replay is None:
            return None
        note = served_by(replay)
        return Replays(replay.run, outputs, note=note, timed=backend.driver.timed, each=len(sets))

    def sets(self, device: Device, data: Arrays) -> list[Operands]:
        """Operands and room for the results, as often as the caches of a GPU ask for it."""
        backend = device.backend
        first = {name: upload(device, array) for name, array in data.items()}
        first |= self.derived(device, first)
        made = [first | self._empty(device)]
        nbytes = sum(array.nbytes for array in made[0].values())
        count = tuning.in_turn(nbytes) if isinstance(backend, CudaBackend) else 1
        for _ in range(count - 1):
            copies = {name: backend.empty(array.shape, array.dtype) for name, array in first.items()}
            for name, array in copies.items():
                backend.copy(first[name], out=array)
            made.append(copies | self._empty(device))
        return made

    def derived(self, device: Device, on: Operands) -> Operands:
        """Operands that the device computes from the data."""
        return {}

    def _empty(self, device: Device) -> Operands:
        return {name: device.backend.empty(*of) for name, of in self.room.items()}


@dataclass(frozen=True)
class Forward(Product):
    """y = f(x @ w + b), and f' beside it where the activation needs that for the way back."""

    role = "forward"
    primitive = "dense"

    @property
    def work(self) -> Sequence[Kernel]:
        return (light.forward(*self.shape, self.operand.itemsize, self.function.aux),)

    @property
    def tolerance(self) -> float | None:
        return tolerance(self.dtype, self.in_features)

    def data(self) -> Arrays:
        """x_bi, w_io and b_o."""
        rows, inner, outer = self.shape
        x, b = random(0, (rows, inner), self.operand), random(2, (outer,), self.operand)
        return {"x": x, "w": random(1, (inner, outer), self.operand, inner**-0.5), "b": b}

    def exact(self) -> Arrays:
        """In float64, where it is compared."""
        (rows, columns), (x, w, b) = self.compared, self.data().values()
        z = wide(x[rows]) @ wide(w[:, columns]) + wide(b[columns])
        return {"y": emit.apply(self.function.program, z)}

    @property
    def room(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        one = (self.batch, self.out_features), self.operand
        return {"y": one, "slope": one}

    def arguments(self, on: Operands) -> dict[str, Any]:
        """Those of `dense`."""
        slope = on["slope"] if self.function.aux == "derivative" else None
        return {"x_bi": on["x"], "w_io": on["w"], "b_o": on["b"], "act": self.function, "out": on["y"], "aux": slope}


@dataclass(frozen=True)
class InputGradient(Product):
    """dx = (dz @ w.T) * f'(z) of the layer below, and the column sums of dx, its bias gradient."""

    role = "input gradient"
    primitive = "dense_grad_input"

    @property
    def work(self) -> Sequence[Kernel]:
        return (light.input_gradient(*self.shape, self.operand.itemsize, self.function.aux),)

    @property
    def tolerance(self) -> float | None:
        return tolerance(self.dtype, self.out_features)

    def data(self) -> Arrays:
        """dz_bo, w_io and z_bi."""
        rows, inner, outer = self.shape
        dz, z = random(0, (rows, outer), self.operand), random(2, (rows, inner), self.operand)
        return {"dz": dz, "w": random(1, (inner, outer), self.operand, outer**-0.5), "z": z}

    def exact(self) -> Arrays:
        """In float64, where it is compared; the sums are over all rows."""
        (rows, columns), (dz, w, z) = self.compared, self.data().values()
        dx = wide(dz) @ wide(w[columns]).T * emit.apply(self.function.derivative, wide(z[:, columns]))
        return {"dx": dx[rows], "db": dx.sum(axis=0)}

    @property
    def room(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        return {"dx": ((self.batch, self.in_features), self.operand), "db": ((self.in_features,), self.operand)}

    def derived(self, device: Device, on: Operands) -> Operands:
        """What the layer below has kept of z: the derivative, or the output that tells it."""
        if self.function.aux == "none":
            return {}
        kept = device.backend.empty(on["z"].shape, on["z"].dtype)
        program = self.function.program if self.function.aux == "output" else self.function.derivative
        device.backend.map(program, (on["z"],), out=(kept,))
        return {"kept": kept}

    def arguments(self, on: Operands) -> dict[str, Any]:
        """Those of `dense_grad_input`."""
        given = {"dz_bo": on["dz"], "w_io": on["w"], "act": self.function, "aux_bi": on.get("kept")}
        return given | {"out": on["dx"], "db": on["db"], "mode": "overwrite"}

    def outputs(self, device: Device, on: Operands) -> Arrays:
        """dx and db, where they are compared."""
        return super().outputs(device, on) | {"db": gathered(device, on["db"], self.compared[1])}


@dataclass(frozen=True)
class WeightGradient(Product):
    """dw = x.T @ dz; float32 where the operands have 16 bits, as in mixed precision."""

    role = "weight gradient"
    primitive = "dense_grad_weight"

    @property
    def work(self) -> Sequence[Kernel]:
        return (light.weight_gradient(*self.shape, self.operand.itemsize),)

    @property
    def tolerance(self) -> float | None:
        return tolerance(self.room["dw"][1].name, self.batch)

    def data(self) -> Arrays:
        """x_bi and dz_bo."""
        rows, inner, outer = self.shape
        return {"x": random(0, (rows, inner), self.operand), "dz": random(1, (rows, outer), self.operand)}

    def exact(self) -> Arrays:
        """In float64, where it is compared."""
        (rows, columns), (x, dz) = self.compared, self.data().values()
        return {"dw": wide(x[:, rows]).T @ wide(dz[:, columns])}

    @property
    def room(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        dtype = np.dtype(np.float32) if self.dtype in MIXED else self.operand
        return {"dw": ((self.in_features, self.out_features), dtype)}

    def arguments(self, on: Operands) -> dict[str, Any]:
        """Those of `dense_grad_weight`."""
        return {"x_bi": on["x"], "dz_bo": on["dz"], "out": on["dw"], "mode": "overwrite"}


def wide(array: NDArray[Any]) -> NDArray[Any]:
    """In float64."""
    return array.astype(np.float64)


def cases(grid: Grid) -> list[Case]:
    """All products of each size, with each activation; those of one kind one after another."""
    return [
        kind(grid.dtype, activation, *size)
        for activation in grid.activations
        for kind in (Forward, InputGradient, WeightGradient)
        for size in grid.sizes
    ]
