"""Callbacks: what happens between the steps and epochs of `Trainer.fit`."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from fcdense import checkpoint, metrics, nn
from fcdense.data.checks import as_count
from fcdense.errors import ArgumentError, NonFiniteError, unknown_name

Logs = dict[str, float]
Mode = Literal["auto", "min", "max"]


class Callback:
    """Base: override what you need. `self.trainer` is there from `on_train_begin` on.

    Set ``self.trainer.stop_training = True`` to end training after the current epoch.
    """

    trainer: Any

    def on_train_begin(self, epochs: int, steps: int | None) -> None:
        """Before the first epoch; `steps` is the number of batches of an epoch where it is known."""

    def on_epoch_begin(self, epoch: int) -> None:
        """Before epoch `epoch` (from 0)."""

    def on_step_end(self, step: int, logs: Logs) -> None:
        """After batch `step` of the epoch (from 0), with the mean loss of the epoch so far.

        A callback that has it is told of every batch, so that all of them are learnt one by one.
        """

    def on_non_finite(self, step: int, reason: str) -> None:
        """The loss or a gradient of optimizer step `step` (from 0) is not finite; nothing was changed."""

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """After epoch `epoch`, with its loss and metrics, those of the validation data with the prefix `val_`."""

    def on_train_end(self) -> None:
        """After the last epoch, also when training ends with an error or Ctrl-C."""


class CallbackList:
    """The callbacks of one training, told of every event in turn; an error gets a note that names who raised it.

    A context manager: at its end all callbacks whose `on_train_begin` was called get their `on_train_end`, whatever
    happened. An error that is under way goes on; errors of `on_train_end` are noted in it.

    `defaults` are added where no callback of their class is given.
    """

    def __init__(self, callbacks: Sequence[Callback], defaults: Sequence[Callback] = ()) -> None:
        if not isinstance(callbacks, Sequence):
            raise ArgumentError(f"callbacks is {callbacks!r}; expected a list of callbacks.")
        for callback in callbacks:
            if not isinstance(callback, Callback):
                made = f" Make one: {callback.__name__}()." if isinstance(callback, type) else ""
                raise ArgumentError(
                    f"callbacks holds {callback!r}; expected objects of classes made from fc.callbacks.Callback.{made}"
                )
        missing = [default for default in defaults if not any(isinstance(c, type(default)) for c in callbacks)]
        self._callbacks = [*callbacks, *missing]
        self._open: list[Callback] = []

    def begin(self, trainer: Any, epochs: int, steps: int | None) -> None:
        """`on_train_begin`."""
        for callback in self._callbacks:
            callback.trainer = trainer
            self._open.append(callback)
            _call(callback, "on_train_begin", epochs, steps)

    def tell(self, event: str, *arguments: Any) -> None:
        """Any other event."""
        for callback in self._callbacks:
            _call(callback, event, *arguments)

    @property
    def follows_steps(self) -> bool:
        """Whether a callback has to be told of every single step: one with `on_step_end`, other than `ProgressBar`."""
        known = (Callback.on_step_end, ProgressBar.on_step_end)
        return any(getattr(callback.on_step_end, "__func__", None) not in known for callback in self._callbacks)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        errors = [] if error is None else [error]
        for callback in self._open:
            try:
                _call(callback, "on_train_end")
            except BaseException as failure:
                errors.append(failure)
        for other in errors[1:]:
            errors[0].add_note(f"Afterwards: {other!r}. {' '.join(getattr(other, '__notes__', ()))}")
        if error is None and errors:
            raise errors[0]


def _call(callback: Callback, event: str, *arguments: Any) -> None:
    try:
        getattr(callback, event)(*arguments)
    except BaseException as error:
        error.add_note(f"Raised by callback {type(callback).__name__}.{event}.")
        raise


class Monitor(Callback):
    """Base of the callbacks that watch one number for improvement.

    Parameters
    ----------
    monitor : str
        "loss", the name of a metric, or either with the prefix "val_".
    min_delta : float
        Smaller changes do not count as improvement.
    mode : {"auto", "min", "max"}
        Whether less or more is better; "auto" knows it of the loss and of the metrics that have names.

    Raises
    ------
    UnknownNameError
        When training begins: the trainer does not measure `monitor`.
    """

    def __init__(self, monitor: str, min_delta: float, mode: Mode) -> None:
        if mode not in ("auto", "min", "max"):
            raise ArgumentError(f"mode is {mode!r}; expected 'auto', 'min' or 'max'.")
        if not (isinstance(min_delta, int | float) and 0 <= min_delta < math.inf):
            raise ArgumentError(f"min_delta is {min_delta!r}; expected a finite number >= 0.")
        if not isinstance(monitor, str):
            raise ArgumentError(f"monitor is {monitor!r}; expected the name of a number, such as 'val_loss'.")
        self.monitor = monitor
        self.min_delta = min_delta
        self.sign = 1.0 if _rises(monitor, mode) else -1.0
        self.best = math.nan

    def on_train_begin(self, epochs: int, steps: int | None) -> None:
        """Forget the best value of an earlier training."""
        if self.monitor.startswith("val_") and self.monitor[4:] in self.trainer.measured and self._lacks_validation():
            raise ArgumentError(
                f"{type(self).__name__} watches {self.monitor!r}, but there is no validation data. Pass "
                f"validation_data or validation_split to fit, or monitor={self.monitor[4:]!r}."
            )
        if self.monitor not in self.trainer.measured:
            unknown_name("number to monitor", self.monitor, self.trainer.measured)
        self.best = math.nan

    def _lacks_validation(self) -> bool:
        return not any(name.startswith("val_") for name in self.trainer.measured)

    def improved(self, logs: Logs) -> bool:
        """Whether the watched number is better than ever before, by more than `min_delta`; NaN never is."""
        value = logs[self.monitor]
        if math.isnan(value) or not (math.isnan(self.best) or self.sign * (value - self.best) > self.min_delta):
            return False
        self.best = value
        return True


def _rises(monitor: str, mode: Mode) -> bool:
    """Whether more is better."""
    name = monitor.removeprefix("val_")
    if mode != "auto":
        return mode == "max"
    if name in ("accuracy", "r2") or name.startswith("top_"):
        return True
    if name == "loss" or name in metrics.TABLE:
        return False
    raise ArgumentError(f"Is more of {monitor!r} better, or less? Say mode='max' or mode='min'.")


class EarlyStopping(Monitor):
    """Stop when the watched number has not improved for `patience` epochs.

    Parameters
    ----------
    monitor, min_delta, mode
        As for `Monitor`.
    patience : int
        Epochs in a row without improvement after which training stops, at least 1.
    restore_best : bool
        Go back to the parameters of the best epoch when training ends, for whatever reason it does.

    Attributes
    ----------
    best, best_epoch : float, int
        The best value so far and its epoch (from 0; -1 while there is none).
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 5,
        *,
        min_delta: float = 0.0,
        mode: Mode = "auto",
        restore_best: bool = True,
    ) -> None:
        super().__init__(monitor, min_delta, mode)
        self.patience = as_count("patience", patience)
        self.restore_best = restore_best
        self.best_epoch = -1
        self._best_state: dict[str, Any] | None = None

    def on_train_begin(self, epochs: int, steps: int | None) -> None:
        """Start waiting anew."""
        super().on_train_begin(epochs, steps)
        self.best_epoch, self._best_state = -1, None

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Keep the best state, or count another epoch without improvement."""
        if self.improved(logs):
            self.best_epoch = epoch
            if self.restore_best:
                self._best_state = self.trainer.model.state_dict()
        elif epoch - self.best_epoch >= self.patience:
            self.trainer.stop_training = True

    def on_train_end(self) -> None:
        """Restore the best state."""
        if self._best_state is not None:
            self.trainer.model.load_state_dict(self._best_state)
            self._best_state = None


class BestCheckpoint(Monitor):
    """Save the model to `path` (`fcdense.save`) whenever the watched number improves.

    Whether it can be saved there is asked before training begins.
    """

    def __init__(
        self, path: str | Path, monitor: str = "val_loss", *, min_delta: float = 0.0, mode: Mode = "auto"
    ) -> None:
        super().__init__(monitor, min_delta, mode)
        self.path = Path(path)

    def on_train_begin(self, epochs: int, steps: int | None) -> None:
        """Refuse a model or a path that cannot be saved."""
        super().on_train_begin(epochs, steps)
        nn.to_data(self.trainer.model)
        checkpoint.destination(self.path)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Save if this epoch is the best so far."""
        if self.improved(logs):
            checkpoint.save(self.path, self.trainer.model)


class StopOnNaN(Callback):
    """Raise `NonFiniteError`, naming step and layer, after more than `patience` non-finite steps in a row.

    A non-finite step changes nothing, so the model keeps its last good parameters. `Trainer.fit` adds
    `StopOnNaN()` by itself unless one is given.
    """

    def __init__(self, patience: int = 0) -> None:
        self.patience = as_count("patience", patience, 0)
        self._step = -1
        self._in_a_row = 0

    def on_train_begin(self, epochs: int, steps: int | None) -> None:
        """Start counting anew."""
        self._in_a_row = 0

    def on_non_finite(self, step: int, reason: str) -> None:
        """Count, and raise once there were too many."""
        # A step that was not made leaves its number to the next one.
        self._in_a_row = self._in_a_row + 1 if step == self._step else 1
        self._step = step
        if self._in_a_row > self.patience:
            raise NonFiniteError(f"Step {step}: {reason} Parameters and optimizer are as they were before this step.")


class ProgressBar(Callback):
    """A bar for the running epoch and a line for each finished one, on standard error; lines only where it is a file.

    Parameters
    ----------
    interval : float
        Seconds between two updates of the bar.
    """

    def __init__(self, interval: float = 0.1) -> None:
        self.interval = interval
        self._progress: Any = None
        self._updated = 0.0

    def on_train_begin(self, epochs: int, steps: int | None) -> None:
        """Open the display."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._epochs, self._steps = epochs, steps
        self._console = Console(file=sys.stderr)
        if self._console.is_terminal:
            texts = (TextColumn("{task.description}"), TextColumn("{task.fields[loss]}"))
            columns = (texts[0], BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), texts[1])
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._progress.start()

    def on_epoch_begin(self, epoch: int) -> None:
        """Start a bar."""
        if self._progress is not None:
            self._task = self._progress.add_task(f"epoch {epoch + 1}/{self._epochs}", total=self._steps, loss="")

    def on_step_end(self, step: int, logs: Logs) -> None:
        """Advance the bar, if it is time."""
        if self._progress is not None and time.monotonic() - self._updated >= self.interval:
            self._updated = time.monotonic()
            self._progress.update(self._task, completed=step + 1, loss=f"loss {logs['loss']:.4f}")

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Replace the bar by a line."""
        if self._progress is not None:
            self._progress.remove_task(self._task)
        numbers = "  ".join(f"{name} {value:.4f}" for name, value in logs.items())
        line = f"epoch {epoch + 1:>{len(str(self._epochs))}}/{self._epochs}  {numbers}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def on_train_end(self) -> None:
        """Close the display."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
