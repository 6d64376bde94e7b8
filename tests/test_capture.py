"""Captured steps: the bits of eager ones, what is refused and how, and what a replay costs."""

from __future__ import annotations

import numpy as np
import pytest

import fcdense as fc
from tests.capturing import LABELS, STEPS, X, adam, network, training
from tests.training import same


def outcome(make_model, make_optimizer, captured: bool, change=None, **step_options) -> tuple:
    """Losses, model, optimizer and gradients after some steps."""
    model = make_model()
    model(X[0])
    optimizer = make_optimizer(model.parameters())
    eager = training(model, optimizer, **step_options)
    step = fc.capture(eager) if captured else lambda x, y: eager(fc.tensor(x), fc.tensor(y))
    losses = []
    for number, (x, y) in enumerate(zip(X, LABELS, strict=True)):
        if change is not None:
            change(number, model, optimizer)
        losses.append(step(x, y).item())
    assert not captured or step.is_recorded
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters() if p.has_grad}
    state = optimizer.state_dict()
    counts = {key: state[key] for key in ("steps", "skipped_steps")} | {"norm": optimizer.gradient_norm}
    return losses, model.state_dict(), gradients, state["parameters"], counts


def assert_same_bits(make_model, make_optimizer, change=None, **step_options) -> None:
    eager, captured = (
        outcome(make_model, make_optimizer, captured, change, **step_options) for captured in (False, True)
    )
    assert captured[0] == eager[0]
    assert same(captured[1], eager[1])
    # A gradient that went straight into an update is not there.
    assert same(captured[2], {name: eager[2][name] for name in captured[2]})
    assert all(eager[2][name].ndim == 2 for name in eager[2].keys() - captured[2].keys())
    assert all(same(captured[3][name], eager[3][name]) for name in eager[3])
    assert captured[4] == eager[4]


# ---- the same bits ---------------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": lambda p: fc.optim.SGD(p, learning_rate=0.1),
    "momentum": lambda p: fc.optim.SGD(p, learning_rate=0.1, momentum=0.9, nesterov=True),
    "adam": adam,
    "adamw": lambda p: fc.optim.AdamW(p, learning_rate=0.05, weight_decay=0.1),
    "rmsprop": lambda p: fc.optim.RMSprop(p, learning_rate=0.01, momentum=0.5),
    "clipped": lambda p: adam(p, clip_norm=0.5),
    "schedule": lambda p: adam(p, learning_rate=fc.optim.schedules.CosineDecay(0.1, 5)),
    "schedule of one's own": lambda p: fc.optim.SGD(p, learning_rate=lambda step: 0.1 / (1 + step)),
}

NETWORKS = {
    "dense": network,
    "dropout": lambda: network(fc.nn.Dropout(0.4)),
    "layer norm": lambda: network(fc.nn.LayerNorm()),
    "batch norm": lambda: network(fc.nn.BatchNorm()),
    "spectral norm": lambda: fc.manual_seed(6) or network(fc.nn.SpectralNorm(fc.nn.Dense(8))),
    "activation of one's own": lambda: network(fc.nn.Dense(8, lambda x: x * np.tanh(x) + 0.5 * abs(x))),
    "softmax inside": lambda: network(fc.nn.Dense(8, "softmax"), fc.nn.LeakyReLU()),
    "regularizers": lambda: network(fc.nn.Dense(8, kernel_regularizer="l2", bias_regularizer="l1")),
    "constraints": lambda: network(fc.nn.Dense(8, kernel_constraint=fc.constraints.max_norm(0.5))),
    "float64": lambda: network(dtype="float64"),
    "residual": lambda: Residual(),
}


class Residual(fc.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        fc.manual_seed(5)
        self.first, self.last = fc.nn.Dense(5, "tanh"), fc.nn.Dense(3)

    def forward(self, x):
        hidden = self.first(x) + x
        return self.last(fc.concatenate([hidden, hidden.T.reshape(hidden.shape)], axis=1))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name):
    assert_same_bits(lambda: network(fc.nn.Dropout(0.2)), OPTIMIZERS[name])


@pytest.mark.filterwarnings("ignore::fcdense.errors.DTypeWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    assert_same_bits(NETWORKS[name], adam)


def test_a_check_for_finite_gradients():
    assert_same_bits(network, adam, check_finite=True, gradient_scale=0.25)


def test_rates_set_between_steps():
    def change(number, model, optimizer):
        optimizer.learning_rate = 0.1 / (number + 1)

    assert_same_bits(network, adam, change)


def test_a_layer_that_is_frozen_and_thawed():
    def change(number, model, optimizer):
        if number in (3, 5):
            model[0].freeze() if number == 3 else model[0].unfreeze()

    assert_same_bits(network, adam, change)


def test_modes_that_come_and_go():
    def change(number, model, optimizer):
        model.train(number % 3 != 2)

    assert_same_bits(lambda: network(fc.nn.Dropout(0.5), fc.nn.BatchNorm()), adam, change)


def test_an_attribute_of_a_layer_that_changes():
    def change(number, model, optimizer):
        model[1].rate = 0.1 * number

    assert_same_bits(lambda: network(fc.nn.Dropout(0.5)), adam, change)


def test_a_seed_set_between_steps():
    def change(number, model, optimizer):
        if number == 4:
            fc.manual_seed(9)

    assert_same_bits(lambda: network(fc.nn.Dropout(0.5)), adam, change)


def test_lazy_layers_and_an_optimizer_made_inside_of_the_first_call():
    def run(captured: bool) -> dict:
        model, made = network(), []

        def step(x, y):
            prediction = model(x)
            optimizer = made[0] if made else adam(model.parameters())
            made[:] = [optimizer]
            optimizer.zero_grad()
            fc.losses.cross_entropy(prediction, y).backward()
            optimizer.step()

        run_step = fc.capture(step) if captured else lambda x, y: step(fc.tensor(x), fc.tensor(y))
        for x, y in zip(X, LABELS, strict=True):
            assert run_step(x, y) is None
        return model.state_dict()

    assert same(run(True), run(False))


def test_gradients_that_add_up_over_calls():
    """Two calls to a step: the first writes the gradients, the second adds to them; each has its own recording."""

    def run(captured: bool) -> tuple[dict, int]:
        model = network()
        model(X[0])
        optimizer = adam(model.parameters())

        def add(x, y):
            fc.losses.cross_entropy(model(x), y).backward()

        step = fc.capture(add) if captured else lambda x, y: add(fc.tensor(x), fc.tensor(y))
        for number, (x, y) in enumerate(zip(X, LABELS, strict=True)):
            step(x, y)
            if number % 2:
                optimizer.step(gradient_scale=0.5)
                optimizer.zero_grad()
        return model.state_dict(), len(step._variants) if captured else 2

    assert same(run(True)[0], run(False)[0])
    assert run(True)[1] == 2


@pytest.mark.parametrize("device", ["cpu", "numpy", "reference"])
def test_gradients_that_a_step_takes_in_hand(device):
    def run(captured: bool) -> list[dict]:
        with fc.use_device(device):
            model = network()
            model(X[0])
            optimizer = adam(model.parameters())
            eager = training(model, optimizer)

            def step(x, y):
                eager(x, y)
                return {name: p.grad for name, p in model.named_parameters()}

            run_step = fc.capture(step) if captured else lambda x, y: step(fc.tensor(x), fc.tensor(y))
            return [
                {name: g.numpy().copy() for name, g in run_step(x, y).items()} for x, y in zip(X, LABELS, strict=True)
            ]

    assert all(same(ours, theirs) for ours, theirs in zip(run(True), run(False), strict=True))


def test_gradients_that_nobody_takes_in_hand():
    """Read after a replay, they are those of the eager step, or there are none."""
    model = network()
    model(X[0])
    optimizer = adam(model.parameters())
    step = fc.capture(training(model, optimizer))
    for x, y in zip(X, LABELS, strict=True):
        step(x, y)
    consumed = {p.name for p in model.parameters() if p.grad is None}
    served = [how for _, how in step.calls()]
    is_joined = "Numba: weight gradient and update in one pass" in served
    assert consumed == ({"layers.0.kernel", "layers.1.kernel"} if is_joined else set())
    fc.losses.cross_entropy(model(X[0]), LABELS[0]).backward()  # overwrites what is not there, adds to the rest
    assert all(p.has_grad for p in model.parameters())


def test_a_leaf_of_ones_own_and_a_gradient_of_the_input():
    w = fc.tensor(np.ones((5, 2)), requires_grad=True)

    @fc.capture
    def step(x):
        w.zero_grad()
        x.zero_grad()
        loss = (x @ w).sum() ** 2
        loss.backward()
        with fc.no_grad():
            w[:] = w - 0.01 * w.grad
        return loss, x.grad

    weights = np.ones((5, 2))
    for rows in X.astype(np.float64)[:4]:
        total = (rows @ weights).sum()
        loss, slope = step(fc.tensor(rows, requires_grad=True))
        np.testing.assert_allclose(loss.item(), total**2)
        np.testing.assert_allclose(slope.numpy(), np.tile(2 * total * weights.sum(axis=1), (6, 1)), rtol=1e-12)
        expected = np.tile(2 * total * rows.sum(axis=0)[:, None], (1, 2))
        np.testing.assert_allclose(w.grad.numpy(), expected, rtol=1e-12)
        weights -= 0.01 * expected
        np.testing.assert_allclose(w.numpy(), weights, rtol=1e-12)
        w.grad = None  # what happens to gradients between two replays changes nothing of the next


def test_second_derivatives():
    """A PINN's residual: u'' of a small network."""
    model = fc.nn.Sequential(fc.nn.Dense(6, "tanh", dtype="float64"), fc.nn.Dense(1, dtype="float64"))
    points = np.linspace(-1, 1, 8)[:, None]
    model(points)
    optimizer = fc.optim.SGD(model.parameters(), learning_rate=0.1)

    def step(x):
        optimizer.zero_grad()
        u = model(x)
        slope = fc.grad(u.sum(), x, create_graph=True)
        curvature = fc.grad(slope.sum(), x, create_graph=True)
        loss = ((curvature - u) ** 2).mean()
        loss.backward()
        optimizer.step()
        return loss

    state = model.state_dict()
    leaf = fc.tensor(points, requires_grad=True)
    expected = [step(fc.tensor(points, requires_grad=True)).item() for _ in range(5)]
    model.load_state_dict(state)
    captured = fc.capture(step)
    assert [captured(leaf).item() for _ in range(5)] == expected


ARGUMENTS = {
    "whole": lambda x: x,
    "rows of more": lambda x: np.concatenate([x, x])[len(x) :],
    "read only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "columns first": np.asfortranarray,
    "every other": lambda x: np.repeat(x, 2, 0)[::2],
    "unaligned": lambda x: np.frombuffer(b"." + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape),
    "backwards": lambda x: x[::-1].copy()[::-1],
    "tensor": fc.tensor,
}


@pytest.mark.parametrize("form", ARGUMENTS)
def test_arguments_are_read_where_they_lie(form):
    make, given = ARGUMENTS[form], [np.full((40, 3), value, np.float32) for value in (1, 2, 3)]
    step = fc.capture(lambda x: np.tanh(x) * 2.0)
    expected = [(np.tanh(fc.tensor(x)) * 2.0).numpy() for x in given]
    for x, y in zip([*given, *given], [*expected, *expected], strict=True):
        np.testing.assert_array_equal(step(make(x)).numpy(), y)
    step.inputs[0][:] = 5.0
    np.testing.assert_array_equal(step.replay().numpy(), (np.tanh(fc.tensor(np.full((40, 3), 5.0, "f"))) * 2.0).numpy())
    np.testing.assert_array_equal(step(make(given[0])).numpy(), expected[0])


def test_a_tensor_that_the_step_changes_may_be_an_argument():
    state = fc.tensor(np.arange(64.0, dtype=np.float32))
    expected = np.arange(64.0, dtype=np.float32)

    @fc.capture
    def step(x):
        with fc.no_grad():
            state[:] = x + 1.0
            return x * 2.0 + state

    for _ in range(5):
        result = step(state).numpy().copy()
        np.testing.assert_array_equal(result, expected * 2.0 + (expected + 1.0))
        expected += 1.0
        np.testing.assert_array_equal(state.numpy(), expected)


def test_an_argument_may_be_a_result():
    step = fc.capture(lambda x, y: (x, x[1:] + y, y))
    for value in (1.0, 2.0, 3.0, 4.0):
        x, y = np.full((3, 2), value), np.full(2, -value)
        first, total, last = (tensor.numpy() for tensor in step(x, y))
        np.testing.assert_array_equal(first, x)
        np.testing.assert_array_equal(total, np.zeros((2, 2)))
        np.testing.assert_array_equal(last, y)


def test_a_result_may_be_the_next_argument():
    x = np.linspace(-1, 1, 200 * 64, dtype=np.float32).reshape(200, 64)
    step = fc.capture(lambda x: np.tanh(x[:, ::-1]) + 0.25)
    expected, given = fc.tensor(x), x
    for _ in range(5):
        expected = np.tanh(expected[:, ::-1]) + 0.25
        given = step(given).numpy()
        np.testing.assert_array_equal(given, expected.numpy())


def test_inference_and_its_buffers():
    model = network(fc.nn.Dropout(0.5), fc.nn.BatchNorm()).eval()
    model(X[0])

    @fc.capture
    def forward(x):
        """The logits and classes' probabilities."""
        with fc.no_grad():
            logits = model(x)
            return {"logits": logits, "both": (fc.softmax(logits), [logits.max(axis=1)])}

    assert forward.__doc__ == "The logits and classes' probabilities."
    for x in X:
        out = forward(x)
        np.testing.assert_array_equal(out["logits"].numpy(), model(x).numpy())
        np.testing.assert_array_equal(out["both"][1][0].numpy(), model(x).numpy().max(axis=1))
    assert forward(X[0]) is forward(X[1])
    (buffer,) = forward.inputs
    buffer[:] = X[2]
    np.testing.assert_array_equal(forward.replay()["logits"].numpy(), model(X[2]).numpy())
    with fc.no_grad():
        buffer[:] = X[3]
    np.testing.assert_array_equal(forward(buffer)["logits"].numpy(), model(X[3]).numpy())


@pytest.mark.parametrize("loss", ["mse", "mae", "huber", "binary_cross_entropy_with_logits"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bool", "int64"])
def test_losses_of_tensor_targets(loss, dtype):
    function = fc.losses.TABLE[loss]
    given = (np.random.default_rng(2).uniform(size=(STEPS, 6, 2)) > 0.5).astype(dtype)
    p = np.random.default_rng(3).normal(size=(6, 2)).astype(np.float32)
    captured = fc.capture(lambda p, t: function(p, t))
    for t in given:
        assert captured(p, t).item() == function(fc.tensor(p), t).item()


@pytest.mark.parametrize("form", ["numbers", "a column", "one-hot", "float64 rows", "axes"])
def test_cross_entropy_of_tensor_targets(form):
    labels = LABELS[:, :, None] if form == "a column" else LABELS
    if form in ("one-hot", "float64 rows"):
        labels = np.eye(3)[LABELS].astype("int64" if form == "one-hot" else "float64")
    logits = X[:, :, :3]
    if form == "axes":
        labels, logits = LABELS.reshape(STEPS, 3, 2), logits.reshape(STEPS, 3, 2, 3)
    captured = fc.capture(fc.losses.cross_entropy)
    for z, t in zip(logits, labels, strict=True):
        expected = fc.losses.cross_entropy(fc.tensor(z), t).item()
        assert captured(z, t).item() == expected
        assert fc.losses.cross_entropy(fc.tensor(z), fc.tensor(t)).item() == expected


def test_class_numbers_out_of_range_are_nan_in_a_replay():
    captured = fc.capture(fc.losses.cross_entropy)
    for z, t in zip(X[:3], LABELS, strict=False):
        captured(z[:, :3], t)
    assert np.isnan(captured(X[0, :, :3], np.full(6, 3)).item())
