"""Training with captured steps: what comes out is what comes out without, bit for bit, or it is not captured."""

from __future__ import annotations

import logging

import numpy as np
import pytest

import fcdense as fc
from fcdense.errors import DataError, NonFiniteError
from tests.training import F64, X, Y, same, small_net, table

WIDE = table(50)


class Residual(fc.nn.Module):
    """A module of one's own that can be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = fc.nn.Dense(3, "tanh", dtype=F64), fc.nn.Dense(3, dtype=F64)

    def forward(self, x):
        return self.last(self.first(x) + x)


def residual() -> Residual:
    fc.manual_seed(7)
    return Residual()


def half(rate: float = 0.05) -> fc.callbacks.Callback:
    class Halve(fc.callbacks.Callback):
        def on_step_end(self, step, logs):
            self.trainer.optimizer.learning_rate *= 0.9

    return Halve()


def run(capture: bool, *data, make=small_net, loss="cross_entropy", optimizer="adam", trainer=None, **options) -> tuple:
    """Everything that training leaves, and the trainer."""
    model = make()
    fc.manual_seed(3)
    seen = []

    class Look(fc.callbacks.Callback):
        def on_step_end(self, step, logs):
            seen.append((step, dict(logs), self.trainer.optimizer.gradient_norm))

        def on_non_finite(self, step, reason):
            seen.append((step, reason))

    made = fc.Trainer(model, loss, optimizer, capture=capture, **{"learning_rate": 0.05, **(trainer or {})})
    given = {"epochs": 3, "batch_size": 8, "verbose": False, **options}
    if len(data) == 1:
        del given["batch_size"]
    callbacks = [make_callback() for make_callback in given.pop("callbacks", ())]
    history = made.fit(*data, callbacks=[Look(), *callbacks], **given)
    numbers = {name: history[name] for name in history.names}
    state = made.optimizer.state_dict()
    slots = {f"{p}.{s}": np.asarray(v) for p, entry in state["parameters"].items() for s, v in entry.items()}
    counts = state["steps"], state["skipped_steps"]
    return (model.state_dict(), slots, counts, numbers, seen), made


def assert_same(*data, captured: str = "", **options) -> fc.Trainer:
    """`captured` is the reason why there is no capture."""
    eager, by_python = run(False, *data, **options)
    replayed, trainer = run(True, *data, **options)
    assert by_python.not_captured == "capture=False"
    assert trainer.not_captured == captured
    assert same(replayed[0], eager[0])
    assert same(replayed[1], eager[1])
    assert replayed[2:4] == eager[2:4]
    assert repr(replayed[4]) == repr(eager[4])
    return trainer


# ---- the same bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 6, 8, 50, 64])
def test_batches_with_an_odd_one_at_the_end(batch_size):
    make = residual if batch_size == 1 else small_net  # a norm over a batch needs two rows
    assert_same(*WIDE, make=make, batch_size=batch_size)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop"])
def test_optimizers(optimizer):
    assert_same(*WIDE, optimizer=optimizer, trainer={"clip_norm": 0.3})


@pytest.mark.parametrize("accumulate", [2, 3, 4])
@pytest.mark.parametrize("batch_size", [8, 10])
def test_accumulation(accumulate, batch_size):
    assert_same(*WIDE, batch_size=batch_size, trainer={"accumulate": accumulate})


@pytest.mark.parametrize("loss", ["mse", "huber", "mae", "binary_cross_entropy_with_logits"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bool"])
def test_losses(loss, dtype):
    x, y = WIDE
    assert_same(x, (np.eye(3)[y] > 0).astype(dtype), loss=loss)


@pytest.mark.parametrize("form", ["int32", "uint8", "column", "one-hot", "soft"])
def test_targets_of_cross_entropy(form):
    x, y = WIDE
    soft = np.full((50, 3), 0.1) + 0.7 * np.eye(3)[y]
    target = {"column": y[:, None], "one-hot": np.eye(3, dtype=int)[y], "soft": soft}.get(form)
    assert_same(x, y.astype(form) if target is None else target)


def test_metrics_validation_and_callbacks():
    trainer = assert_same(
        *WIDE,
        trainer={"metrics": ["accuracy", fc.metrics.TopK(2)], "learning_rate": fc.optim.schedules.CosineDecay(0.1, 9)},
        validation_split=0.3,
        callbacks=[lambda: fc.callbacks.EarlyStopping(patience=1)],
    )
    assert "val_accuracy" in trainer.history.names


def test_rates_that_a_callback_sets():
    assert_same(*WIDE, callbacks=[half])


def test_penalties_and_constraints():
    def make():
        fc.manual_seed(2)
        regular = {"kernel_regularizer": "l2", "kernel_constraint": fc.constraints.max_norm(0.4), "dtype": F64}
        return fc.nn.Sequential(fc.nn.Dense(5, "tanh", **regular), fc.nn.Dense(3, bias_regularizer="l1", dtype=F64))

    assert_same(*WIDE, make=make)


@pytest.mark.parametrize("kind", ["shuffled", "in order", "loader", "function", "float32", "int16", "strided"])
def test_where_batches_come_from(kind):
    x, y = WIDE
    pairs = [(x[i : i + 8], y[i : i + 8]) for i in range(0, 50, 8)]
    if kind == "loader":
        assert_same(fc.data.DataLoader(pairs))
    elif kind == "function":
        assert_same(lambda: iter([pairs[-1], *pairs, pairs[0]]))
    else:
        x = (x * 100).astype("int16") if kind == "int16" else x.astype("float32") if kind == "float32" else x
        x = np.repeat(x, 2, axis=1)[:, ::2] if kind == "strided" else x
        fc.nn.dense.Dense._has_warned = True
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *_, **__: None)
            assert_same(x, y, shuffle=kind != "in order", steps_per_epoch=4)


def test_modules_of_ones_own():
    assert_same(*WIDE, make=residual)


def test_losses_of_ones_own():
    assert_same(WIDE[0], np.eye(3)[WIDE[1]], loss=lambda p, t: ((p - t) ** 4).mean())


def test_a_layer_that_a_callback_freezes_and_a_rate_that_it_sets():
    class Change(fc.callbacks.Callback):
        def on_step_end(self, step, logs):
            if step == 3:
                self.trainer.model[0].freeze()
                self.trainer.model[2].rate = 0.4

        def on_epoch_end(self, epoch, logs):
            self.trainer.model[0].unfreeze()

    trainer = assert_same(*WIDE, callbacks=[Change])
    assert trainer.model[2].rate == 0.4


def test_a_callback_that_evaluates_and_predicts_after_each_step():
    class Evaluate(fc.callbacks.Callback):
        def on_step_end(self, step, logs):
            self.trainer.model.eval()
            self.trainer.model.train()
            self.trainer.predict(X)

    assert_same(*WIDE, callbacks=[Evaluate])


def test_a_loss_that_a_callback_puts_in_place():
    class Swap(fc.callbacks.Callback):
        def on_step_end(self, step, logs):
            self.trainer.loss = fc.losses.get("mae" if step % 2 else "mse")

    assert_same(WIDE[0], np.eye(3)[WIDE[1]], loss="mse", callbacks=[Swap])


def test_layers_and_parameters_that_come_between_two_fits():
    def state(capture: bool) -> dict:
        model = residual()
        trainer = fc.Trainer(model, capture=capture)
        trainer.fit(*WIDE, verbose=False)
        model.first = fc.nn.Sequential(model.first, fc.nn.Dense(3, dtype=F64))
        trainer.fit(*WIDE, verbose=False)
        model.load_state_dict({name: array * 0.5 for name, array in model.state_dict().items()})
        trainer.optimizer.load_state_dict(trainer.optimizer.state_dict())
        trainer.fit(*WIDE, verbose=False)
        return model.state_dict()

    assert same(state(True), state(False))


def test_metrics_that_keep_what_they_are_given():
    class Keeping(fc.metrics.RowMean):
        name = "kept"

        def __init__(self) -> None:
            super().__init__()
            self.rows: list[tuple[np.ndarray, np.ndarray]] = []

        def per_row(self, prediction, target):
            self.rows.append((prediction, target))
            return prediction[:, 0]

    kept = {}
    for capture in (False, True):
        metric = Keeping()
        run(capture, *WIDE, trainer={"metrics": [metric]}, epochs=1)
        kept[capture] = metric.rows
    assert all(np.array_equal(a, b) for ours, theirs in zip(*kept.values(), strict=True)
               for a, b in zip(ours, theirs, strict=True))  # fmt: skip


# ---- what goes wrong goes wrong alike --------------------------------------------------------------------------------


def bad_rows(value: float, row: int = 33) -> np.ndarray:
    x = WIDE[0].copy()
    x[row, 1] = value
    return x


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_batches_that_are_not_finite_are_left_out(value, accumulate):
    stop = fc.callbacks.StopOnNaN
    trainer = assert_same(
        bad_rows(value), WIDE[1], callbacks=[lambda: stop(patience=9)], trainer={"accumulate": accumulate}
    )
    assert np.isfinite(trainer.predict(X)).all()
    messages = {}
    for capture in (False, True):
        with pytest.raises(NonFiniteError) as caught:
            run(capture, bad_rows(value), WIDE[1])
        messages[capture] = str(caught.value)
    assert messages[True] == messages[False]
    assert "of the batch is" in messages[True]


def test_gradients_that_are_not_finite_are_left_out():
    def kink(prediction, target):
        """Finite everywhere, with an infinite slope at a prediction of 0."""
        return (abs(prediction) ** 0.5).mean()

    x = WIDE[0].copy()
    x[33] = 0.0

    def make():
        fc.manual_seed(1)
        return fc.nn.Sequential(fc.nn.Dense(1, use_bias=False, dtype=F64), fc.nn.Activation("linear"))

    options = {"make": make, "loss": kink, "callbacks": [lambda: fc.callbacks.StopOnNaN(patience=9)], "epochs": 2}
    trainer = assert_same(x, WIDE[1], **options)
    assert trainer.optimizer.skipped_steps == 2
    assert trainer.optimizer.steps == 12


@pytest.mark.parametrize(
    ("loss", "wrong"), [("cross_entropy", 3), ("cross_entropy", -1), ("binary_cross_entropy_with_logits", 2.0)]
)
def test_wrong_targets_are_found_where_they_are(loss, wrong):
    x, y = WIDE
    target = y.copy() if loss == "cross_entropy" else np.eye(3)[y]
    target[41] = wrong
    batches = [(x[i : i + 8], target[i : i + 8]) for i in range(0, 50, 8)]
    states = {}
    for capture in (False, True):
        model = small_net()
        fc.manual_seed(3)
        trainer = fc.Trainer(model, loss, capture=capture)
        with pytest.raises(DataError, match=r"target is .* in row (1|\(1, 0\));"):
            trainer.fit(batches, verbose=False)
        states[capture] = model.state_dict()
        assert trainer.optimizer.steps == 5
        assert trainer.not_captured == ("" if capture else "capture=False")
    assert same(states[True], states[False])


def test_a_callback_that_fails_leaves_the_steps_before_it():
    class Fail(fc.callbacks.Callback):
        def on_step_end(self, step, logs):
            if step == 4:
                raise OSError("no space")

    states = {}
    for capture in (False, True):
        model = small_net()
        fc.manual_seed(3)
        trainer = fc.Trainer(model, capture=capture)
        with pytest.raises(OSError, match="no space"):
            trainer.fit(*WIDE, batch_size=8, callbacks=[Fail()], verbose=False)
        states[capture] = model.state_dict()
        assert trainer.optimizer.steps == 5
        assert not any(p.has_grad for p in model.parameters())
    assert same(states[True], states[False])


# ---- what is not captured, and why -----------------------------------------------------------------------------------


def test_weights_of_rows_and_classes():
    weights = np.arange(50.0) + 1.0
    assert_same(*WIDE, sample_weight=weights, captured="sample_weight")
    assert_same(*WIDE, trainer={"class_weight": [1, 2, 3]}, captured="class_weight")


class Reading(fc.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.calls = fc.nn.Dense(3, dtype=F64, in_features=3), 0

    def forward(self, x):
        return self.dense(x) if float(x.sum()) > 0 else self.dense(x) * 2.0


class Counting(Reading):
    def forward(self, x):
        self.calls += 1
        return self.dense(x) * (1.0 if self.calls < 4 else 2.0)


@pytest.mark.parametrize("kind", [Reading, Counting])
def test_modules_that_cannot_be_captured(kind, caplog):
    def make():
        fc.manual_seed(8)
        return kind()

    with caplog.at_level(logging.INFO, "fcdense"):
        trainer = assert_same(*WIDE, make=make, captured="refused")
    assert trainer.model.calls == (21 if kind is Counting else 0)
    said = [record.getMessage() for record in caplog.records if "not captured: refused" in record.getMessage()]
    assert len(said) == 1
    assert ("read on the host" if kind is Reading else "changes `calls` of Counting each time") in said[0]


def test_losses_that_cannot_be_captured():
    def by_numpy(prediction, target):
        return (prediction * np.eye(3)[np.asarray(target)]).mean()

    def indirect(prediction, target):
        return fc.losses.cross_entropy(prediction, target) * 2.0

    assert_same(*WIDE, loss=by_numpy, captured="refused")
    assert_same(*WIDE, loss=indirect, captured="targets")


def test_batches_are_arrays_of_their_own_again_after_training():
    batches = fc.data.Batches(*WIDE, batch_size=8)
    trainer = fc.Trainer(small_net())
    trainer.fit(batches, verbose=False)
    assert trainer.not_captured == ""
    first, second, *_ = batches
    assert not np.shares_memory(first.x, second.x)
    assert Y.shape == (24,)
