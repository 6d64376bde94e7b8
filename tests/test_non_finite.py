"""NaN and infinities in training: the step is left out whole, and the message says where they began."""

from __future__ import annotations

import numpy as np
import pytest

import fcdense as fc
from fcdense.data import Batch
from fcdense.diagnosis import first_non_finite
from tests.training import F64, X, Y, linear, same, small_net


def snapshot(trainer: fc.Trainer) -> tuple[dict, dict]:
    return trainer.model.state_dict(), trainer.optimizer.state_dict()


def unchanged(trainer: fc.Trainer, before: tuple[dict, dict]) -> bool:
    """Parameters, buffers and the optimizer's slots have the same bits, and nothing waits for the next step."""
    now = snapshot(trainer)
    slots = [state["parameters"] for state in (now[1], before[1])]
    return (
        same(now[0], before[0])
        and slots[0].keys() == slots[1].keys()
        and all(same(slots[0][name], slots[1][name]) for name in slots[0])
        and now[1]["steps"] == before[1]["steps"]
        and not any(p.has_grad for p in trainer.model.parameters())
    )


def settled(model: fc.nn.Module, loss: object = "cross_entropy", **options) -> fc.Trainer:
    """A trainer that has made some steps."""
    trainer = fc.Trainer(model, loss, "adam", **options)
    trainer.fit(X, Y if loss == "cross_entropy" else X[:, :1], verbose=False)
    return trainer


def nan_at(array: np.ndarray, *index: int, value: float = np.nan) -> np.ndarray:
    array = array.astype(float)
    array[index] = value
    return array


def test_a_nan_in_x_stops_before_the_step_and_names_the_row():
    trainer = settled(small_net())
    before = snapshot(trainer)
    with pytest.raises(
        fc.errors.NonFiniteError, match=r"^Step 1: the loss is nan: x of the batch is nan in row 7 "
    ) as e:
        trainer.fit(nan_at(X, 7, 2), Y, shuffle=False, verbose=False)
    assert "Parameters and optimizer are as they were before this step." in str(e.value)
    assert unchanged(trainer, before)
    assert len(trainer.history) == 1
    trainer.fit(X, Y, verbose=False)


def test_an_infinite_target_is_named():
    trainer = settled(linear(outputs=1), "mse")
    with pytest.raises(fc.errors.NonFiniteError, match="y of the batch is inf in row 3"):
        trainer.fit(X, nan_at(X[:, :1], 3, 0, value=np.inf), shuffle=False, verbose=False)


def test_a_layer_that_overflows_is_named():
    model = fc.nn.Sequential(
        fc.nn.BatchNorm(dtype=F64), fc.nn.Dense(3, dtype=F64), Exploding(), fc.nn.Dense(3, dtype=F64)
    )
    trainer = settled(model)
    model[2].on = True
    before = snapshot(trainer)
    with pytest.raises(fc.errors.NonFiniteError, match=r"the output of layer 'layers.2' is the first.*inf in row 0"):
        trainer.fit(X, Y, verbose=False)
    assert unchanged(trainer, before)


class Exploding(fc.nn.Module):
    on = False

    def forward(self, x):
        return x * np.inf if self.on else x


def infinite_slope(prediction, target):
    """Its value is 0, its slope at 0 is infinite."""
    return ((prediction - prediction) ** 0.5).sum()


def test_a_gradient_that_is_not_finite_changes_nothing():
    trainer = settled(small_net())
    trainer.loss = fc.losses.get(infinite_slope)
    before = snapshot(trainer)
    with pytest.raises(fc.errors.NonFiniteError, match=r"a gradient is not finite: .* loss or the backward pass"):
        trainer.fit(X, Y, verbose=False)
    assert unchanged(trainer, before)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_with_patience_bad_batches_are_left_out(accumulate):
    """Training goes on as if the whole step with the bad batch were not in the data."""
    bad = nan_at(X, 0, 0)
    batches = [(X[i : i + 4], Y[i : i + 4]) for i in range(0, 24, 4)]
    with_bad = [*batches[:3], *([(bad[:4], Y[:4])] * accumulate), *batches[3:]]
    trainer = fc.Trainer(linear(outputs=3), accumulate=accumulate)
    reasons = []

    class Listen(fc.callbacks.StopOnNaN):
        def on_non_finite(self, step, reason):
            super().on_non_finite(step, reason)
            reasons.append(step)

    trainer.fit(with_bad, callbacks=[Listen(patience=3)], verbose=False)
    expected = fc.Trainer(linear(outputs=3), accumulate=accumulate)
    expected.fit(batches, verbose=False)
    assert reasons == [3 // accumulate] * accumulate
    assert same(trainer.model.state_dict(), expected.model.state_dict())
    assert trainer.history["loss"] == expected.history["loss"]


def test_what_waited_for_the_same_step_is_left_out_too():
    def network() -> fc.nn.Sequential:
        fc.manual_seed(0)
        return fc.nn.Sequential(fc.nn.BatchNorm(dtype=F64), fc.nn.Dense(3, dtype=F64, in_features=3))

    batches = [(X[:8], Y[:8]), (nan_at(X, 0, 0), Y), (X[8:16], Y[8:16]), (X[16:], Y[16:])]
    models = network(), network()
    for model, data in zip(models, (batches, batches[2:]), strict=True):
        fc.Trainer(model, accumulate=2).fit(data, callbacks=[fc.callbacks.StopOnNaN(9)], verbose=False)
    assert same(models[0].state_dict(), models[1].state_dict())


def test_the_statistics_of_a_model_that_is_not_built_stay_clean():
    model = fc.nn.Sequential(fc.nn.BatchNorm(), fc.nn.Dense(3))
    x = X.astype(np.float32)
    trainer = fc.Trainer(model)
    with pytest.raises(fc.errors.NonFiniteError):
        trainer.fit(nan_at(X, 0, 0).astype(np.float32), Y, shuffle=False, verbose=False)
    trainer.fit(x, Y, verbose=False)
    assert np.isfinite(trainer.predict(x)).all()


# ---- where it began --------------------------------------------------------------------------------------------------


def network() -> fc.nn.Sequential:
    model = small_net()
    model(X)
    return model


def test_a_parameter_is_named():
    model = network()
    kernel = model[3].kernel.numpy().copy()
    kernel[2, 1] = -np.inf
    model[3].kernel.assign(kernel)
    found = first_non_finite(model, Batch(X, Y))
    assert found == "parameter 'layers.3.kernel' is -inf at (2, 1) already. Start from finite parameters."


def test_rows_of_several_axes_are_named():
    x = np.ones((2, 3, 4))
    x[1, 2, 0] = np.nan
    found = first_non_finite(fc.nn.Flatten(), Batch(x))
    assert found.startswith("x of the batch is nan in row 1 (index (2, 0) of the row).")


def test_looking_changes_nothing():
    model = network().train()
    state, numbers = model.state_dict(), fc.random.random_state().words[1]
    assert "every layer's output is finite" in first_non_finite(model, Batch(X, Y))
    assert same(model.state_dict(), state)
    assert fc.random.random_state().words[1] == numbers


class Several(fc.nn.Module):
    """Returns more than one tensor, the last of them infinite."""

    def forward(self, x):
        return {"a": x, "b": (x.sum(), 3, x / 0.0)}


class Keeping(fc.nn.Module):
    """Keeps a tensor of the graph, so that it cannot be copied."""

    def __init__(self):
        super().__init__()
        self.dense = fc.nn.Dense(1, dtype=F64, in_features=3)

    def forward(self, x):
        self.kept = self.dense(x)
        return self.kept


def test_modules_may_return_several_tensors():
    assert "the output of layer 'Several' is the first" in first_non_finite(Several(), Batch(X))


def test_a_model_that_cannot_be_copied_is_still_diagnosed():
    model = Keeping()
    model(X)
    assert "the layers cannot be looked at one by one" in first_non_finite(model, Batch(X))
