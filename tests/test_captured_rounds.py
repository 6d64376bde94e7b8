"""Steps of training in groups, one call each: what comes out is what comes out of single ones, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import fcdense as fc
from fcdense import captured_training
from fcdense.capture import Captured
from fcdense.captured_rounds import Rounds
from fcdense.errors import ArgumentError, NonFiniteError
from tests.training import same, table

X, Y = table(90)
X = X.astype(np.float32)
SCHEDULES: dict[str, Any] = {
    "constant": 0.05,
    "decay": fc.optim.schedules.CosineDecay(0.1, 30),
    "warm-up": fc.optim.schedules.Warmup(fc.optim.schedules.StepDecay(0.1, 5), 4),
    "function": lambda step: 0.1 / (1 + step),
}


@pytest.fixture(autouse=True, params=["numpy", "cpu"])
def on(request: pytest.FixtureRequest) -> Iterator[str]:
    with fc.use_device(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many steps were made at each call."""
    made: list[int] = []
    run = Rounds.run

    def note(self: Rounds, rows: np.ndarray) -> int:
        made.append(run(self, rows))
        return made[-1]

    monkeypatch.setattr(Rounds, "run", note)
    return made


def net(rate: float = 0.0, **options: Any) -> fc.nn.Sequential:
    fc.manual_seed(2)
    return fc.nn.Sequential(
        fc.nn.Dense(20, "tanh", in_features=3, **options), fc.nn.Dropout(rate), fc.nn.Dense(3, in_features=20)
    )


def fitted(capture: bool, *data: Any, make: Callable[[], Any] = net, trainer: Any = None, **options: Any) -> Any:
    """The trainer, and everything that training leaves."""
    options = {"epochs": 3, "batch_size": 8, "verbose": False, **options}
    options["callbacks"] = [made() for made in options.get("callbacks", ())]
    model = make()
    fc.manual_seed(3)
    made = fc.Trainer(model, capture=capture, **{"learning_rate": 0.05, **(trainer or {})})
    history = made.fit(*(data or (X, Y)), **options)
    state = made.optimizer.state_dict()
    numbers = {name: history[name] for name in history.names}
    slots = {f"{p}.{s}": np.asarray(v) for p, entry in state.pop("parameters").items() for s, v in entry.items()}
    drawn = fc.ops.dropout(fc.tensor(np.ones(99)), 0.5).numpy().tolist()
    left = repr((numbers, state, made.optimizer.gradient_norm, drawn, made.optimizer.learning_rate))
    return made, model.state_dict(), slots, left


def assert_same(*data: Any, **options: Any) -> fc.Trainer:
    trainer, values, slots, left = fitted(True, *data, **options)
    assert trainer.not_captured == ""
    _, *expected = fitted(False, *data, **options)
    assert same(values, expected[0])
    assert same(slots, expected[1])
    assert left == expected[2]
    return trainer


# ---- the same bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.0, 1e-4, 1e9])
@pytest.mark.parametrize("batch_size", [1, 8, 30, 45])
def test_groups_of_all_sizes(seconds: float, batch_size: int, groups: list[int], monkeypatch: Any) -> None:
    monkeypatch.setattr(captured_training, "GROUP_SECONDS", seconds)
    assert_same(batch_size=batch_size)
    # The first batch of an epoch goes alone, and the last one where it is not full.
    assert sum(groups) == 3 * (90 // batch_size - 1)
    if seconds == 1e9:
        assert max(groups) == 90 // batch_size - 1


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("clip_norm", [None, 0.3])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_optimizers(schedule: str, clip_norm: float | None, optimizer: str, groups: list[int]) -> None:
    trainer = {"learning_rate": SCHEDULES[schedule], "clip_norm": clip_norm, "optimizer": optimizer}
    assert_same(trainer=trainer)
    assert sum(groups) == 30
    assert (max(groups) == 1) == (schedule == "function")


@pytest.mark.parametrize("options", [{"shuffle": False}, {"drop_last": True}, {"steps_per_epoch": 7}], ids=str)
def test_what_an_epoch_is_made_of(options: dict[str, Any], groups: list[int]) -> None:
    assert_same(**options)
    assert sum(groups) == (18 if "steps_per_epoch" in options else 30)


def test_dropout(groups: list[int]) -> None:
    assert_same(make=lambda: net(0.4))
    assert sum(groups) == 30


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8"])
def test_metrics(dtype: str, groups: list[int]) -> None:
    metrics = ["accuracy", fc.metrics.TopK(2)]
    trainer = assert_same(X, Y.astype(dtype), trainer={"metrics": metrics}, validation_split=0.2)
    assert {"accuracy", "top_2", "val_top_2"} < set(trainer.history.names)
    assert sum(groups) == 24


def test_metrics_of_sums(groups: list[int]) -> None:
    metrics = ["mse", "rmse", "mae", "r2"]
    assert_same(X, np.eye(3, dtype=np.float32)[Y], trainer={"loss": "huber", "metrics": metrics})
    assert sum(groups) == 30


def test_constraints_are_applied_after_each_step(groups: list[int]) -> None:
    assert_same(make=lambda: net(kernel_constraint=fc.constraints.max_norm(0.4)))
    assert max(groups) == 1


def test_rows_of_several_axes() -> None:
    assert_same(X.reshape(45, 2, 3), Y.reshape(45, 2), batch_size=4, trainer={"metrics": ["accuracy"]})


def test_a_layer_that_is_frozen_between_epochs(groups: list[int]) -> None:
    class Freeze(fc.callbacks.Callback):
        def on_epoch_end(self, epoch, logs):
            self.trainer.model[0].freeze()
            self.trainer.optimizer.learning_rate = 0.01

    assert_same(callbacks=[Freeze])
    assert sum(groups) >= 29


# ---- batches that are not finite -------------------------------------------------------------------------------------


def bad(value: float = np.nan) -> np.ndarray:
    x = X.copy()
    x[51, 1] = value
    return x


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("trainer", [{}, {"clip_norm": 0.1, "metrics": ["accuracy"]}], ids=str)
def test_batches_that_are_not_finite_are_left_out(value: float, trainer: dict[str, Any], groups: list[int]) -> None:
    told: list[tuple[int, str, float | None]] = []

    class Look(fc.callbacks.Callback):
        def on_non_finite(self, step, reason):
            told.append((step, reason, self.trainer.optimizer.gradient_norm))

    options = {"callbacks": [lambda: fc.callbacks.StopOnNaN(patience=9), Look], "make": lambda: net(0.3)}
    assert_same(bad(value), Y, trainer=trainer, **options)
    assert len(told) == 6
    assert repr(told[:3]) == repr(told[3:])
    assert 0 in groups


def test_training_stops_at_the_same_step_with_the_same_words() -> None:
    said = []
    for capture in (True, False):
        model = net(0.3)
        trainer = fc.Trainer(model, capture=capture)
        with pytest.raises(NonFiniteError) as caught:
            trainer.fit(bad(), Y, batch_size=8, epochs=2, verbose=False)
        said.append((str(caught.value), trainer.optimizer.steps, trainer.optimizer.skipped_steps, model.state_dict()))
    assert said[0][:3] == said[1][:3]
    assert same(said[0][3], said[1][3])
    assert "x of the batch is nan in row" in said[0][0]


def test_gradients_that_are_not_finite_are_counted() -> None:
    def kink(prediction, target):
        """Finite everywhere, with an infinite slope at a prediction of 0."""
        return (abs(prediction) ** 0.5).mean()

    def make() -> fc.nn.Sequential:
        fc.manual_seed(1)
        return fc.nn.Sequential(fc.nn.Dense(1, use_bias=False, in_features=3))

    x = X.copy()
    x[33] = 0.0
    stop = [lambda: fc.callbacks.StopOnNaN(patience=9)]
    trainer = assert_same(x, Y, make=make, trainer={"loss": kink}, callbacks=stop)
    assert trainer.optimizer.skipped_steps == 3
    assert trainer.optimizer.steps == 33


# ---- captured steps of one's own -------------------------------------------------------------------------------------


def test_the_result_of_each_round_is_kept() -> None:
    layer, other = fc.nn.Dense(2, "tanh", in_features=3), fc.nn.Dense(1, in_features=2)
    step = Captured(lambda x: {"kept": layer(x), "not kept": other(layer(x))})
    step.record(fc.tensor(X[:4]))
    rounds = Rounds(step, [X], [True, False])
    rows = np.arange(88).reshape(22, 4)[::-1]
    assert rounds.run(rows) == 22
    (kept,) = rounds.results
    np.testing.assert_array_equal(kept[:22], [layer(X[some]).numpy() for some in rows])


@pytest.mark.parametrize("kind", ["a gradient that grows", "two flags"])
def test_steps_that_are_replayed_by_themselves(kind: str) -> None:
    layer, other = (fc.nn.Dense(1, in_features=3) for _ in range(2))
    optimizers = [fc.optim.SGD(some.parameters(), 0.1) for some in (layer, other)]

    def step(x):
        loss = (layer(x) + other(x)).mean()
        loss.backward()
        for optimizer in optimizers if kind == "two flags" else ():
            optimizer.step(check_finite=True)
            optimizer.zero_grad()
        return loss

    captured = Captured(step)
    captured.record(fc.tensor(X[:9]))
    rounds = Rounds(captured, [X], [True])
    before = layer.kernel.numpy().copy()
    assert rounds.run(np.arange(90).reshape(10, 9)) == 0
    assert np.array_equal(layer.kernel.numpy(), before)


# ---- who looks on ----------------------------------------------------------------------------------------------------


def test_the_progress_bar_hears_of_the_last_step(groups: list[int], monkeypatch: Any) -> None:
    heard: list[int] = []
    monkeypatch.setattr(fc.callbacks.ProgressBar, "on_step_end", lambda self, step, logs: heard.append(step))
    fc.Trainer(net()).fit(X, Y, batch_size=8)
    assert heard[-1] == 11
    assert heard == sorted(set(heard))
    assert len(heard) < 12
    assert max(groups) > 1


def test_a_callback_of_steps_hears_of_each(groups: list[int]) -> None:
    heard: list[int] = []

    class Look(fc.callbacks.Callback):
        def on_step_end(self, step, logs):
            heard.append(step)

    assert_same(callbacks=[Look])
    assert heard == [*range(12)] * 6
    assert groups == []


@pytest.mark.parametrize("kind", ["statistics", "accumulation", "batches", "a metric of one's own"])
def test_what_goes_step_by_step(kind: str, groups: list[int]) -> None:
    if kind == "statistics":
        assert_same(make=lambda: fc.nn.Sequential(*net(), fc.nn.BatchNorm(in_features=3)))
    elif kind == "accumulation":
        assert_same(trainer={"accumulate": 2})
    elif kind == "batches":
        fc.Trainer(net()).fit([(X[:8], Y[:8])] * 5, verbose=False)
    else:
        assert_same(trainer={"metrics": [lambda p, t: float(p.mean())]})
    assert groups == []


def test_ctrl_c_is_heard_after_a_group_whose_steps_count(monkeypatch: Any) -> None:
    monkeypatch.setattr(captured_training, "GROUP_SECONDS", 1e9)
    model, single = net(), net()
    trainer = fc.Trainer(model)
    prepare = Rounds._prepare

    def prepare_interrupted(self: Rounds, variant: Any) -> None:
        prepare(self, variant)
        run = self._run

        def interrupted(count: int) -> None:
            assert run is not None
            run(count)
            raise KeyboardInterrupt

        self._run = interrupted

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Rounds, "_prepare", prepare_interrupted)
        trainer.fit(X, Y, batch_size=8, verbose=False)
    steps = trainer.optimizer.steps
    assert 1 < steps < 12
    alone = fc.Trainer(single, capture=False)
    alone.fit(X, Y, batch_size=8, steps_per_epoch=steps, verbose=False)
    assert same(model.state_dict(), single.state_dict())
    assert repr(trainer.optimizer.state_dict()) == repr(alone.optimizer.state_dict())
    assert not any(p.has_grad for p in model.parameters())


def test_a_schedule_that_fails_has_the_steps_before_it() -> None:
    def rate(step: int) -> float:
        return 0.1 if step < 5 else -1.0

    trainer = fc.Trainer(net(), learning_rate=rate)
    with pytest.raises(ArgumentError, match="the rate of step 5"):
        trainer.fit(X, Y, batch_size=8, verbose=False)
    assert trainer.optimizer.steps == 5
