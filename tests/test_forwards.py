"""Predictions by recorded forward passes: always those of a call of the model as it is now."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fcdense as fc
from fcdense import changes
from fcdense.inference import KEPT_SHAPES, Forwards, evaluating, predict

X = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)


def network(*more) -> fc.nn.Sequential:
    fc.manual_seed(1)
    layers = fc.nn.Dense(7, "gelu"), fc.nn.BatchNorm(), fc.nn.Dropout(0.5), fc.nn.Dense(3, "tanh")
    model = fc.nn.Sequential(*layers, *more)
    model(X)
    return model


def called(model, x, size=1024) -> np.ndarray:
    """By plain calls."""
    with evaluating(model), fc.no_grad():
        return np.concatenate([model(x[i : i + size]).numpy() for i in range(0, max(len(x), 1), size)])


def forwards(model) -> Forwards:
    return vars(model)["_forwards"]


def recordings(model) -> int:
    return sum(captured is not None for captured in forwards(model)._kept.values())


def agrees(model, x=X, **options) -> bool:
    return all(np.array_equal(predict(model, x, **options), called(model, x)) for _ in range(3))


@pytest.mark.parametrize(("size", "count"), [(8, 1), (9, 2), (1, 1), (40, 1), (100, 1)])
def test_chunks(size, count):
    """40 rows: full chunks have one recording, and an odd last one has its own at the second time."""
    model = network()
    for _ in range(3):
        np.testing.assert_array_equal(predict(model, X, batch_size=size), called(model, X, size))
    assert recordings(model) == count


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "uint8", "bool", "float16", "int64"])
@pytest.mark.filterwarnings("ignore::fcdense.errors.DTypeWarning")
def test_dtypes(dtype):
    model = network()
    assert agrees(model, (X * 50).astype(dtype))
    assert recordings(model) == 1


def test_results_are_arrays_of_their_own():
    model = network()
    first, second, third = (predict(model, X[i : i + 1]) for i in range(3))
    for i, found in enumerate((first, second, third)):
        np.testing.assert_array_equal(found, called(model, X[i : i + 1]))


def change_weights(model):
    model[0].kernel.assign(model[0].kernel.numpy() * 2.0)


def train(model):
    fc.Trainer(model).fit(X, np.arange(40) % 3, verbose=False)


CHANGES = {
    "weights": change_weights,
    "training": train,
    "state": lambda model: model.load_state_dict({k: v * 0.5 for k, v in model.state_dict().items()}),
    "a layer more": lambda model: model.append(fc.nn.Dense(2, in_features=3)),
    "a layer more, past the model": lambda model: model.layers.append(fc.nn.Dense(2, in_features=3)),
    "a layer less": lambda model: model.layers.pop(),
    "another layer": lambda model: model.layers.__setitem__(0, fc.nn.Dense(7, "tanh", in_features=5)),
    "an activation": lambda model: setattr(model[0], "activation", fc.activations.get("tanh")),
    "a number": lambda model: setattr(model[1], "eps", 0.5),
    "buffers": lambda model: setattr(model[1], "running_mean", np.ones(7, np.float32)),
    "mode": lambda model: model.train(),
    "an optimizer": lambda model: fc.optim.Adam(model.parameters()),
}


@pytest.mark.parametrize("is_trained", [False, True])
@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_is_seen(name, is_trained):
    model = network().eval()
    if is_trained:
        train(model)
    assert agrees(model)
    CHANGES[name](model)
    assert agrees(model)
    assert recordings(model) == 1


def test_a_model_in_training_mode_is_walked_through_once(monkeypatch):
    model = network().train()
    model[2].eval()
    expected = {rows: called(model, X[:rows]) for rows in (8, 9)}
    modes = [module.training for module in model.modules()]
    for _ in range(3):
        np.testing.assert_array_equal(predict(model, X[:8]), expected[8])
    number = changes.settings.number
    for _ in range(2):
        np.testing.assert_array_equal(predict(model, X[:9]), expected[9])  # at first without a recording
    monkeypatch.setattr(fc.nn.Module, "named_modules", None)
    for rows in (8, 9):
        np.testing.assert_array_equal(predict(model, X[:rows]), expected[rows])
    monkeypatch.undo()
    assert changes.settings.number == number  # captured training steps need not look at the model again
    assert [module.training for module in model.modules()] == modes
    model[2].train()
    assert agrees(model)


def test_the_modes_come_back_after_an_error_without_a_walk():
    model = network().train()
    assert agrees(model)
    with pytest.raises(fc.errors.ShapeError):
        predict(model, X[:, :3])
    assert all(module.training for module in model.modules())


class Scaled(fc.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factors = [2.0]

    def forward(self, x):
        for factor in self.factors:
            x = x * factor
        return x


def test_modules_of_ones_own_are_looked_at_whole():
    model = network(Scaled())
    assert agrees(model)
    model[4].factors.append(3.0)
    assert agrees(model)
    assert recordings(model) == 1


def test_models_that_cannot_be_captured(caplog):
    model = network(reading())
    with caplog.at_level(logging.INFO, "fcdense"):
        assert agrees(model)
    assert [record.getMessage().startswith("forward passes of Sequential are not captured: Values")
            for record in caplog.records] == [True]  # fmt: skip
    assert "read on the host" in forwards(model).reason


def test_only_the_last_shapes_are_kept():
    model = network()
    for _ in range(2):
        for rows in range(1, KEPT_SHAPES + 1):
            predict(model, X[:rows])
    assert recordings(model) == KEPT_SHAPES
    predict(model, X[:30])
    predict(model, X[:30])
    assert recordings(model) == KEPT_SHAPES
    assert (1, 5) not in {shape for shape, _ in forwards(model)._kept}


def test_copies_of_a_model_begin_without_recordings():
    model = network()
    assert agrees(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert agrees(twin)
        change_weights(twin)
        assert agrees(twin)
        assert agrees(model)
    assert not np.array_equal(predict(twin, X), predict(model, X))


def test_a_model_goes_with_its_recordings():
    model = network()
    assert agrees(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def in_threads(count: int, work) -> None:
    """Each thread calls ``work(number)``; switches between them are frequent."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)


def reading() -> fc.nn.Module:
    class Reading(fc.nn.Module):
        def forward(self, x):
            return x * float(x.sum())

    return Reading()


@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("more", [list, lambda: [Scaled()], lambda: [reading()]], ids=["plain", "own", "not captured"])
def test_several_threads(is_training, more):
    model = network(*more()).train(is_training)
    expected = {rows: called(model, X[:rows]) for rows in range(1, 9)}
    wrong = []

    def work(number: int) -> None:
        rows = 1 + number % 8
        wrong.extend(rows for _ in range(60) if not np.array_equal(predict(model, X[:rows]), expected[rows]))

    in_threads(12, work)
    assert wrong == []
    assert all(module.training is is_training for module in model.modules())


def test_the_first_call_may_come_from_several_threads():
    wrong = []

    def work(number: int) -> None:
        wrong.extend(model for model in models if predict(model, X).shape != (40, 3))

    for _ in range(10):
        models = [fc.nn.Sequential(fc.nn.Dense(9), fc.nn.BatchNorm(), fc.nn.Dense(3)) for _ in range(5)]
        in_threads(8, work)
    assert wrong == []


def test_threads_with_models_that_share_layers():
    shared = network().train()
    models = [fc.nn.Sequential(shared, fc.nn.Dense(2)) for _ in range(3)]
    expected = [called(model, X) for model in models]
    wrong = []

    def work(number: int) -> None:
        for i in range(200):
            x = X[: 1 + i % 40]  # most have no recording
            if not np.allclose(predict(models[number], x), expected[number][: len(x)], atol=1e-6):
                wrong.append(number)

    in_threads(3, work)
    assert wrong == []
    assert all(module.training for model in models for module in model.modules())


@pytest.mark.parametrize("is_training", [False, True])
def test_captured_functions_have_a_recording_for_predictions(is_training):
    model = network().train(is_training)
    captured = fc.capture(lambda x: model(x))
    for _ in range(3):
        first = captured(X).numpy().copy()
        assert (captured(X).numpy() != first).any() == is_training  # dropout
        expected = called(model, X)
        with evaluating(model):
            np.testing.assert_array_equal(captured(X).numpy(), expected)


def test_threads_of_a_forward_pass_find_evaluation_mode():
    class Ensemble(fc.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.members = [network(), network()]

        def forward(self, x):
            with ThreadPoolExecutor(2) as pool:
                first, second = pool.map(lambda member: member(x), self.members)
            return first + second

    model = Ensemble()
    expected = sum(called(member, X) for member in model.members)
    for _ in range(3):
        np.testing.assert_array_equal(predict(model, X), expected)


def test_what_a_forward_pass_does_with_its_modes_and_other_models_stays_as_it_is():
    other = network().train()
    found = []

    class Probing(fc.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = fc.nn.Dropout(0.5)

        def forward(self, x):
            before = other[1].running_mean.numpy().copy()
            other(x)
            found.append(np.array_equal(other[1].running_mean.numpy(), before))
            was = self.drop.training
            clean = self.drop.eval()(x)
            self.drop.train(was)
            assert (self.drop.train()(x).numpy() != clean.numpy()).any()  # as who takes samples of dropout may
            self.drop.train(was)
            return self.drop(x)

    model = Probing()
    batches = fc.data.Batches(X, batch_size=40, shuffle=False)
    np.testing.assert_array_equal(predict(model, batches), X)
    assert found == [False]
    assert model.drop.training


def test_predictions_inside_of_others():
    inner = network().train()

    class Outer(fc.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x):
            first = fc.tensor(predict(self.inner, x))
            return first + self.inner(x)

    outer = Outer()
    for _ in range(3):
        np.testing.assert_array_equal(predict(outer, X), 2 * called(inner, X))
    assert all(module.training for module in outer.modules())


def test_an_interrupted_prediction_gives_the_modes_back():
    class Interrupted(fc.nn.Module):
        def forward(self, x):
            raise KeyboardInterrupt

    model = network().append(Interrupted()).train()
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            predict(model, X)
    assert all(module.training for module in model.modules())
    del model.layers[4]
    assert agrees(model)
    assert recordings(model) == 1


def test_errors_of_a_prediction_leave_the_lock_open():
    model = network()
    with pytest.raises(fc.errors.ShapeError):
        predict(model, X[:, :3])
    assert agrees(model)
    assert recordings(model) == 1
