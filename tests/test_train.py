"""The training loop: what it feeds, weighs and counts, against NumPy and against other ways to say the same."""

from __future__ import annotations

import numpy as np
import pytest

import fcdense as fc
from fcdense.errors import ArgumentError, DataError
from tests.training import F64, close, linear, same, small_net, table, trained


class Watched(fc.nn.Module):
    """Notes the first feature of every row that it is called with, and whether it was training."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = fc.nn.Dense(1, dtype=F64, in_features=1)
        self.seen: list[tuple[bool, list[float]]] = []

    def forward(self, x):
        self.seen.append((self.training, x.numpy()[:, 0].tolist()))
        return self.dense(x)

    def batches(self, training: bool = True) -> list[list[float]]:
        return [rows for mode, rows in self.seen if mode is training]


def flat(batches: list[list[float]]) -> list[float]:
    return [row for batch in batches for row in batch]


def watched_fit(n: int = 10, **options) -> Watched:
    model = Watched()
    rows = np.arange(float(n))[:, None]
    fc.Trainer(model, "mse", "sgd", learning_rate=1e-4).fit(rows, rows, verbose=False, **options)
    return model


# ---- one step, by hand -----------------------------------------------------------------------------------------------


def test_a_step_of_gradient_descent_is_that_of_the_book(rng):
    x, y = rng.normal(size=(8, 3)), rng.normal(size=(8, 2))
    model = linear()
    w, b = (model.state_dict()[f"layers.0.{name}"] for name in ("kernel", "bias"))
    error = x @ w + b - y
    history = fc.Trainer(model, "mse", "sgd", learning_rate=0.1).fit(x, y, batch_size=8, verbose=False)
    after = model.state_dict()
    np.testing.assert_allclose(after["layers.0.kernel"], w - 0.1 * 2 * x.T @ error / error.size, rtol=0, atol=1e-14)
    np.testing.assert_allclose(after["layers.0.bias"], b - 0.1 * 2 * error.sum(axis=0) / error.size, rtol=0, atol=1e-14)
    assert history["loss"] == [pytest.approx(np.mean(error**2), rel=1e-14)]


def test_gradients_of_before_are_forgotten():
    x, y = table()
    expected = trained(linear(outputs=3), x, y)
    model = linear(outputs=3)
    (model(x) * 1e6).sum().backward()
    assert same(trained(model, x, y), expected)


def test_regularizers_are_part_of_the_training_loss_only(rng):
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(6, 2))
    model = linear(kernel_regularizer=fc.regularizers.l2(0.05))
    w, b = (model.state_dict()[f"layers.0.{name}"] for name in ("kernel", "bias"))
    error = x @ w + b - y
    trainer = fc.Trainer(model, "mse", "sgd", learning_rate=0.1)
    assert trainer.evaluate(x, y)["loss"] == pytest.approx(np.mean(error**2), rel=1e-14)
    trainer.fit(x, y, batch_size=6, validation_data=(x, y), verbose=False)
    assert trainer.history["loss"][0] == pytest.approx(np.mean(error**2) + 0.05 * np.sum(w**2), rel=1e-14)
    gradient = 2 * x.T @ error / error.size + 2 * 0.05 * w
    np.testing.assert_allclose(model.state_dict()["layers.0.kernel"], w - 0.1 * gradient, rtol=0, atol=1e-14)
    assert trainer.history["val_loss"][0] == trainer.evaluate(x, y)["loss"]


def test_constraints_hold_after_every_step():
    model = linear(kernel_constraint=fc.constraints.max_norm(0.3))
    norms = []

    class Look(fc.callbacks.Callback):
        def on_step_end(self, step, logs):
            norms.append(np.linalg.norm(model.state_dict()["layers.0.kernel"], axis=0).max())

    x, y = table(classes=2)
    fc.Trainer(model, "cross_entropy", "sgd", learning_rate=1.0).fit(
        x, y, batch_size=4, callbacks=[Look()], verbose=False
    )
    assert len(norms) == 6
    assert max(norms) <= 0.3 + 1e-12


def test_gradients_are_clipped_by_their_global_norm(rng):
    x, y = rng.normal(size=(8, 3)), 1e6 * rng.normal(size=(8, 2))
    model = linear()
    before = model.state_dict()
    trained(model, x, y, loss="mse", epochs=1, trainer={"learning_rate": 1.0, "clip_norm": 0.5}, batch_size=8)
    after = model.state_dict()
    length = np.sqrt(sum(np.sum((after[name] - before[name]) ** 2) for name in before))
    assert length == pytest.approx(0.5, rel=1e-6)


# ---- where batches come from -----------------------------------------------------------------------------------------


def test_arrays_batches_loaders_and_generators_are_the_same():
    x, y = table()
    batches = [(x[i : i + 5], y[i : i + 5]) for i in range(0, 24, 5)]
    sources = {
        "arrays": lambda: (x, y),
        "lists": lambda: (x.tolist(), y.tolist()),
        "tensors": lambda: (fc.tensor(x), fc.tensor(y)),
        "Batches": lambda: (fc.data.Batches(x, y, batch_size=5, shuffle=False),),
        "DataLoader": lambda: (fc.data.DataLoader(batches),),
        "list of batches": lambda: (batches,),
        "function": lambda: (lambda: iter(batches),),
    }
    results = {}
    for name, make in sources.items():
        arrays = {"shuffle": False, "batch_size": 5} if len(make()) == 2 else {}
        results[name] = trained(small_net(), *make(), **arrays)
    endless = (batch for _ in range(99) for batch in batches)
    results["generator"] = trained(small_net(), endless, steps_per_epoch=5)
    assert [name for name, state in results.items() if not same(state, results["arrays"])] == []


def test_epochs_see_every_row_once_each_in_its_own_order():
    batches = watched_fit(epochs=3, batch_size=4).batches()
    epochs = [flat(batches[i : i + 3]) for i in range(0, 9, 3)]
    assert [len(batch) for batch in batches] == [4, 4, 2] * 3
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert watched_fit(shuffle=False, batch_size=4).batches() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_drop_last_and_steps_per_epoch():
    assert [len(batch) for batch in watched_fit(batch_size=4, drop_last=True).batches()] == [4, 4]
    assert len(watched_fit(batch_size=2, steps_per_epoch=3, epochs=2).batches()) == 6


def test_a_further_fit_goes_on_with_the_next_epoch():
    rows = np.arange(10.0)[:, None]
    twice, once = Watched(), Watched()
    trainer = fc.Trainer(twice, "mse", "sgd")
    first = trainer.fit(rows, rows, verbose=False)
    assert trainer.fit(rows, rows, verbose=False) is first is trainer.history
    assert len(first) == 2
    fc.Trainer(once, "mse", "sgd").fit(rows, rows, epochs=2, verbose=False)
    assert twice.batches() == once.batches()


def test_validation_split_holds_rows_out():
    model = watched_fit(n=20, validation_split=0.25, epochs=2, batch_size=4)
    trained_on = flat(model.batches()[:4])
    held_out = model.batches(training=False)
    assert held_out[0] == held_out[1]
    assert len(held_out[0]) == 5
    assert sorted(trained_on + held_out[0]) == list(range(20))
    assert watched_fit(n=20, validation_split=0.25).batches(training=False) == held_out[:1]


@pytest.mark.parametrize("kind", ["tuple", "weighted", "loader", "batches"])
def test_validation_data(kind):
    x, y = table()
    x_val, y_val = table(9, seed=1)
    given = {
        "tuple": (x_val, y_val),
        "weighted": (x_val, y_val, np.arange(9.0)),
        "loader": fc.data.DataLoader([(x_val, y_val)]),
        "batches": fc.data.Batches(x_val, y_val),
    }[kind]
    trainer = fc.Trainer(small_net(), metrics=["accuracy"])
    history = trainer.fit(x, y, epochs=2, validation_data=given, verbose=False)
    assert history.names == ["loss", "accuracy", "val_loss", "val_accuracy"]
    weights = np.arange(9.0) if kind == "weighted" else None
    expected = trainer.evaluate(x_val, y_val, sample_weight=weights)
    assert history["val_loss"][-1] == pytest.approx(expected["loss"], rel=1e-12)
    assert history["val_accuracy"][-1] == pytest.approx(expected["accuracy"], rel=1e-12)


def test_the_seed_governs_order_and_split():
    def run(seed: int, **options) -> list[tuple[bool, list[float]]]:
        model, rows = Watched(), np.arange(10.0)[:, None]
        fc.Trainer(model, "mse", "sgd", seed=seed).fit(rows, rows, verbose=False, **options)
        return model.seen

    for options in ({"batch_size": 3}, {"validation_split": 0.5, "shuffle": False}):
        assert run(0, **options) == run(0, **options)
        assert run(0, **options) != run(1, **options)


def test_the_same_seed_gives_the_same_bits():
    def run(seed: int, weights: int = 0) -> dict:
        fc.manual_seed(weights)
        x, y = table()
        model = fc.nn.Sequential(fc.nn.Dense(8, activation="relu"), fc.nn.Dropout(0.5), fc.nn.Dense(3))
        trainer = fc.Trainer(model, seed=seed)
        trainer.fit(x.astype(np.float32), y, epochs=3, batch_size=5, validation_split=0.2, verbose=False)
        return model.state_dict()

    assert same(run(0), run(0))
    assert not same(run(0), run(1))
    assert not same(run(0), run(0, weights=1))


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_a_weight_is_worth_that_many_rows(rng):
    x, y = table(12)
    weights = rng.integers(0, 4, 12).astype(float)
    repeated = np.repeat(np.arange(12), weights.astype(int))
    options = {"shuffle": False, "trainer": {"learning_rate": 0.5}}
    weighted = trained(linear(outputs=3), x, y, sample_weight=weights, batch_size=12, **options)
    plain = trained(linear(outputs=3), x[repeated], y[repeated], batch_size=99, **options)
    assert close(weighted, plain)


def test_a_batch_of_weight_zero_changes_nothing():
    x, y = table(8)
    weights = np.array([1.0, 1, 1, 1, 0, 0, 0, 0])
    with_zeros = trained(linear(outputs=3), x, y, sample_weight=weights, batch_size=4, shuffle=False, epochs=1)
    without = trained(linear(outputs=3), x[:4], y[:4], sample_weight=np.ones(4), batch_size=4, shuffle=False, epochs=1)
    assert same(with_zeros, without)
    with pytest.raises(DataError, match="weights of all 8 rows are 0"):
        trained(linear(outputs=3), x, y, sample_weight=np.zeros(8))


@pytest.mark.parametrize("one_hot", [False, True])
def test_class_weights_are_sample_weights(rng, one_hot):
    x, y = table()
    target = np.eye(3)[y] if one_hot else y
    by_class = np.array([0.5, 3.0, 1.0])
    expected = trained(small_net(), x, y, sample_weight=by_class[y], batch_size=7)
    for given in (by_class.tolist(), {0: 0.5, 1: 3.0}, {2: 1, 1: 3, 0: 0.5}, by_class):
        assert close(trained(small_net(), x, target, batch_size=7, trainer={"class_weight": given}), expected)
    rows = rng.integers(1, 3, 24).astype(float)
    both = trained(small_net(), x, target, sample_weight=rows, batch_size=7, trainer={"class_weight": by_class})
    assert close(both, trained(small_net(), x, y, sample_weight=rows * by_class[y], batch_size=7))
    loss = {name: fc.Trainer(small_net(), class_weight=w).evaluate(x, y, sample_weight=s)["loss"] for name, w, s in (
        ("class", by_class, None), ("sample", None, by_class[y]))}  # fmt: skip
    assert loss["class"] == pytest.approx(loss["sample"], rel=1e-12)


@pytest.mark.parametrize("shape", [(24,), (24, 1)])
def test_class_weights_of_two_classes_with_one_output(shape):
    x, y = table(classes=2)
    bce = {"loss": "binary_cross_entropy_with_logits", "batch_size": 7}
    expected = trained(linear(outputs=1), x, y, sample_weight=np.where(y == 1, 4.0, 1.0), **bce)
    weighted = trained(linear(outputs=1), x, y.reshape(shape), trainer={"class_weight": {1: 4.0}}, **bce)
    assert close(weighted, expected)


def test_class_weights_with_several_axes_of_rows():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(6, 4, 3)), generator.integers(0, 3, (6, 4))
    rows = np.array([1.0, 2, 1, 2, 1, 2])
    by_class = np.array([0.5, 3.0, 1.0])
    flat = trained(
        linear(outputs=3), x.reshape(24, 3), y.reshape(24), sample_weight=np.repeat(rows, 4) * by_class[y].reshape(24),
        batch_size=24, shuffle=False,
    )  # fmt: skip
    deep = trained(
        linear(outputs=3), x, y, sample_weight=rows, trainer={"class_weight": by_class}, batch_size=6, shuffle=False
    )
    assert close(deep, flat)


def test_metrics_know_sample_weights_but_not_class_weights():
    x, y = table()
    weights = np.arange(24.0)
    trainer = fc.Trainer(linear(outputs=3), metrics=["accuracy"], class_weight=[1, 5, 9])
    hits = trainer.predict(x).argmax(axis=1) == y
    assert trainer.evaluate(x, y)["accuracy"] == pytest.approx(hits.mean())
    assert trainer.evaluate(x, y, sample_weight=weights)["accuracy"] == pytest.approx(hits @ weights / weights.sum())


# ---- accumulation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "batch", "weighted"), [(24, 4, False), (24, 5, False), (24, 4, True), (22, 5, True)])
def test_accumulated_batches_are_one_large_batch(n, batch, weighted):
    x, y = table(n)
    weights = np.random.default_rng(1).integers(0, 5, n).astype(float) if weighted else None
    regular = {"kernel_regularizer": "l2"}
    options = {"shuffle": False, "sample_weight": weights, "optimizer": "adam"}
    large = trained(linear(outputs=3, **regular), x, y, batch_size=3 * batch, **options)
    parts = trained(linear(outputs=3, **regular), x, y, batch_size=batch, trainer={"accumulate": 3}, **options)
    assert close(large, parts)


def test_steps_are_counted_after_accumulation():
    x, y = table()
    trainer = fc.Trainer(linear(outputs=3), accumulate=4)
    trainer.fit(x, y, batch_size=4, epochs=2, verbose=False)
    assert trainer.optimizer.steps == 4  # 6 batches are a group of 4 and the last one of 2


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_loss_and_metrics_are_those_over_all_rows():
    x, y = table(23)

    def hit_rate(prediction, target):
        return np.mean(prediction.argmax(axis=1) == target)

    trainer = fc.Trainer(linear(outputs=3), metrics=["accuracy", fc.metrics.TopK(3), hit_rate])
    logits = trainer.predict(x)
    log_softmax = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for batch_size in (1, 4, 23, 256):
        found = trainer.evaluate(x, y, batch_size=batch_size)
        assert found["loss"] == pytest.approx(-log_softmax[np.arange(23), y].mean(), rel=1e-12)
        assert found["accuracy"] == pytest.approx(np.mean(logits.argmax(axis=1) == y), rel=1e-12)
        assert found["hit_rate"] == pytest.approx(found["accuracy"], rel=1e-12)
        assert found["top_3"] == 1.0


def test_evaluate_takes_batches_and_leaves_the_modes_of_layers():
    x, y = table(23)
    model = small_net()
    trainer = fc.Trainer(model)
    expected = trainer.evaluate(x, y)["loss"]
    model.train()
    model[1].eval()
    state = model.state_dict()
    assert trainer.evaluate(fc.data.Batches(x, y, batch_size=5))["loss"] == pytest.approx(expected, rel=1e-12)
    assert [module.training for module in model.modules()] == [True, True, False, True, True]
    assert same(model.state_dict(), state)


@pytest.mark.parametrize("layer", [fc.nn.Softmax(), fc.nn.Sigmoid()], ids=repr)
def test_probabilities_are_refused_by_losses_of_logits(layer):
    x, y = table()
    for model in (
        fc.nn.Sequential(fc.nn.Dense(3), layer),
        fc.nn.Sequential(fc.nn.Dense(3, activation=layer.activation)),
    ):
        trainer = fc.Trainer(model)
        for call in (trainer.evaluate, trainer.fit):
            with pytest.raises(ArgumentError, match=r"already\. Give the layer no activation"):
                call(x.astype(np.float32), y)


def test_the_model_is_left_ready_for_use():
    x, y = table()
    model = small_net()
    fc.Trainer(model).fit(x, y, verbose=False)
    assert not any(module.training for module in model.modules())
    np.testing.assert_array_equal(model(x).numpy(), model(x).numpy())


def test_repr_says_what_is_trained_and_how():
    trainer = fc.Trainer(linear(), "mse", "sgd")
    assert repr(trainer).startswith("Trainer(Sequential, <loss mse>, SGD(learning_rate=0.01")


def test_an_optimizer_may_be_given_as_class_or_object():
    model = linear()
    assert isinstance(fc.Trainer(model, optimizer=fc.optim.RMSprop).optimizer, fc.optim.RMSprop)
    made = fc.optim.SGD(model.parameters(), learning_rate=0.3)
    assert fc.Trainer(model, optimizer=made).optimizer is made
    schedule = fc.optim.schedules.CosineDecay(0.1, steps=10)
    assert fc.Trainer(model, learning_rate=schedule).optimizer.learning_rate == pytest.approx(0.1)


def test_a_layer_that_is_added_later_is_trained():
    x = np.random.default_rng(0).normal(size=(24, 3))
    model = fc.nn.Sequential(fc.nn.Dense(3, dtype=F64))
    trainer = fc.Trainer(model, "mse")
    trainer.fit(x, np.zeros((len(x), 3)), verbose=False)
    model.append(fc.nn.Dense(2, dtype=F64))
    model(x)
    before = model[1].kernel.numpy().copy()
    trainer.fit(x, np.zeros((len(x), 2)), verbose=False)
    assert (model[1].kernel.numpy() != before).all()


def test_an_optimizer_of_the_caller_keeps_its_parameters():
    model = fc.nn.Sequential(fc.nn.Dense(3, dtype=F64), fc.nn.Dense(2, dtype=F64))
    x = np.random.default_rng(0).normal(size=(24, 3))
    optimizer = fc.optim.SGD(model[1].parameters(), learning_rate=0.1)
    fc.Trainer(model, "mse", optimizer).fit(x, np.zeros((len(x), 2)), verbose=False)
    assert set(optimizer.parameters) == set(model[1].parameters())
