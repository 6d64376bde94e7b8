"""What the training loop refuses, how it ends when something fails or Ctrl-C is pressed, and what is left then."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import fcdense as fc
from fcdense.callbacks import EarlyStopping
from fcdense.errors import ArgumentError, DataError, DTypeError, FcdenseError, ShapeError, UnknownNameError
from tests.training import X, Y, linear, same, small_net

BAD_FITS = {
    "epochs 0": (ArgumentError, "epochs is 0", (X, Y), {"epochs": 0}),
    "epochs 1.5": (ArgumentError, "epochs is 1.5", (X, Y), {"epochs": 1.5}),
    "epochs True": (ArgumentError, "epochs is True", (X, Y), {"epochs": True}),
    "batch_size 0": (ArgumentError, "batch_size is 0", (X, Y), {"batch_size": 0}),
    "no y": (ArgumentError, "targets y are missing", (X,), {}),
    "tensor without y": (ArgumentError, "targets y are missing", (fc.tensor(X),), {}),
    "lengths": (ShapeError, "24 rows and y has 23", (X, Y[:-1]), {}),
    "no rows": (DataError, "0 rows", (X[:0], Y[:0]), {}),
    "no features": (ShapeError, "0 features", (X[:, :0], Y), {}),
    "one axis": (ShapeError, r"x\[:, None\]", (X[:, 0], Y), {}),
    "ragged": (ShapeError, "ragged", ([[1.0], [1.0, 2.0]], [0, 1]), {}),
    "text": (DTypeError, "dtype", (X.astype(str), Y), {}),
    "text labels": (DTypeError, "np.unique", (X, Y.astype(str)), {}),
    "weights NaN": (DataError, "sample_weight is nan in row 2", (X, Y), {"sample_weight": [1.0, 1, np.nan] * 8}),
    "weights negative": (DataError, "sample_weight is -1", (X, Y), {"sample_weight": -np.ones(24)}),
    "weights short": (ShapeError, "sample_weight has 3", (X, Y), {"sample_weight": np.ones(3)}),
    "weights zero": (DataError, "weights of all 24 rows are 0", (X, Y), {"sample_weight": np.zeros(24)}),
    "split 0": (ArgumentError, "validation_split is 0", (X, Y), {"validation_split": 0}),
    "split 1": (ArgumentError, "validation_split is 1", (X, Y), {"validation_split": 1.0}),
    "split NaN": (ArgumentError, "validation_split is nan", (X, Y), {"validation_split": np.nan}),
    "split of batches": (ArgumentError, "needs arrays", ([(X, Y)],), {"validation_split": 0.5}),
    "split and data": (ArgumentError, "beside", (X, Y), {"validation_split": 0.5, "validation_data": (X, Y)}),
    "validation tuple": (ArgumentError, "tuple of 1", (X, Y), {"validation_data": (X,)}),
    "validation shape": (ShapeError, r"rows of shape \(2,\)", (X, Y), {"validation_data": (X[:, :2], Y)}),
    "validation list": (ArgumentError, "validation_data is a list", (X, Y), {"validation_data": [X, Y]}),
    "validation generator": (
        DataError, "yields its batches once", (X, Y), {"validation_data": (b for b in [(X, Y)]), "epochs": 2},
    ),
    "validation without y": (
        DataError, r"pass Batches\(x, y\)", (X, Y), {"validation_data": fc.data.Batches(X)},
    ),
    "validation weights": (DataError, "all 24 rows are 0", (X, Y), {"validation_data": (X, Y, np.zeros(24))}),
    "validation array": (ArgumentError, "targets y are missing", (X, Y), {"validation_data": X}),
    "batch_size of batches": (ArgumentError, "batch_size is for arrays", ([(X, Y)],), {"batch_size": 3}),
    "weights of batches": (ArgumentError, "sample_weight is for arrays", ([(X, Y)],), {"sample_weight": Y}),
    "batches without y": (DataError, "no targets", ([X],), {}),
    "no batches": (DataError, "at least one", ([],), {}),
    "steps 0": (ArgumentError, "steps_per_epoch is 0", (X, Y), {"steps_per_epoch": 0}),
    "too many steps": (ArgumentError, "24 rows make 1 batches of 24", (X, Y), {"steps_per_epoch": 9}),
    "features": (ShapeError, "has 2 features, its kernel expects 3", (X[:, :2], Y), {}),
    "class 3 of 3": (DataError, "target is 3 in row", (X, Y + 1), {}),
    "callback": (ArgumentError, "expected objects of classes", (X, Y), {"callbacks": [print]}),
    "callback class": (ArgumentError, r"Make one: EarlyStopping\(\)", (X, Y), {"callbacks": [EarlyStopping]}),
    "one callback": (ArgumentError, "expected a list", (X, Y), {"callbacks": EarlyStopping()}),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FITS)
def test_fit_refuses_before_anything_changes(case):
    kind, message, data, options = BAD_FITS[case]
    model = linear(outputs=3)
    before = model.state_dict()
    trainer = fc.Trainer(model)
    with pytest.raises(kind, match=message) as caught:
        trainer.fit(*data, verbose=False, **options)
    assert isinstance(caught.value, FcdenseError)
    assert same(model.state_dict(), before)
    assert (len(trainer.history), trainer.optimizer.steps) == (0, 0)


class Named(fc.metrics.Accuracy):
    name = "loss"


BAD_TRAINERS = {
    "model": (ArgumentError, "expected an nn.Module", (print,), {}),
    "no parameters": (ArgumentError, "got no parameters", (fc.nn.ReLU(),), {}),
    "loss name": (UnknownNameError, "cross_entropy", (linear(), "crossentropy"), {}),
    "loss": (ArgumentError, "3", (linear(), 3), {}),
    "optimizer name": (UnknownNameError, "adamw", (linear(), "mse", "adamx"), {}),
    "optimizer": (ArgumentError, "Optimizer 3", (linear(), "mse", 3), {}),
    "learning rate": (ArgumentError, "-1.0, expected a finite", (linear(),), {"learning_rate": -1.0}),
    "clip_norm": (ArgumentError, "clip_norm", (linear(),), {"clip_norm": 0.0}),
    "rate of a made optimizer": (
        ArgumentError, "made already", (linear(), "mse", fc.optim.SGD(linear().parameters())), {"learning_rate": 1.0},
    ),
    "another model's optimizer": (
        ArgumentError, "no parameter of this model", (linear(), "mse", fc.optim.SGD(linear().parameters())), {},
    ),
    "metric name": (UnknownNameError, "accuracy", (linear(),), {"metrics": ["acuracy"]}),
    "metrics": (ArgumentError, "expected a list", (linear(),), {"metrics": "accuracy"}),
    "metrics twice": (ArgumentError, "'accuracy'", (linear(),), {"metrics": ["accuracy", "accuracy"]}),
    "metric called loss": (ArgumentError, "'loss'", (linear(),), {"metrics": [Named]}),
    "accumulate": (ArgumentError, "accumulate is 0", (linear(),), {"accumulate": 0}),
    "seed": (ArgumentError, "seed is -1", (linear(),), {"seed": -1}),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TRAINERS)
def test_a_trainer_refuses_what_means_nothing(case):
    kind, message, arguments, options = BAD_TRAINERS[case]
    with pytest.raises(kind, match=message):
        fc.Trainer(*arguments, **options)


@pytest.mark.parametrize(
    ("class_weight", "message"),
    [
        ({5: 1.0}, "names class 5; the 3 classes"),
        ({"a": 1.0}, "names class 'a'"),
        ({0: -1.0}, "class_weight is -1.0"),
        ({0: np.nan}, "class_weight is nan"),
        ([1.0, 2.0], r"shape \(2,\)"),
        ([0.0, 0.0, 0.0], "weights of all 24 rows are 0"),
    ],
)
def test_class_weights_that_do_not_fit(class_weight, message):
    model = linear(outputs=3)
    before = model.state_dict()
    with pytest.raises(FcdenseError, match=message):
        fc.Trainer(model, class_weight=class_weight).fit(X, Y, verbose=False)
    assert same(model.state_dict(), before)


def wrong_at(row, target, value):
    target = target.copy()
    target[row] = value
    return target


ONE_HOT = np.eye(3)[Y]
IGNORING = partial(fc.losses.cross_entropy, ignore_index=-1)
WRONG_TARGETS = {
    "class": ("cross_entropy", Y, wrong_at(19, Y, 3), "target is 3 in row 19;"),
    "ignored class": ("cross_entropy", Y, wrong_at(19, Y, -1), "target is -1 in row 19;.* pass it as ignore_index"),
    "beside ignored": (IGNORING, wrong_at(3, Y, -1), wrong_at([3, 19], Y, [-1, -2]), "target is -2 in row 19;"),
    "row of 2": ("cross_entropy", ONE_HOT, wrong_at(19, ONE_HOT, 0.7), r"target is \[0.7.* in row 19;"),
    "float classes": ("cross_entropy", Y, Y.astype(float), "class numbers are integers"),
    "probability": (
        "binary_cross_entropy_with_logits", ONE_HOT, wrong_at((19, 1), ONE_HOT, 1.5), r"1.5 in row \(19, 1\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("capture", [True, False])
@pytest.mark.parametrize("case", WRONG_TARGETS)
def test_a_wrong_target_of_arrays_is_found_before_anything_is_learned(case, capture):
    loss, right, wrong, message = WRONG_TARGETS[case]
    options = {"batch_size": 4, "shuffle": False, "verbose": False}
    for rows, validation, whose in (
        ((X, wrong), None, ""),
        ((X, right), (X, wrong), "validation_data: "),
        ((X, right), fc.data.Batches(X, wrong, batch_size=5), "validation_data: "),
        ((fc.data.Batches(X, right, batch_size=7),), (X, wrong), "validation_data: "),
        (([(X[:4], right[:4])] * 3,), (X, wrong), "validation_data: "),
    ):
        model = small_net()
        trainer = fc.Trainer(model, loss, capture=capture)
        given = options if len(rows) == 2 else {"verbose": False}
        with pytest.raises(FcdenseError, match=f"^{whose}.*{message}"):
            trainer.fit(*rows, validation_data=validation, **given)
        assert (trainer.optimizer.steps, len(trainer.history)) == (0, 0)
        trainer.fit(X, right, validation_data=(X, right), **options)  # the shapes of the first batch are known now
        before = model.state_dict()
        with pytest.raises(FcdenseError, match=f"^{whose}.*{message}"):
            trainer.fit(*rows, validation_data=validation, **given)
        assert same(model.state_dict(), before)
    with pytest.raises(FcdenseError, match=f"^(?!validation).*{message}"):
        fc.Trainer(small_net(), loss).evaluate(X, wrong, batch_size=4)


@pytest.mark.parametrize("value", [3, -1])
def test_a_wrong_target_of_a_split_is_found_in_either_part(value):
    for row in range(24):
        with pytest.raises(DataError, match=f"^target is {value} in row {row};"):
            fc.Trainer(small_net()).fit(X, wrong_at(row, Y, value), validation_split=0.25, batch_size=4, verbose=False)


def test_targets_of_a_callbacks_loss_are_looked_at():
    class Other(fc.callbacks.Callback):
        def on_epoch_end(self, epoch, logs):
            self.trainer.loss = fc.losses.get("binary_cross_entropy_with_logits")

    trainer = fc.Trainer(linear(outputs=3), "mse")
    wrong = wrong_at((19, 1), ONE_HOT, 1.5)
    with pytest.raises(DataError, match=r"target is 1.5 in row \(19, 1\)"):
        trainer.fit(X, wrong, epochs=2, batch_size=4, callbacks=[Other()], verbose=False)
    assert trainer.optimizer.steps == 6


def test_validation_rows_of_another_shape_are_left_to_their_batches():
    """Predictions of training say nothing about them."""
    model = fc.nn.Sequential(fc.nn.Dense(3, dtype="float64"))
    trainer = fc.Trainer(model)
    x, y = X.reshape(12, 2, 3), Y.reshape(12, 2)
    history = trainer.fit(fc.data.Batches(x, y, batch_size=4), validation_data=(X, Y), verbose=False)
    assert history["val_loss"] == [trainer.evaluate(X, Y)["loss"]]


@pytest.mark.parametrize("capture", [True, False])
@pytest.mark.parametrize("loss", ["cross_entropy", IGNORING])
def test_targets_that_class_weights_look_at(loss, capture):
    options = {"batch_size": 4, "shuffle": False, "verbose": False}
    wrong = wrong_at(19, Y, -2)
    for rows, validation, whose in (((X, wrong), None, ""), ((X, Y), (X, wrong), "validation_data: ")):
        trainer = fc.Trainer(linear(outputs=3), loss, class_weight={0: 2.0}, capture=capture)
        with pytest.raises(DataError, match=f"^{whose}target is -2 in row 19;"):
            trainer.fit(*rows, validation_data=validation, **options)
        assert trainer.optimizer.steps == 0
    trainer = fc.Trainer(linear(outputs=3), "mse", class_weight={0: 2.0}, capture=capture)
    with pytest.raises(DataError, match=r"^target is \[0.7.* in row 19;"):
        trainer.fit(X, wrong_at(19, ONE_HOT, 0.7), **options)
    assert trainer.optimizer.steps == 0


@pytest.mark.parametrize("capture", [True, False])
def test_targets_of_another_shape(capture):
    trainer = fc.Trainer(linear(outputs=3), "mse", capture=capture)
    with pytest.raises(ShapeError, match=r"prediction has shape \(24, 3\), target \(24, 2\)"):
        trainer.fit(X, ONE_HOT[:, :2], batch_size=4, verbose=False)


def test_rows_of_probabilities_are_named_by_all_their_axes():
    target = np.broadcast_to(ONE_HOT, (5, 24, 3)).copy()
    target[3, 19] = 0.7
    with pytest.raises(DataError, match=r"in row \(3, 19\); expected probabilities"):
        fc.Trainer(linear(outputs=3)).evaluate(np.broadcast_to(X, (5, 24, 3)), target)


# ---- what only a batch tells -----------------------------------------------------------------------------------------


class Contrast(fc.nn.Module):
    """Each row against all others of its batch."""

    def __init__(self):
        super().__init__()
        self.dense = linear(outputs=4)

    def forward(self, x):
        z = self.dense(x)
        return z @ z.T


class Auxiliary(fc.nn.Module):
    """More outputs in training than in evaluation."""

    def __init__(self):
        super().__init__()
        self.dense = linear(outputs=4)

    def forward(self, x):
        return self.dense(x) if self.training else self.dense(x)[:, :2]


class OneHot(fc.data.Batches):
    """Targets are made batch by batch."""

    def __iter__(self):
        return (batch._replace(y=np.eye(3)[batch.y]) for batch in super().__iter__())


def trained_and_right():
    rows = np.arange(24)
    yield "fewer logits in the last batch", Contrast(), "cross_entropy", (X[:20], rows[:20] % 8), {"batch_size": 8}
    yield (
        "more logits in validation", Contrast(), "cross_entropy", (X[:16], rows[:16] % 8),
        {"batch_size": 8, "validation_data": (X, rows)},
    )  # fmt: skip
    smaller = {"validation_data": (X, ONE_HOT[:, :2])}
    yield "fewer outputs in validation", Auxiliary(), "mse", (X, np.eye(4)[Y]), smaller
    weights = np.where(rows < 12, 1.0, 0.0)
    yield "no weight", linear(outputs=3), "cross_entropy", (X, np.where(rows < 12, Y, -1)), {"sample_weight": weights}
    yield "other targets", linear(outputs=3), "mse", (OneHot(X, Y, batch_size=4, shuffle=False),), {"batch_size": None}


@pytest.mark.parametrize("capture", [True, False])
@pytest.mark.parametrize("case", [case[0] for case in trained_and_right()])
def test_right_targets_of_rows_that_are_not_like_the_first_ones(case, capture):
    _, model, loss, data, options = next(given for given in trained_and_right() if given[0] == case)
    arrays = {"batch_size": 4, "shuffle": False} if len(data) == 2 else {}
    options = {name: value for name, value in ({**arrays, **options}).items() if value is not None}
    trainer = fc.Trainer(model, loss, capture=capture)
    history = trainer.fit(*data, epochs=2, verbose=False, **options)
    assert np.isfinite(history["loss"]).all()


def test_a_batch_that_is_refused_changes_nothing():
    """Not even the statistics, which its forward pass has changed when the loss looks at the targets."""
    model = small_net()
    trainer = fc.Trainer(model, accumulate=2)
    trainer.fit(X, Y, verbose=False)
    before = model.state_dict()
    with pytest.raises(DataError, match="target is 3 in row 0"):
        trainer.fit([(X, Y), (X, np.full(24, 3))], verbose=False)
    assert same(model.state_dict(), before)
    assert not any(parameter.has_grad for parameter in model.parameters())


def test_an_error_of_a_generator_names_it_and_the_batch():
    def flaky():
        yield X, Y
        raise OSError("the disk is gone")

    model = small_net()
    with pytest.raises(OSError, match="the disk is gone") as caught:
        fc.Trainer(model).fit(flaky, verbose=False)
    assert caught.value.__notes__ == ["Raised by 'flaky' while making batch 1 of epoch 0."]
    assert not model.training


def test_a_generator_is_used_up_after_an_epoch():
    with pytest.raises(DataError, match="used up before epoch 1"):
        fc.Trainer(small_net()).fit((batch for batch in [(X, Y)]), epochs=2, verbose=False)


# ---- Ctrl-C ----------------------------------------------------------------------------------------------------------


class Interrupting(fc.callbacks.Callback):
    def on_step_end(self, step, logs):
        if step == 2:
            raise KeyboardInterrupt


class InterruptedLayer(fc.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 4:  # the second and third are recorded, and then taken back
            raise KeyboardInterrupt
        return x


def interrupted_batches():
    yield X[:8], Y[:8]
    yield X[8:], Y[8:]
    raise KeyboardInterrupt


@pytest.mark.parametrize("place", ["callback", "generator", "step"])
def test_ctrl_c_closes_everything_and_leaves_a_usable_model(place, capsys):
    closed = []

    class Closing(fc.callbacks.Callback):
        def on_train_end(self):
            closed.append(self)

    layers = [InterruptedLayer()] if place == "step" else []
    model = fc.nn.Sequential(*layers, *small_net())
    trainer = fc.Trainer(model)
    bar = fc.callbacks.ProgressBar()
    data = (interrupted_batches,) if place == "generator" else (X, Y)
    options = {} if place == "generator" else {"batch_size": 4}
    callbacks = [Closing(), bar, *([Interrupting()] if place == "callback" else []), Closing()]
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(*data, callbacks=callbacks, **options)
    assert closed == [callbacks[0], callbacks[-1]]
    assert bar._progress is None
    assert not any(module.training for module in model.modules())
    assert trainer.optimizer.steps >= 2
    assert np.isfinite(trainer.predict(X)).all()
    trainer.fit(X, Y, epochs=1, verbose=False)
    assert len(trainer.history) == 1
