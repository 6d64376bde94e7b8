"""Whether a step takes place, and how far it goes: decided on the device, where a recorded step finds the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from fcdense.arena import Allocator, Array
from fcdense.backends import Device
from fcdense.program import Program, trace
from fcdense.tensor import Tensor

if TYPE_CHECKING:
    from fcdense.optim.loss_scale import LossScale

F64 = np.dtype(np.float64)


def words(allocator: Allocator, values: Sequence[float]) -> Array:
    """A float64 vector on the device, to be read by primitives and written by the host."""
    vector = allocator.empty((len(values),), F64)
    vector[...] = np.array(values, F64)
    return vector


@cache
def decision(spans: int, scales: int, is_divided: bool = False) -> Program:
    """(; s, clip_norm, L, the sum of squares of each span, loss) -> (n, finite, the scale of the gradients as often).

    n = |s| sqrt(sum of squares); finite = 1 where n and the loss are, else 0; scale = s min(1, clip_norm / (n + 1e-6)).
    `is_divided`, s / L stands for s: L is the loss scale.
    """

    def function(asked: Any, limit: Any, divisor: Any, total: Any, *rest: Any) -> tuple[Any, ...]:
        *others, loss = rest
        for squares in others:
            total = total + squares
        if is_divided:
            asked = asked / divisor
        norm = abs(asked) * np.sqrt(total)
        is_finite = np.logical_and(abs(norm) < np.inf, abs(loss) < np.inf)
        ratio = limit / (norm + 1e-6)
        scale = asked * np.where(ratio < 1.0, ratio, 1.0)
        return norm, np.where(is_finite, 1.0, 0.0), *(scale,) * scales

    return trace(function, 0, 4 + spans, name="decision")


class Gate:
    """The norm of the gradients of one plan, and what follows from it. A step changes nothing where `flag` holds 0.

    Parameters
    ----------
    gradients : sequence of (Device, Array)
        The spans. The first one's device decides; where there are several, the host carries numbers between them.
    scalars : sequence of (Device, Array)
        The scalars of the updates; clipping writes the scale of the gradients into their place 1.
    allocators : mapping
        Who gives memory on each device.

    Attributes
    ----------
    norm : Array
        Float64 of shape ().
    """

    def __init__(
        self,
        gradients: Sequence[tuple[Device, Array]],
        scalars: Sequence[tuple[Device, Array]],
        allocators: Mapping[Device, Allocator],
    ) -> None:
        here = self._on = gradients[0][0]
        numbers = words(allocators[here], [1.0, np.inf, 1.0, *[0.0] * len(gradients), 0.0, 0.0, 0.0])
        self._given, self._told = numbers[:-2], numbers[-3:]
        self._loss, self.norm, finite = (self._told[i, ...] for i in range(3))
        self._loss_scale = self._given[2, ...]
        cells = [self._given[3 + i, ...] for i in range(len(gradients))]
        self._spans = [
            (on, gradient, cell if on == here else words(allocators[on], [0.0])[0, ...], cell)
            for (on, gradient), cell in zip(gradients, cells, strict=True)
        ]
        self._flags = {on: words(allocators[on], [0.0])[0, ...] for on in allocators} | {here: finite}
        scales = [(on, vector[1, ...]) for on, vector in scalars]
        self._scales = [scale for on, scale in scales if on == self._on]
        self._far_scales = [(on, scale) for on, scale in scales if on != self._on]

    def flag(self, on: Device) -> Array:
        """1 where the step takes place, else 0; the `when` of `Backend.map`."""
        return self._flags[on]

    def ask(self, scale: float, clip_norm: float | None) -> None:
        """Write what the caller wants: by how much gradients are scaled, and the norm that they may have then."""
        self._given[0] = scale
        if clip_norm is not None:
            self._given[1] = clip_norm

    def decide(self, loss: Tensor | None, clips: bool, loss_scale: LossScale | None = None) -> None:
        """Launch it: norm and flag, and, where the step clips or the loss was scaled, the scale of the gradients."""
        backend = self._on.backend
        for on, gradient, squares, cell in self._spans:
            on.backend.norm2(gradient, out=squares)
            if squares is not cell:
                backend.copy(carried(squares, on, self._on), out=cell)
        if loss is None:
            backend.fill(0.0, out=self._loss)
        else:
            backend.copy(carried(loss.array, loss.device, self._on).reshape(()), out=self._loss)
        if loss_scale is not None:
            backend.copy(carried(loss_scale.array, loss_scale.device, self._on), out=self._loss_scale)
        changes_scale = clips or loss_scale is not None
        scales = self._scales if changes_scale else []
        finite = self._flags[self._on]
        program = decision(len(self._spans), len(scales), loss_scale is not None)
        backend.map(program, (), self._given, out=(self.norm, finite, *scales))
        if loss_scale is not None:
            loss_scale.follow(finite, self._on)
        for on, flag in self._flags.items():
            if on != self._on:
                on.backend.copy(carried(finite, self._on, on), out=flag)
        for on, scale in self._far_scales if changes_scale else ():
            on.backend.copy(carried(self._scales[0], self._on, on), out=scale)

    def read(self) -> tuple[float, float, bool]:
        """The loss (0 where none was looked at), the norm, and whether the step took place."""
        loss, norm, finite = self._on.backend.unrecorded.to_host(self._told).tolist()
        return loss, norm, bool(finite)


def carried(array: Array, source: Device, target: Device) -> Array:
    """`array` on another device; the host takes it there."""
    if source == target:
        return array
    return target.backend.from_host(source.backend.to_host(array))
