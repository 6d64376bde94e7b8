"""Names that are in no table, and numbers that mean nothing: refused where they are given, with what would do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fcdense as fc
from fcdense.errors import ArgumentError, DeviceError, DTypeError, UnknownNameError
from tests.bad_input.unchanged import refused, settled, table

Case = tuple[str, Callable[[], Any], str]


def parameters() -> Any:
    return fc.nn.Dense(2).parameters()


# kind, call, what was meant
MISSPELT: list[Case] = [
    ("activation 'rleu'", lambda: fc.nn.Dense(3, activation="rleu"), "'relu'"),
    ("activation 'Relu'", lambda: fc.nn.Activation("Relu"), "'relu'"),
    ("initializer 'glorot'", lambda: fc.nn.Dense(3, kernel_initializer="glorot"), "'glorot_uniform'"),
    ("initializer 'zeroes'", lambda: fc.nn.Dense(3, bias_initializer="zeroes"), "'zeros'"),
    ("regularizer 'L2'", lambda: fc.nn.Dense(3, kernel_regularizer="L2"), "l2"),
    ("constraint 'maxnorm'", lambda: fc.nn.Dense(3, kernel_constraint="maxnorm"), "'max_norm'"),
    ("loss 'crossentropy'", lambda: fc.Trainer(fc.nn.Dense(3), "crossentropy"), "'cross_entropy'"),
    ("option of huber 'detla'", lambda: fc.losses.huber(fc.tensor([1.0]), [1.0], detla=2.0), "'delta'"),
    ("optimizer 'adma'", lambda: fc.Trainer(fc.nn.Dense(3), optimizer="adma"), "'adam'"),
    ("option of Adam 'beta_1'", lambda: fc.optim.Adam(parameters(), beta_1=0.9), "'betas'"),
    ("option of Adam 'beta1'", lambda: fc.optim.Adam(parameters(), beta1=0.8), "'betas'"),
    ("option of AdamW 'beta2'", lambda: fc.optim.AdamW(parameters(), beta2=0.8), "'betas'"),
    ("metric 'acuracy'", lambda: fc.Trainer(fc.nn.Dense(3), metrics=["acuracy"]), "'accuracy'"),
]


@pytest.mark.parametrize("case", MISSPELT, ids=lambda case: case[0])
def test_names_list_near_matches(case):
    given, call, meant = case
    with refused(UnknownNameError, f"Unknown {given}", meant):
        call()


def test_a_number_to_monitor():
    trainer = settled()
    x, y = table()
    with refused(UnknownNameError, "'val_los'", "'val_loss'", keeps=(trainer,)):
        watch = fc.callbacks.EarlyStopping("val_los", mode="min")
        trainer.fit(x, y, validation_split=0.25, callbacks=[watch], verbose=False)


def test_a_name_like_no_other_lists_all():
    with refused(UnknownNameError, "Unknown optimizer 'zzz'", "Known: adam, adamw, rmsprop, sgd"):
        fc.optim.get("zzz")


class Lion(fc.optim.Optimizer):
    slots = ("momentum",)
    hyper = {"beta": fc.optim.SHARE}  # noqa: RUF012

    def rule(self, w, g, slots, s):
        return w - s.learning_rate * np.sign(g), s.beta * slots[0]


class Scaled(fc.optim.Adam):
    hyper = fc.optim.Adam.hyper | {"gamma": fc.optim.POSITIVE}


OPTIONS = [
    (fc.optim.SGD, "clip_norm, exclude, learning_rate, momentum, nesterov, weight_decay"),
    (fc.optim.Adam, "betas, clip_norm, eps, exclude, learning_rate, weight_decay"),
    (fc.optim.AdamW, "betas, clip_norm, eps, exclude, learning_rate, weight_decay"),
    (fc.optim.RMSprop, "alpha, clip_norm, eps, exclude, learning_rate, momentum, weight_decay"),
    (Lion, "beta, clip_norm, exclude, learning_rate, weight_decay"),
    (Scaled, "betas, clip_norm, eps, exclude, gamma, learning_rate, weight_decay"),
]


@pytest.mark.parametrize(("kind", "listed"), OPTIONS)
def test_unknown_options_list_those_that_are_taken(kind, listed):
    with refused(UnknownNameError, f"Unknown option of {kind.__name__} 'foo'", f"Known: {listed}."):
        kind(parameters(), learning_rate=0.1, foo=1)


NO_NAMES: dict[str, tuple[type[Exception], Callable[[], Any], tuple[str, ...]]] = {
    "activation": (ArgumentError, lambda: fc.nn.Dense(3, activation=3), ("activation=3", "a name", "a function")),
    "initializer": (ArgumentError, lambda: fc.nn.Dense(3, kernel_initializer=[1]), ("Initializer [1]", "a name")),
    "regularizer": (ArgumentError, lambda: fc.nn.Dense(3, kernel_regularizer=1e-3), ("Regularizer 0.001", "a name")),
    "loss": (ArgumentError, lambda: fc.Trainer(fc.nn.Dense(3), 3), ("Loss 3", "a name")),
    "optimizer": (ArgumentError, lambda: fc.Trainer(fc.nn.Dense(3), optimizer=3), ("Optimizer 3", "adam")),
    "metrics": (ArgumentError, lambda: fc.Trainer(fc.nn.Dense(3), metrics="mse"), ("'mse'", "a list")),
    "dtype": (DTypeError, lambda: fc.nn.Dense(3, dtype="float23"), ("'float23'", "'float32' or 'float64'")),
    "integer dtype": (DTypeError, lambda: fc.nn.Dense(3, dtype=np.int32), ("int32", "'float32' or 'float64'")),
    "flag": (ArgumentError, lambda: fc.nn.Dense(3, use_bias="no"), ("use_bias is 'no'", "True or False")),
    "device": (DeviceError, lambda: fc.device("gpu"), ("'gpu'", '"auto", "cpu", "cuda"')),
    "model": (ArgumentError, lambda: fc.Trainer(print), ("print", "expected an nn.Module")),
    "layer": (ArgumentError, lambda: fc.nn.Sequential(fc.nn.Dense), ("the class Dense", "Dense(...)")),
    "name as layer": (ArgumentError, lambda: fc.nn.Sequential("relu"), ("'relu'", "fc.nn.Activation('relu')")),
}


@pytest.mark.parametrize("case", NO_NAMES)
def test_what_is_neither_a_name_nor_the_thing_itself(case):
    kind, call, words = NO_NAMES[case]
    with refused(kind, *words):
        call()


# ---- learning rates and the like -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [-1.0, -1e-300, math.nan, math.inf, "0.1", None, True, 1j], ids=repr)
def test_learning_rates(rate):
    trainer = settled()
    optimizer = trainer.optimizer
    with refused(ArgumentError, "earning", repr(rate), "expected a", keeps=(trainer,)):
        fc.optim.Adam(trainer.model.parameters(), learning_rate=rate)
    with refused(ArgumentError, "earning", repr(rate), "expected a", keeps=(trainer,)):
        optimizer.learning_rate = rate
    assert optimizer.learning_rate == 1e-3


def test_a_learning_rate_of_zero_learns_nothing():
    trainer = settled()
    before = trainer.model.state_dict()
    trainer.optimizer.learning_rate = 0
    trainer.fit(*table(), verbose=False)
    after = trainer.model.state_dict()
    assert all(np.array_equal(after[name], before[name]) for name in before if "running" not in name)


@pytest.mark.parametrize("rate", [math.nan, -1.0, math.inf, "a", None], ids=repr)
def test_a_schedule_that_goes_wrong_stops_before_the_step(rate):
    trainer = settled()
    trainer.optimizer.learning_rate = lambda step: 1e-3 if step < 3 else rate
    x, y = table()
    trainer.fit(x, y, verbose=False)
    fc.losses.cross_entropy(trainer.model.train()(x), y).backward()
    with refused(ArgumentError, "step 3", repr(rate), keeps=(trainer,)):
        trainer.optimizer.step()


SETTINGS: list[tuple[Any, str, Any, str]] = [
    (fc.optim.Adam, "betas", (1.0, 0.9), "beta1 is 1.0, expected a number >= 0 and < 1"),
    (fc.optim.Adam, "betas", (0.9, 1.0), "beta2 is 1.0, expected a number >= 0 and < 1"),
    (fc.optim.AdamW, "betas", (-0.1, 0.9), "beta1 is -0.1, expected a number >= 0 and < 1"),
    (fc.optim.Adam, "betas", (0.9, math.nan), "beta2 is nan, expected a number >= 0 and < 1"),
    (fc.optim.Adam, "betas", 0.9, "betas is 0.9, expected two numbers"),
    (fc.optim.Adam, "betas", ("a", 0.9), "beta1 is 'a', expected a number >= 0 and < 1"),
    (fc.optim.Adam, "eps", 0, "eps is 0, expected a finite number > 0"),
    (fc.optim.RMSprop, "eps", 0.0, "eps is 0.0, expected a finite number > 0"),
    (fc.optim.RMSprop, "alpha", 1.0, "alpha is 1.0, expected a number >= 0 and < 1"),
    (fc.optim.SGD, "momentum", 1.0, "momentum is 1.0, expected a number >= 0 and < 1"),
    (fc.optim.SGD, "nesterov", True, "nesterov=True needs momentum > 0"),
    (fc.optim.SGD, "clip_norm", 0, "clip_norm is 0, expected a number > 0, or None"),
    (fc.optim.SGD, "clip_norm", -1.0, "clip_norm is -1.0, expected a number > 0, or None"),
    (fc.optim.SGD, "clip_norm", math.nan, "clip_norm is nan, expected a number > 0, or None"),
    (fc.optim.AdamW, "weight_decay", -0.1, "weight_decay is -0.1, expected a finite number >= 0"),
    (fc.optim.AdamW, "weight_decay", math.inf, "weight_decay is inf, expected a finite number >= 0"),
]


@pytest.mark.parametrize(("kind", "name", "value", "words"), SETTINGS)
def test_hyperparameters_out_of_range(kind, name, value, words):
    trainer = settled()
    with refused(ArgumentError, f"{kind.__name__}: {words}", keeps=(trainer,)):
        kind(trainer.model.parameters(), **{name: value})


@pytest.mark.parametrize("given", [[], iter(()), [np.ones(3)], [None]], ids=["empty", "iterator", "array", "None"])
def test_an_optimizer_of_nothing(given):
    with refused(ArgumentError, "SGD", "Pass model.parameters()"):
        fc.optim.SGD(given)


def test_steps_that_cannot_be_made():
    trainer = settled()
    with refused(fc.errors.GraphError, "no gradient", "Call loss.backward() first", keeps=(trainer,)):
        trainer.optimizer.step()
    fc.losses.cross_entropy(trainer.model(table()[0]), table()[1]).backward()
    with refused(ArgumentError, "gradient_scale is nan", "finite", keeps=(trainer,)):
        trainer.optimizer.step(gradient_scale=math.nan)


FITS = [
    ("batch_size", (0, -1, 2.5, True, "32"), "expected an integer >= 1"),
    ("epochs", (0, -1, 1.5, True, None), "expected an integer >= 1"),
    ("steps_per_epoch", (0, -1, 2.5, "3"), "expected an integer >= 1"),
    ("validation_split", (0, 1, 0.0, 1.0, -0.1, 1.5, math.nan, "0.2", True), "0 < validation_split < 1"),
]


@pytest.mark.parametrize(("name", "value", "expected"), [(n, v, e) for n, values, e in FITS for v in values])
def test_numbers_that_training_cannot_use(name, value, expected):
    trainer = settled()
    with refused(ArgumentError, f"{name} is {value!r}", expected, keeps=(trainer,)):
        trainer.fit(*table(), **{name: value}, verbose=False)


@pytest.mark.parametrize("rows", [1, 12, 10**9])
def test_a_batch_may_be_larger_than_the_data(rows):
    trainer = settled(fc.nn.Dense(3))
    x, y = table()
    whole = trainer.predict(x, batch_size=12)
    assert trainer.predict(x, batch_size=rows).shape == whole.shape
    steps = trainer.optimizer.steps
    trainer.fit(x, y, batch_size=rows, verbose=False)
    assert trainer.optimizer.steps - steps == max(1, 12 // rows)


@pytest.mark.parametrize(("share", "held_out"), [(1e-9, 1), (0.5, 6), (0.999999, 11)])
def test_a_split_leaves_a_row_on_either_side(share, held_out):
    split = fc.data.validation_split(*table(), share)
    assert [len(part.x) for part in split] == [12 - held_out, held_out]


def test_one_row_cannot_be_split():
    trainer = settled(fc.nn.Dense(3))
    x, y = table()
    with refused(fc.errors.DataError, "1 row", keeps=(trainer,)):
        trainer.fit(x[:1], y[:1], validation_split=0.5, verbose=False)
