"""The training loop: `Trainer.fit`, `evaluate` and `predict`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fcdense import data, losses, nn, optim, tape, targets
from fcdense import metrics as measures
from fcdense.accumulation import Average, Step
from fcdense.array_targets import ArrayTargets
from fcdense.callbacks import Callback, CallbackList, Logs, ProgressBar, StopOnNaN
from fcdense.captured_training import CapturedTraining
from fcdense.data import Batch, DataLoader
from fcdense.data.checks import as_count
from fcdense.data.feed import feed, validation_feed
from fcdense.diagnosis import first_non_finite
from fcdense.errors import ArgumentError, CaptureError, DataError
from fcdense.history import History
from fcdense.inference import evaluating, predict
from fcdense.nn.input import device_of
from fcdense.optim.loss_scale import SMALLEST
from fcdense.precision import current_precision, known, use_precision
from fcdense.tensor import Tensor

Array = np.ndarray[Any, Any]


class Trainer:
    """Trains a model on batches.

    Parameters
    ----------
    model : nn.Module
    loss : str or callable
        A name of `fcdense.losses`, or (prediction, target) -> tensor of shape (); it takes logits.
    optimizer : str, class or Optimizer
        A name or class of `fcdense.optim` (with its default settings), or an optimizer of the model's parameters.
    metrics : sequence
        Names of `fcdense.metrics`, `Metric` objects, or functions (prediction, target) -> number.
    learning_rate : float or schedule, optional
        For an optimizer that is not made yet.
    clip_norm : float, optional
        For an optimizer that is not made yet: clip the gradients by their global norm.
    accumulate : int
        Batches whose gradients become one optimizer step: that of one batch of all their rows.
    class_weight : mapping or sequence, optional
        A weight >= 0 for each class; classes that a mapping leaves out have weight 1. The weight of a row's class
        multiplies its sample weight in the loss, of training as of validation; metrics know sample weights only.
    precision : {"float32", "tf32", "bfloat16", "float16"}, optional
        In which numbers dense layers multiply (`fcdense.use_precision`), in training, evaluation and prediction; what
        `use_precision` says unless given. In "float16" the loss is scaled (`fcdense.LossScale`): a step whose gradients
        are infinite only because of the scale is left out without a word.
    seed : int
        Shuffling and validation split follow from it. (`fcdense.manual_seed` governs weights and dropout.)
    capture : bool
        Record the training step after the first batch and replay it for all batches of that shape: the same bits,
        without the step's Python (`fcdense.capture`; a number that a loss of your own takes from elsewhere stays as it
        was). Where nothing has to be done between steps (arrays, no `BatchNorm`, no callback that has `on_step_end`,
        no metrics of your own), many are replayed in one go. Where steps cannot be captured (`not_captured` says why),
        and for other batches, each is computed as if False.

    Attributes
    ----------
    history : History
        Of all calls of `fit` together.
    stop_training : bool
        A callback sets it to end training after the current epoch.
    loss_scale : LossScale or None
        That of the last `fit` in "float16".
    measured : list of str
        The names of the numbers that the current `fit` measures in every epoch.
    not_captured : str
        Why the last `fit` did not capture its steps, a word (the rest is logged); "" if it did.

    Raises
    ------
    ArgumentError
        An argument means nothing, two metrics have one name, or the optimizer trains another model.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Any = "cross_entropy",
        optimizer: Any = "adam",
        *,
        metrics: Sequence[Any] = (),
        learning_rate: Any = None,
        clip_norm: float | None = None,
        accumulate: int = 1,
        class_weight: Mapping[int, float] | Sequence[float] | None = None,
        precision: str | None = None,
        seed: int = 0,
        capture: bool = True,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ArgumentError(f"model is {model!r}; expected an nn.Module, such as nn.Sequential(...).")
        self.model = model
        self.loss = losses.get(loss)
        self.metrics = measures.several(metrics)
        self.accumulate = as_count("accumulate", accumulate)
        self.class_weight = class_weight
        self.precision = None if precision is None else known(precision)
        self.loss_scale: optim.LossScale | None = None
        self.seed = as_count("seed", seed, 0)
        self.optimizer = optim.for_parameters(
            optimizer, list(model.parameters()), learning_rate=learning_rate, clip_norm=clip_norm
        )
        self._owns_optimizer = self.optimizer is not optimizer
        self.history = History()
        self.stop_training = False
        self.measured: list[str] = []
        self.capture = capture
        self.not_captured = ""

    def __repr__(self) -> str:
        precision = "" if self.precision is None else f", precision={self.precision!r}"
        return f"Trainer({type(self.model).__name__}, {self.loss!r}, {self.optimizer!r}{precision})"

    def fit(
        self,
        x: Any,
        y: Any = None,
        *,
        epochs: int = 1,
        batch_size: int | None = None,
        validation_split: float | None = None,
        validation_data: Any = None,
        sample_weight: Any = None,
        shuffle: bool = True,
        drop_last: bool = False,
        steps_per_epoch: int | None = None,
        callbacks: Sequence[Callback] = (),
        verbose: bool = True,
    ) -> History:
        """Train for `epochs` passes over the data; a further call goes on from there.

        Parameters
        ----------
        x, y : array (N, ..., I), array (N, ...)
            Rows and targets, or `x` alone: `Batches`, or anything that `DataLoader` takes. For a model on a GPU CuPy's
            arrays may stay there; class numbers are copied to the host once, to be looked at.
        batch_size : int, optional
            Rows in a batch of arrays; 32 unless given.
        validation_split : float, optional
            Part of the rows of arrays, strictly between 0 and 1, that is held out; `seed` chooses them.
        validation_data : tuple (x, y) or (x, y, sample_weight), or batches, optional
        sample_weight : array (N,), optional
            A weight >= 0 for each row of arrays. A batch whose weights are all 0 changes nothing.
        shuffle, drop_last : bool
            Of arrays: a new order in every epoch; leave out a last batch that is not full.
        steps_per_epoch : int, optional
            End every epoch after that many batches.
        callbacks : list of Callback
        verbose : bool
            Show the progress on standard error.

        Returns
        -------
        History
            Loss and metrics of every epoch so far (`trainer.history`: the next `fit` adds to it). Those of training are
            means over its batches while the model changes, the loss with the model's regularizers; those of validation
            come after the epoch, without them.

        Raises
        ------
        NonFiniteError
            A loss or gradient was NaN or infinite; the message names step and layer. Parameters, buffers and optimizer
            are as they were before that step.
        ArgumentError, DataError, DTypeError, ShapeError
            Something given does not fit. For a loss of `fcdense.losses` all targets of arrays, those of validation as
            well, are looked at before the first step, unless a row has weight 0. What only its batch shows is found
            there: the steps before it were made, its own changed nothing.

        Notes
        -----
        The model is left in evaluation mode. On Ctrl-C, or any error, all callbacks are closed and the exception goes
        on; the model can be used, saved and trained further.
        """
        epochs = as_count("epochs", epochs)
        self._take_new_parameters()
        whole = None
        if validation_split is not None:
            if validation_data is not None or y is None:
                raise ArgumentError("validation_split needs arrays x and y, and no validation_data beside them.")
            whole = data.Batches(x, y, sample_weight=sample_weight).arrays
            (x, y, sample_weight), validation_data = data.validation_split(
                x, y, validation_split, sample_weight=sample_weight, seed=self.seed
            )
        batches = feed(
            x,
            y,
            sample_weight,
            batch_size=batch_size,
            usual=32,
            steps_per_epoch=steps_per_epoch,
            shuffle=shuffle,
            drop_last=drop_last,
            seed=self.seed,
        )
        validation = None if validation_data is None else validation_feed(validation_data, x, y, epochs)
        defaults = (StopOnNaN(), ProgressBar()) if verbose else (StopOnNaN(),)
        measured = ["loss", *(metric.name for metric in self.metrics)]
        held_out = None
        if validation is not None and whole is None:
            held_out = ArrayTargets(self.model, validation, self.class_weight, name="validation_data: ")
        given = ArrayTargets(self.model, batches, self.class_weight, whole=whole, also=held_out)
        capturing = CapturedTraining(self, batches, given, self.capture)
        # Ctrl-C may fall between the lines of an inner errstate; this one puts NumPy's settings back all the same.
        with np.errstate(), self._multiplying(), CallbackList(callbacks, defaults) as hooks:
            self._prepare_loss_scale()
            self.measured = measured if validation is None else [*measured, *(f"val_{name}" for name in measured)]
            self.stop_training = False
            hooks.begin(self, epochs, batches.steps_per_epoch)
            try:
                for epoch in range(epochs):
                    hooks.tell("on_epoch_begin", epoch)
                    batches.set_epoch(len(self.history))
                    logs = self._train(batches, given, capturing, hooks)
                    if validation is not None:
                        logs |= {f"val_{name}": value for name, value in self._measure(validation, given).items()}
                    self.history.append(logs)
                    hooks.tell("on_epoch_end", epoch, logs)
                    if self.stop_training:
                        break
            finally:
                capturing.close()
                self.not_captured = capturing.reason
                self.model.eval()
        return self.history

    def evaluate(
        self, x: Any, y: Any = None, *, batch_size: int | None = None, sample_weight: Any = None
    ) -> dict[str, float]:
        """Loss (without regularizers) and metrics over arrays or batches, in evaluation mode.

        Takes data as `fit` does, 256 rows at a time unless `batch_size` says otherwise.
        """
        with self._multiplying():
            batches = feed(x, y, sample_weight, batch_size=batch_size)
            return self._measure(batches, ArrayTargets(self.model, batches, self.class_weight))

    def predict(self, x: Any, *, batch_size: int = 1024) -> Any:
        """The outputs for `x`, row by row, on the host or for a CuPy array on the GPU: `fcdense.predict`."""
        with self._multiplying():
            return predict(self.model, x, batch_size=batch_size)

    def _multiplying(self) -> Any:
        """The context of the trainer's precision."""
        return use_precision(self.precision or current_precision())

    def _prepare_loss_scale(self) -> None:
        """One on the model's device, where the precision needs it; a further `fit` goes on with it."""
        on, found = device_of(self.model), self.loss_scale
        if current_precision() != "float16":
            self.loss_scale = None
        elif found is None or found.device != on:
            self.loss_scale = optim.LossScale(device=on)

    def _take_new_parameters(self) -> None:
        """Train layers that the model was given since; an optimizer that the caller made stays the caller's."""
        known = set(self.optimizer.parameters)
        fresh = [parameter for parameter in self.model.parameters() if parameter not in known]
        if self._owns_optimizer and fresh:
            self.optimizer.add_parameters(fresh)

    def _train(
        self, batches: DataLoader, given: ArrayTargets, capturing: CapturedTraining, hooks: CallbackList
    ) -> Logs:
        """One epoch."""
        self.model.train()
        self.optimizer.zero_grad()
        average = Average(self.metrics)
        # Walking through the modules costs as much as a small layer: once an epoch is enough.
        buffers = [(module, name) for module in self.model.modules() for name in module._buffers]
        is_penalized = any(parameter.regularizer is not None for parameter in self.model.parameters())
        step = Step(self.optimizer, buffers, self.loss_scale)
        capturing.begin_epoch(may_group=not buffers and not hooks.follows_steps)
        number = 0
        try:
            walk = iter(batches)
            for batch in walk:
                done = False
                if capturing.takes(batch) and step.takes(float(len(batch.x))):
                    done = self._replay(capturing, batch, step, average, hooks)
                if not done:
                    prediction = self._compute(batch, given, is_penalized, step, average, hooks)
                    if prediction is not None:
                        capturing.offer(batch, prediction)
                hooks.tell("on_step_end", number, {"loss": average.loss})
                number += 1
                while made := capturing.run_group(walk, average):
                    number += made
                    hooks.tell("on_step_end", number - 1, {"loss": average.loss})
            if step.batches:
                self._finish(step, batch, hooks)
        except BaseException:
            step.undo()
            raise
        step.end_epoch(number)
        return average.result()

    def _compute(
        self, batch: Batch, given: ArrayTargets, is_penalized: bool, step: Step, average: Average, hooks: CallbackList
    ) -> Tensor | None:
        """Learn a batch; its prediction, or None where it taught nothing."""
        prediction, loss, weight = self._forward(batch, given)
        if loss is not None and is_penalized:
            loss = loss + self.model.penalty()
        value = 0.0 if loss is None else loss.item()
        if not math.isfinite(value):
            self._discard(step, batch, f"the loss is {value}", hooks)
            return None
        average.add(value, weight, prediction, batch)
        if loss is not None:
            step.add(loss, weight)
        if step.batches == self.accumulate and not self._finish(step, batch, hooks):
            return None
        return None if loss is None else prediction

    def _replay(
        self, capturing: CapturedTraining, batch: Batch, step: Step, average: Average, hooks: CallbackList
    ) -> bool:
        """Learn a batch by the recorded step; False if that does not fit any more, and nothing was done."""
        optimizer = self.optimizer
        skipped, norm = optimizer.skipped_steps, optimizer.gradient_norm
        try:
            prediction, value = capturing.run(batch)
        except CaptureError:
            capturing.forget()
            return False
        weight = float(len(batch.x))
        if not math.isfinite(value):
            # As where the loss is looked at before there are gradients.
            optimizer.skipped_steps, optimizer.gradient_norm = skipped, norm
            self._discard(step, batch, f"the loss is {value}", hooks)
            return True
        average.add(value, weight, *capturing.for_metrics(prediction, batch))
        if self.accumulate > 1:
            step.count(weight)
            if step.batches == self.accumulate:
                self._finish(step, batch, hooks)
        elif optimizer.skipped_steps == skipped:
            step.begin()
        else:
            self._discard_gradients(step, batch, hooks)
        return True

    def _finish(self, step: Step, batch: Batch, hooks: CallbackList) -> bool:
        """Update the parameters; False where a gradient is not finite and the step was undone."""
        is_done = step.finish()
        if not is_done:
            self._discard_gradients(step, batch, hooks)
        return is_done

    def _discard_gradients(self, step: Step, batch: Batch, hooks: CallbackList) -> None:
        """Undo a step with a gradient that is not finite; a smaller loss scale may cure the next one."""
        if self.loss_scale is not None and self.loss_scale.scale > SMALLEST:
            step.undo()
        else:
            self._discard(step, batch, "a gradient is not finite", hooks)

    def _discard(self, step: Step, batch: Batch, what: str, hooks: CallbackList) -> None:
        """Undo a step that is not finite, and say where it began."""
        step.undo()
        hooks.tell("on_non_finite", self.optimizer.steps, f"{what}: {first_non_finite(self.model, batch)}")

    def _measure(self, batches: DataLoader, given: ArrayTargets) -> Logs:
        """Loss and metrics of one pass without training."""
        average = Average(self.metrics)
        with evaluating(self.model):
            for number, batch in enumerate(batches):
                # From the record of the first one, a loss of logits sees whether it is given probabilities.
                with tape.recording(number == 0):
                    prediction, loss, weight = self._forward(batch, given)
                average.add(0.0 if loss is None else loss.item(), weight, prediction, batch)
        return average.result()

    @np.errstate(all="ignore")
    def _forward(self, batch: Batch, given: ArrayTargets) -> tuple[Tensor, Tensor | None, float]:
        """Prediction, loss and total weight of a batch; no loss where the weight is 0.

        NumPy's warnings of overflow say less than `on_non_finite` does.
        """
        if batch.y is None:
            raise DataError("There are no targets: training and evaluation take batches of (x, y).")
        prediction = self.model(batch.x)
        given.check(self.loss, batch, prediction)
        y, weights = targets.beside(prediction, batch.y), batch.sample_weight
        if self.class_weight is not None:
            ignored = self.loss.ignore_index
            weights = targets.weights_by_class(self.class_weight, y, prediction.shape, weights, ignored)
        total = float(len(batch.x)) if weights is None else float(weights.sum())
        if not total:
            return prediction, None, 0.0
        return prediction, self.loss(prediction, y, weights), total
