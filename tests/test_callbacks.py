"""Callbacks: the order of events, early stopping, checkpoints, the display, and what happens when one fails."""

from __future__ import annotations

import itertools
import math
import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

import fcdense as fc
from fcdense.callbacks import BestCheckpoint, Callback, CallbackList, EarlyStopping, ProgressBar, StopOnNaN
from fcdense.errors import ArgumentError, NonFiniteError, UnknownNameError

X = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 2, 12)


def trainer(metrics=()) -> fc.Trainer:
    fc.manual_seed(0)
    return fc.Trainer(fc.nn.Sequential(fc.nn.Dense(2, in_features=3)), metrics=metrics)


class Recorder(Callback):
    """Writes every event down."""

    def __init__(self) -> None:
        self.events: list[tuple] = []

    def on_train_begin(self, epochs, steps):
        self.events.append(("begin", epochs, steps))

    def on_epoch_begin(self, epoch):
        self.events.append(("epoch", epoch))

    def on_step_end(self, step, logs):
        self.events.append(("step", step, list(logs)))

    def on_epoch_end(self, epoch, logs):
        self.events.append(("epoch end", epoch, list(logs)))

    def on_train_end(self):
        self.events.append(("end",))


class Failing(Callback):
    """Fails at one event."""

    def __init__(self, event: str, error: BaseException) -> None:
        def fail(*arguments):
            raise error

        setattr(self, event, fail)


# ---- events ----------------------------------------------------------------------------------------------------------


def test_events_come_in_order():
    recorder = Recorder()
    trainer(["accuracy"]).fit(X, Y, epochs=2, batch_size=6, callbacks=[recorder], verbose=False)
    epochs = [
        [("epoch", e), ("step", 0, ["loss"]), ("step", 1, ["loss"]), ("epoch end", e, ["loss", "accuracy"])]
        for e in (0, 1)
    ]
    assert recorder.events == [("begin", 2, 2), *itertools.chain(*epochs), ("end",)]


def test_steps_are_none_where_they_are_not_known():
    recorder = Recorder()
    trainer().fit(lambda: iter([(X, Y)]), callbacks=[recorder], verbose=False)
    assert recorder.events[0] == ("begin", 1, None)


def test_the_loss_of_a_step_is_the_mean_so_far():
    losses = []

    class Look(Callback):
        def on_step_end(self, step, logs):
            losses.append(logs["loss"])

    subject = trainer()
    subject.optimizer.learning_rate = 0.0
    subject.fit(X, Y, batch_size=5, shuffle=False, callbacks=[Look()], verbose=False)
    expected = [subject.evaluate(X[:n], Y[:n])["loss"] for n in (5, 10, 12)]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    assert subject.history["loss"] == losses[-1:]


@pytest.mark.parametrize("event", ["on_train_begin", "on_epoch_begin", "on_step_end", "on_epoch_end"])
@pytest.mark.parametrize("error", [ValueError("oh"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_a_failing_callback_is_named_and_all_are_closed(event, error):
    first, last = Recorder(), Recorder()
    with pytest.raises(type(error)) as caught:
        trainer().fit(X, Y, callbacks=[first, Failing(event, error), last], verbose=False)
    assert f"Raised by callback Failing.{event}." in caught.value.__notes__
    assert first.events[-1] == ("end",)
    assert last.events == [] if event == "on_train_begin" else last.events[-1] == ("end",)


@pytest.mark.parametrize("first", [ValueError("one"), KeyboardInterrupt("one")], ids=["error", "Ctrl-C"])
def test_every_callback_is_closed_even_if_another_cannot_be(first):
    last = Recorder()
    bad = [Failing("on_train_end", first), Failing("on_train_end", TypeError("two"))]
    with pytest.raises(type(first), match="one") as caught:
        trainer().fit(X, Y, callbacks=[*bad, last], verbose=False)
    assert caught.value.__notes__ == [
        "Raised by callback Failing.on_train_end.",
        "Afterwards: TypeError('two'). Raised by callback Failing.on_train_end.",
    ]
    assert last.events[-1] == ("end",)


def test_an_error_of_the_end_does_not_hide_the_first_one():
    with pytest.raises(KeyboardInterrupt) as caught:
        trainer().fit(
            X, Y, verbose=False,
            callbacks=[Failing("on_train_end", ValueError("late")), Failing("on_step_end", KeyboardInterrupt())],
        )  # fmt: skip
    assert any("ValueError('late')" in note for note in caught.value.__notes__)


def test_defaults_give_way_to_those_of_their_class():
    given = StopOnNaN(3)
    hooks = CallbackList([given], [StopOnNaN(), ProgressBar()])
    assert [type(callback) for callback in hooks._callbacks] == [StopOnNaN, ProgressBar]
    assert hooks._callbacks[0] is given


def test_training_can_be_stopped_by_any_callback():
    class Enough(Callback):
        def on_epoch_end(self, epoch, logs):
            self.trainer.stop_training = epoch == 1

    subject = trainer()
    assert len(subject.fit(X, Y, epochs=9, callbacks=[Enough()], verbose=False)) == 2
    assert len(subject.fit(X, Y, epochs=2, verbose=False)) == 4


# ---- watching a number -----------------------------------------------------------------------------------------------


class Stub:
    """A trainer whose model is a counter."""

    measured = ("loss", "val_loss", "val_accuracy", "val_mine")

    def __init__(self) -> None:
        self.stop_training = False
        self.model = self
        self.state: dict[str, int] = {}

    def state_dict(self):
        return dict(self.state)

    def load_state_dict(self, state):
        self.state = dict(state)


def stopped_after(callback: EarlyStopping, values: list[float]) -> tuple[int, Stub]:
    stub = callback.trainer = Stub()
    callback.on_train_begin(len(values), None)
    for epoch, value in enumerate(values):
        stub.state = {"epoch": epoch}
        callback.on_epoch_end(epoch, {callback.monitor: value})
        if stub.stop_training:
            break
    callback.on_train_end()
    return epoch + 1, stub


NAN = math.nan


@pytest.mark.parametrize(
    ("options", "values", "epochs", "best_epoch"),
    [
        ({"patience": 2}, [3, 2, 2.5, 2.1, 1], 4, 1),
        ({"patience": 1}, [3, 2, 2, 1], 3, 1),
        ({"patience": 3}, [3, 2, 2.5, 2.1, 1], 5, 4),
        ({"patience": 2, "min_delta": 0.5}, [3, 2.6, 2.4, 2.2, 2.1, 2.0], 5, 2),
        ({"patience": 2, "monitor": "val_accuracy"}, [0.5, 0.6, 0.6, 0.1, 0.9], 4, 1),
        ({"patience": 2, "mode": "max"}, [1, 2, 1, 1, 9], 4, 1),
        ({"patience": 2, "monitor": "val_mine", "mode": "min"}, [2, 1, 1, 1], 4, 1),
        ({"patience": 2}, [NAN, NAN, 1], 2, -1),
        ({"patience": 2}, [NAN, 5, NAN, 4], 4, 3),
        ({"patience": 9}, [math.inf, -math.inf, 0], 3, 1),
    ],
)
def test_early_stopping(options, values, epochs, best_epoch):
    callback = EarlyStopping(**options)
    found, stub = stopped_after(callback, values)
    assert (found, callback.best_epoch) == (epochs, best_epoch)
    assert stub.state == {"epoch": best_epoch if best_epoch >= 0 else epochs - 1}
    assert stopped_after(callback, values)[0] == epochs  # a second training starts anew
    _, stub = stopped_after(EarlyStopping(**options, restore_best=False), values)
    assert stub.state == {"epoch": epochs - 1}


def test_the_best_parameters_come_back_also_after_ctrl_c():
    class Spoil(Callback):
        def on_epoch_begin(self, epoch):
            if epoch == 1:
                states.append(self.trainer.model.state_dict())
                self.trainer.optimizer.learning_rate = 10.0
            if epoch == 3:
                raise KeyboardInterrupt

    states: list[dict] = []
    subject = trainer()
    with pytest.raises(KeyboardInterrupt):
        subject.fit(X, Y, epochs=9, validation_data=(X, Y), callbacks=[EarlyStopping(), Spoil()], verbose=False)
    assert len(subject.history) == 3
    after = subject.model.state_dict()
    assert all(np.array_equal(after[name], states[0][name]) for name in after)


def test_the_best_model_is_saved(tmp_path):
    path = tmp_path / "best.safetensors"
    subject = trainer(["accuracy"])
    callback = BestCheckpoint(path, "val_accuracy")
    history = subject.fit(X, Y, epochs=5, validation_data=(X, Y), callbacks=[callback], verbose=False)
    assert callback.best == max(history["val_accuracy"])
    again = fc.Trainer(fc.load(path), metrics=["accuracy"]).evaluate(X, Y)
    assert again["accuracy"] == max(history["val_accuracy"])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: EarlyStopping("val_acuracy", mode="max"), UnknownNameError, "val_accuracy"),
        (lambda: EarlyStopping("val_loss"), ArgumentError, "there is no validation data"),
        (lambda: BestCheckpoint(Path("nowhere", "m.safetensors"), "loss"), FileNotFoundError, "does not exist"),
        (lambda: BestCheckpoint(Path("."), "loss"), IsADirectoryError, "is a folder"),
    ],
)
def test_what_cannot_be_watched_or_saved_is_refused_before_training(make, error, message):
    subject = trainer(["accuracy"])
    data = {"validation_data": (X, Y)} if "acuracy" in message or "accuracy" in message else {}
    with pytest.raises(error, match=message):
        subject.fit(X, Y, callbacks=[make()], verbose=False, **data)
    assert subject.optimizer.steps == 0


def test_a_model_of_ones_own_is_refused_before_training(tmp_path):
    class Own(fc.nn.Sequential):
        pass

    subject = fc.Trainer(Own(fc.nn.Dense(2)))
    with pytest.raises(ArgumentError, match="state_dict"):
        subject.fit(X, Y, callbacks=[BestCheckpoint(tmp_path / "m", "loss")], verbose=False)
    assert subject.optimizer.steps == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EarlyStopping(patience=0), "patience is 0"),
        (lambda: EarlyStopping(patience=1.5), "patience is 1.5"),
        (lambda: EarlyStopping(mode="up"), "mode is 'up'"),
        (lambda: EarlyStopping(min_delta=-1), "min_delta is -1"),
        (lambda: EarlyStopping(min_delta=NAN), "min_delta is nan"),
        (lambda: EarlyStopping(3), "monitor is 3"),
        (lambda: EarlyStopping("val_f1"), "Is more of 'val_f1' better, or less"),
        (lambda: BestCheckpoint("x", "val_f1"), "Is more of 'val_f1' better, or less"),
        (lambda: StopOnNaN(-1), "patience is -1"),
    ],
)
def test_callbacks_refuse_what_means_nothing(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


@pytest.mark.parametrize("name", ["loss", "mse", "rmse", "mae", "val_mse"])
def test_less_is_better(name):
    assert EarlyStopping(name).sign == -1


@pytest.mark.parametrize("name", ["accuracy", "top_5", "r2", "val_top_5"])
def test_more_is_better(name):
    assert EarlyStopping(name).sign == 1


# ---- NaN -------------------------------------------------------------------------------------------------------------


def test_stop_on_nan_counts_steps_in_a_row():
    callback = StopOnNaN(patience=2)
    callback.on_train_begin(1, None)
    for step in (4, 4, 5, 5, 9):
        callback.on_non_finite(step, "why.")
    callback.on_non_finite(9, "why.")
    with pytest.raises(NonFiniteError, match=r"^Step 9: why\. Parameters and optimizer are as they were"):
        callback.on_non_finite(9, "why.")
    callback.on_train_begin(1, None)
    callback.on_non_finite(9, "why.")


# ---- the display -----------------------------------------------------------------------------------------------------


def test_progress_in_a_file_is_a_line_for_each_epoch(capsys):
    trainer(["accuracy"]).fit(X, Y, epochs=10, validation_data=(X, Y))
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 10
    assert [line[:13] for line in lines[8:]] == ["epoch  9/10  ", "epoch 10/10  "]
    numbers = r"loss \d\.\d{4}  accuracy \d\.\d{4}  val_loss \d\.\d{4}  val_accuracy \d\.\d{4}"
    assert all(re.fullmatch(rf"epoch [ 1]\d/10  {numbers}", line) for line in lines)


@pytest.mark.parametrize("stop", [None, 3], ids=["to the end", "Ctrl-C"])
def test_progress_on_a_terminal_shows_a_bar_and_cleans_up(stop, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    bar = ProgressBar(interval=0.0)

    class Refresh(Callback):
        def on_step_end(self, step, logs):
            bar._progress.refresh()
            if step == stop:
                raise KeyboardInterrupt

    with nullcontext() if stop is None else pytest.raises(KeyboardInterrupt):
        trainer().fit(X, Y, batch_size=3, callbacks=[bar, Refresh()])
    err = capsys.readouterr().err
    assert "epoch 1/1" in err
    assert "━" in err
    assert "2/4" in err
    assert "━" not in err.rpartition("\x1b[2K")[2]  # the line of the bar is erased at the end
    assert err.count("\x1b[?25l") == err.count("\x1b[?25h") == 1  # the cursor is hidden and comes back


def test_who_follows_steps():
    class Still(ProgressBar):
        pass

    class Follows(ProgressBar):
        def on_step_end(self, step, logs):
            pass

    patched = Callback()
    patched.on_step_end = lambda step, logs: None
    for callbacks, expected in (
        ([], False),
        ([StopOnNaN(), EarlyStopping(), Still()], False),
        ([Still(), Follows()], True),
        ([patched], True),
    ):
        assert CallbackList(callbacks, [ProgressBar(), StopOnNaN()]).follows_steps is expected


def test_quiet_is_quiet(capsys):
    trainer().fit(X, Y, verbose=False)
    assert capsys.readouterr() == ("", "")


def test_a_display_that_never_opened_can_be_closed():
    ProgressBar().on_train_end()
