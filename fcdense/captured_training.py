"""The training step of a `Trainer` as a recording: what may be captured, and batches that go straight into it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from fcdense import losses, metrics, nn, optim, targets
from fcdense.accumulation import Average
from fcdense.arena import Array
from fcdense.array_targets import ArrayTargets
from fcdense.backends import Device
from fcdense.capture import Captured
from fcdense.captured_rounds import Rounds
from fcdense.conversion import is_on_gpu
from fcdense.data import Batch, DataLoader
from fcdense.data.loader import Pass
from fcdense.errors import CaptureError, OutOfMemory
from fcdense.log import logger
from fcdense.tensor import Tensor, placed, tensor

READS_AT_ONCE = (*metrics.TABLE.values(), metrics.TopK)
"""Metrics that keep nothing of the arrays that they are given."""

GROUP_SECONDS = 0.05
"""How long the steps of one call take together: Ctrl-C and the progress bar wait for them."""

FIRST_SIZE = 8
"""Steps of the first call, which tells how long they take."""

UNKNOWN_TARGETS = "the loss is a function that calls another one, which looks at the values of its targets"


class CapturedTraining:
    """Forward pass, loss, backward pass and, where every batch is a step of its own, the update, recorded together.

    It serves batches of the shapes and dtypes of the first one that it is offered, without weights. What speaks
    against it is found out once, and kept.

    Parameters
    ----------
    trainer : Trainer
    batches : DataLoader
    array_targets : ArrayTargets
        Those of the batches.
    is_wanted : bool

    Attributes
    ----------
    reason : str
        Why steps are not captured, a word; "" where they are, or while that is not known.
    """

    def __init__(self, trainer: Any, batches: DataLoader, array_targets: ArrayTargets, is_wanted: bool) -> None:
        self._trainer = trainer
        self._batches = batches
        self._targets = array_targets
        self.reason = "" if is_wanted else "capture=False"
        if trainer.class_weight is not None:
            self.refuse("class_weight", "the weights of rows are worked out on the host")
        self._captured: Captured | None = None
        self._served: tuple[Any, ...] = ()
        self._form: tuple[Any, ...] = ()
        self._fixed: Batch | None = None
        self._check: Callable[[Batch], object] | None = None
        self._updates = trainer.accumulate == 1
        self._may_group = False
        self._group: Rounds | None = None
        self._size = FIRST_SIZE
        self.keeps_arrays = any(type(metric) not in READS_AT_ONCE for metric in trainer.metrics)

    def refuse(self, reason: str, why: str) -> None:
        """Compute every step as ever, from now on."""
        if not self.reason:
            self.reason = reason
            self._captured = None
            logger.info("training steps are not captured: %s (%s)", reason, why)

    def close(self) -> None:
        """Batches get arrays of their own again."""
        if self._batches.arrays is not None:
            self._batches.source.write_into(None)

    def offer(self, batch: Batch, prediction: Tensor) -> None:
        """Record the step after `batch` was computed as ever, where nothing speaks against it."""
        if self.reason or self._captured is not None:
            return
        if batch.sample_weight is not None:
            self.refuse("sample_weight", "the weights of rows are worked out on the host")
            return
        arrays = [array for array in (batch.x, batch.y) if array is not None]
        if not all(array.dtype.isnative and array.dtype.itemsize <= 8 for array in arrays):
            self.refuse("dtype", f"batches of {batch.x.dtype} are converted on the host")
            return
        on = prediction.device
        rows, source = self._batches.arrays, self._batches.source
        x, y = (placed(array, on) for array in arrays)
        if rows is not None and not self.keeps_arrays and _are_small_integers(y):
            y = y.astype(np.int64)  # as class numbers are in the end: once instead of at each step
        trainer = self._trainer
        served = trainer.model, trainer.loss, trainer.optimizer
        captured = Captured(partial(training_step, *served, trainer.loss_scale, self._updates))
        try:
            captured.record(x, y)
            if captured.unchecked:
                self._check = self._check_of(prediction)
        except Exception as error:
            self.refuse("targets" if captured.is_recorded else "refused", str(error))
            return
        self._captured, self._form = captured, _form(batch)
        self._served = served
        arrays = [tensor.array for tensor in captured.inputs]
        if rows is not None:
            if on.backend.is_host:
                self._fixed = Batch(*arrays)
                source.write_into(self._fixed)
            sources = resident(rows, arrays, on) if len(batch.x) == source.batch_size else None
            if sources is not None:
                self._group = Rounds(captured, sources, [bool(trainer.metrics), True])

    def _check_of(self, prediction: Tensor) -> Callable[[Batch], object] | None:
        """What looks at the values of a batch's targets, which the recorded loss does not; None if all were looked at.

        Raises
        ------
        FcdenseError
            A target is wrong, or the loss is one of which it is not known what it takes.
        """
        check = self._trainer.loss.target_check
        if check is None:
            raise CaptureError(UNKNOWN_TARGETS)
        if self._batches.arrays is not None:
            self._targets.check_batches(self._trainer.loss, prediction.shape[1:])
            return None

        def look(batch: Batch) -> object:
            y: Any = batch.y
            return check(y.shape, lambda: targets.beside(prediction, y), (len(batch.x), *prediction.shape[1:]))

        return look

    def takes(self, batch: Batch) -> bool:
        """Whether the recorded step is one for `batch`."""
        return self._is_current() and (batch is self._fixed or _form(batch) == self._form)

    def _is_current(self) -> bool:
        """Whether there is a recorded step of the present model, loss and optimizer."""
        if self._captured is None:
            return False
        trainer = self._trainer
        served = trainer.model, trainer.loss, trainer.optimizer
        if any(ours is not now for ours, now in zip(self._served, served, strict=True)):
            self.forget()  # a callback has put another one in its place
            return False
        return True

    def run(self, batch: Batch) -> tuple[Tensor, float]:
        """Prediction, and the loss, which is read with all else that is known of an update.

        Raises
        ------
        CaptureError
            Parameters have moved; nothing was changed.
        """
        captured = self._captured
        assert captured is not None
        if self._check is not None:
            self._check(batch)
        with np.errstate(all="ignore"):
            prediction, loss = captured.replay() if batch is self._fixed else captured(batch.x, batch.y)
        return prediction, self._trainer.optimizer.checked_loss if self._updates else loss.item()

    def for_metrics(self, prediction: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
        """Both as they are, or copies for metrics that may keep them: the next step writes into the same arrays."""
        if not self.keeps_arrays:
            return prediction, batch
        y = None if batch.y is None else targets.beside(prediction, batch.y).copy()
        return prediction.copy(), batch._replace(y=y)

    def run_group(self, batches: Pass, average: Average) -> int:
        """Learn some of the next full batches of arrays in one call; how many, 0 where the next is one for `run`.

        No step among them is refused: a batch that is not finite stays to come.
        """
        if self._group is None or not self._may_group or not self._is_current():
            return 0
        rows = batches.ahead(self._size)
        if not len(rows):
            return 0
        began = time.perf_counter()
        try:
            with np.errstate(all="ignore"):
                made = self._group.run(rows)
        except CaptureError:
            return 0
        if made:
            self._size = max(1, int(made * GROUP_SECONDS / (time.perf_counter() - began)))
            batches.skip(made)
            *predictions, losses = (result[:made] for result in self._group.results)
            for prediction in predictions:  # where there are metrics
                average.measure(prediction, self._targets.on_host[rows[:made]])
            average.add_losses(losses.tolist(), rows.shape[1])
        return made

    def begin_epoch(self, may_group: bool) -> None:
        """Look at all settings of the model at the next batch; `may_group` if nothing has to be done between steps."""
        # A refused round is made again by itself, which a loss scale would take for a second step.
        self._may_group = may_group and self._updates and not self.keeps_arrays and self._trainer.loss_scale is None
        if self._captured is not None:
            self._captured.look_again()

    def forget(self) -> None:
        """Record anew when a batch is offered next: the model or the optimizer is another one than was recorded."""
        self._captured = self._group = None


def resident(rows: Batch, inputs: Sequence[Array], on: Device) -> list[Array] | None:
    """The rows of x and y where a step's inputs are: on a GPU a copy of all of them; None where it has no room."""
    try:
        return [_rows(rows.x, None, on), _rows(rows.y, inputs[1].dtype, on)]
    except OutOfMemory as error:
        logger.info("batches are sent to %s one by one: %s", on, error)
        return None


def _rows(given: Any, dtype: Any, on: Device) -> Array:
    if is_on_gpu(given):
        return tensor(given, dtype, on).array
    return on.backend.from_host(given if dtype is None else np.ascontiguousarray(given, dtype))


def training_step(
    model: nn.Module,
    loss: losses.Loss,
    optimizer: optim.Optimizer,
    loss_scale: optim.LossScale | None,
    updates: bool,
    x: Tensor,
    y: Tensor,
) -> tuple[Tensor, Tensor]:
    """Forward pass, loss with regularizers, backward pass and, with `updates`, the update: what is recorded."""
    prediction = model(x)
    value = loss(prediction, y)
    penalty = model.penalty()
    if penalty is not None:
        value = value + penalty
    if loss_scale is None:
        value.backward()
    else:
        loss_scale.backward(value)
    if updates:
        optimizer.step(check_finite=value, loss_scale=loss_scale)
        optimizer.zero_grad()
    return prediction, value


def _are_small_integers(array: Any) -> bool:
    return array.dtype.kind in "iu" and np.can_cast(array.dtype, np.int64)


def _form(batch: Batch) -> tuple[Any, ...]:
    x, y, weight = batch
    return x.shape, x.dtype, None if y is None else (y.shape, y.dtype), weight is None
