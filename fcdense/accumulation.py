"""What adds up over batches: the gradients of an optimizer step, and the numbers of an epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fcdense import nn, optim, tape, targets
from fcdense.arena import Array
from fcdense.data import Batch
from fcdense.data.checks import no_weight
from fcdense.log import logger
from fcdense.metrics import Accuracy, Metric, TopK
from fcdense.tensor import Tensor

COUNTS = (Accuracy, TopK)
"""Metrics that add whole numbers: the rows of many batches at once give the same bits."""


class Step:
    """The next optimizer step: the gradients of some batches, which weigh as much as their rows do.

    Parameters
    ----------
    optimizer : Optimizer
    buffers : sequence of (module, name)
        The buffers of the model (the statistics of `BatchNorm`), which forward passes change.
    loss_scale : LossScale, optional
    """

    def __init__(
        self,
        optimizer: optim.Optimizer,
        buffers: Sequence[tuple[nn.Module, str]],
        loss_scale: optim.LossScale | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._loss_scale = loss_scale
        self._buffers = buffers
        self._steps = optimizer.steps
        self._before: list[Tensor | None] = [None] * len(buffers)
        self.begin()

    def begin(self) -> None:
        """Begin the next step, from the model as it is now."""
        self.batches = 0
        self._first = self._total = 0.0
        for place, (module, name) in enumerate(self._buffers):
            value, copy = getattr(module, name), self._before[place]
            if value is None or copy is None or copy.shape != value.shape or copy.device != value.device:
                self._before[place] = None if value is None else value.copy()
            else:
                value.device.backend.copy(value.array, out=copy.array)

    @np.errstate(all="ignore")
    def add(self, loss: Tensor, weight: float) -> None:
        """Add the gradients of a batch, relative to the weight of the first one."""
        self._first = self._first or weight
        share = weight / self._first
        if self._loss_scale is not None:
            self._loss_scale.backward(loss, share)
        else:
            loss.backward(None if share == 1.0 else np.array(share))
        self.count(weight)

    def takes(self, weight: float) -> bool:
        """Whether the gradients of a batch of `weight` count as they are."""
        return self._first in (0.0, weight)

    def count(self, weight: float) -> None:
        """A batch whose gradients are there already."""
        self._first = self._first or weight
        self._total += weight / self._first
        self.batches += 1

    @np.errstate(all="ignore")
    def finish(self) -> bool:
        """Update the parameters and begin the next step; False if a gradient is not finite and nothing has changed."""
        scale = None if self.batches == 1 else 1.0 / self._total
        if not self._optimizer.step(gradient_scale=scale, check_finite=True, loss_scale=self._loss_scale):
            return False
        self._optimizer.zero_grad()
        self.begin()
        return True

    def end_epoch(self, batches: int) -> None:
        """Say so where all of its batches were left out because of the loss scale."""
        if self._loss_scale is not None and self._optimizer.steps == self._steps:
            logger.warning(
                "float16: none of the %d batches of an epoch changed the model, as their gradients were infinite. The "
                "loss scale has come down to %g and goes on falling; bfloat16 needs none.",
                batches,
                self._loss_scale.scale,
            )

    def undo(self) -> None:
        """Leave everything as it was before, and begin anew."""
        self._optimizer.zero_grad()
        for (module, name), before in zip(self._buffers, self._before, strict=True):
            value = getattr(module, name)
            if value is None or before is None or value.shape != before.shape or value.device != before.device:
                setattr(module, name, None if before is None else before.copy())
            else:
                with tape.no_grad():
                    value[()] = before
        self.begin()


class Average:
    """Loss and metrics over batches, each as heavy as its rows."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics
        self._sum = self._weight = 0.0
        self._rows = 0
        for metric in metrics:
            metric.reset()

    @property
    def loss(self) -> float:
        """The mean so far; NaN while there was nothing."""
        return self._sum / self._weight if self._weight else math.nan

    def add(self, loss: float, weight: float, prediction: Tensor, batch: Batch) -> None:
        """Count a batch."""
        target = targets.beside(prediction, batch.y)
        for metric in self._metrics:
            metric.update(prediction, target, batch.sample_weight)
        self._sum += loss * weight
        self._weight += weight
        self._rows += len(batch.x)

    def measure(self, prediction: Array, target: Array) -> None:
        """Give the metrics R batches of B rows, (R, B, ...), as `add` would one by one."""
        for metric in self._metrics:
            if type(metric) in COUNTS:
                metric.update(*(array.reshape(-1, *array.shape[2:]) for array in (prediction, target)))
            else:
                for batch in zip(prediction, target, strict=True):
                    metric.update(*batch)

    def add_losses(self, losses: Sequence[float], rows: int) -> None:
        """Count the losses of batches of so many rows each, as `add` would one by one."""
        for loss in losses:
            self._sum += loss * rows
        self._weight += rows * len(losses)
        self._rows += rows * len(losses)

    def result(self) -> dict[str, float]:
        """The numbers by name."""
        if self._rows and not self._weight:
            raise no_weight(self._rows)
        return {"loss": self.loss} | {metric.name: metric.result() for metric in self._metrics}
