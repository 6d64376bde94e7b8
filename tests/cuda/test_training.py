"""Training and inference on the emulated GPU, through the whole library, against the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import fcdense as fc
from fcdense.backends import Device
from fcdense.backends.cuda import CudaBackend
from fcdense.captured_rounds import Rounds
from fcdense.cuda.plan import Plan
from tests import emulation
from tests.emulation import EmulatedDriver

pytestmark = pytest.mark.skipif(not emulation.is_available(), reason="no g++ here")
RNG = np.random.default_rng(0)
X, LABELS = RNG.normal(size=(5, 12, 8)).astype(np.float32), RNG.integers(0, 3, (5, 12))


@pytest.fixture(scope="module")
def emu() -> Device:
    return Device("emu", 0, backend=CudaBackend(EmulatedDriver()))


@pytest.fixture
def on(emu: Device) -> Iterator[Device]:
    with fc.use_device(emu):
        yield emu


NETWORKS: dict[str, Callable[[], Any]] = {
    "plain": lambda: fc.nn.Sequential(fc.nn.Dense(9, "gelu", in_features=8), fc.nn.Dense(3, in_features=9)),
    "layer norm": lambda: fc.nn.Sequential(fc.nn.Dense(9, "relu"), fc.nn.LayerNorm(), fc.nn.Dense(3)),
    "batch norm": lambda: fc.nn.Sequential(fc.nn.Dense(9, "tanh"), fc.nn.BatchNorm(), fc.nn.Dense(3)),
    "dropout": lambda: fc.nn.Sequential(fc.nn.Dense(9, "silu"), fc.nn.Dropout(0.4), fc.nn.Dense(3)),
    "softmax inside": lambda: fc.nn.Sequential(fc.nn.Dense(9, "softmax"), fc.nn.Dense(3)),
}
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda p: fc.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: fc.optim.Adam(p, 0.01),
    "adamw, clipped": lambda p: fc.optim.AdamW(p, 0.01, weight_decay=0.1, clip_norm=0.5),
    "a schedule": lambda p: fc.optim.RMSprop(p, lambda step: 0.01 / (step + 1)),
}


def trained(network: str, optimizer: str, captured: bool) -> tuple[list[float], list[Any]]:
    """The losses of a few steps on the current device, and the parameters after them."""
    fc.manual_seed(0)
    model = NETWORKS[network]()
    model(X[0])
    chosen = OPTIMIZERS[optimizer](model.parameters())

    def step(x: Any, y: Any) -> Any:
        chosen.zero_grad()
        loss = fc.losses.cross_entropy(model(x), y)
        loss.backward()
        chosen.step()
        return loss

    run = fc.capture(step) if captured else step
    losses = [run(fc.tensor(x), fc.tensor(y)).numpy().item() for x, y in zip(X, LABELS, strict=True)]
    return losses, [p.numpy().copy() for p in model.parameters()]


CASES = [(network, "adam") for network in NETWORKS] + [("plain", name) for name in OPTIMIZERS if name != "adam"]


@pytest.mark.parametrize(("network", "optimizer"), CASES)
def test_steps_are_those_of_the_cpu(network: str, optimizer: str, emu: Device) -> None:
    with fc.use_device("cpu"):
        expected = trained(network, optimizer, False)
    with fc.use_device(emu):
        eager, captured = (trained(network, optimizer, how) for how in (False, True))
    np.testing.assert_allclose(eager[0], expected[0], rtol=1e-5)
    for ours, theirs, replayed in zip(eager[1], expected[1], captured[1], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)
        np.testing.assert_array_equal(replayed, ours)
    assert captured[0] == eager[0]


def test_fit_and_predict(on: Device) -> None:
    data = fc.data.digits().split(0.9, seed=0)
    x, y = data.x_train[:96], data.y_train[:96]
    fc.manual_seed(0)
    model = fc.nn.Sequential(fc.nn.Dense(24, "relu"), fc.nn.Dense(10))
    trainer = fc.Trainer(model, "cross_entropy", "adam", metrics=["accuracy"], learning_rate=0.01)
    history = trainer.fit(x, y, epochs=4, batch_size=32, validation_data=(x, y), verbose=False)
    assert not trainer.not_captured
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    assert next(iter(model.parameters())).device is on
    logits = fc.predict(model, x)
    assert isinstance(logits, np.ndarray)
    np.testing.assert_allclose(logits, model(x).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("bad", [None, 60])
def test_steps_that_take_their_rows_on_the_device(
    bad: int | None, precision: str, on: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many steps in one call are those of one call each, to the last bit; also around a batch that is not finite."""
    x, y = RNG.normal(size=(77, 6)).astype(np.float32), RNG.integers(0, 3, 77)
    if bad is not None:
        x[bad, 2] = np.inf
    rounds: list[int] = []
    run = Rounds.run
    monkeypatch.setattr(Rounds, "run", lambda self, rows: rounds.append(run(self, rows)) or rounds[-1])

    def fitted(capture: bool) -> tuple[list[Any], list[float]]:
        fc.manual_seed(3)
        model = fc.nn.Sequential(fc.nn.Dense(5, "tanh"), fc.nn.Dropout(0.3), fc.nn.Dense(3))
        options: Any = {"metrics": ["accuracy"], "capture": capture, "precision": precision}
        trainer = fc.Trainer(model, "cross_entropy", "adam", **options)
        with contextlib.suppress(fc.errors.NonFiniteError):
            history = trainer.fit(x, y, epochs=3, batch_size=8, verbose=False)
            return [*model.state_dict().values()], history["loss"]
        return [*model.state_dict().values()], []

    (ours, losses), (theirs, expected) = fitted(True), fitted(False)
    assert max(rounds) > 1
    assert losses == expected
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_models_move_and_are_saved(emu: Device, tmp_path: Any) -> None:
    with fc.use_device("cpu"):
        model = NETWORKS["layer norm"]()
        there = model(X[0]).numpy()
    model.to(emu)
    np.testing.assert_allclose(model(fc.tensor(X[0], device=emu)).numpy(), there, rtol=1e-4, atol=1e-5)
    fc.save(tmp_path / "model.safetensors", model)
    np.testing.assert_allclose(fc.load(tmp_path / "model.safetensors")(X[0]).numpy(), there, rtol=1e-4, atol=1e-5)


def test_gradients_and_second_derivatives(on: Device) -> None:
    x = fc.tensor(X[0][:3].astype(np.float64), requires_grad=True)
    w = fc.tensor(RNG.normal(size=(8, 4)), requires_grad=True)
    assert fc.gradcheck(lambda x, w: fc.ops.dense(x, w, activation=fc.activations.get("tanh")).sum(), (x, w))
    (first,) = fc.grad((x**3).sum(), [x], create_graph=True)
    (second,) = fc.grad(first.sum(), [x])
    np.testing.assert_allclose(second.numpy(), 6 * x.numpy())


def test_a_learning_rate_that_changes_is_seen(on: Device) -> None:
    w = fc.nn.parameter(np.ones(4, np.float32))
    optimizer = fc.optim.SGD([w], 0.5)

    @fc.capture
    def step() -> None:
        optimizer.zero_grad()
        w.sum().backward()
        optimizer.step()

    for _ in range(3):
        step()
    optimizer.learning_rate = 0.0625
    step()
    np.testing.assert_array_equal(w.numpy(), 1.0 - 3 * 0.5 - 0.0625)


def test_a_step_that_is_not_finite_changes_nothing(on: Device) -> None:
    w = fc.nn.parameter(np.ones(4, np.float32))
    optimizer = fc.optim.Adam([w], 0.5)

    @fc.capture
    def step(x: Any) -> None:
        optimizer.zero_grad()
        loss = (w * x).sum()
        loss.backward()
        optimizer.step(check_finite=loss)

    for number in (1.0, np.nan, np.inf, np.nan):
        step(np.full(4, number, np.float32))
    once = w.numpy().copy()
    assert optimizer.skipped_steps == 3
    assert (once != 1.0).all()


def test_explain_tells_what_serves(on: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on.backend.products, "plan", Plan(on.backend.driver.architecture))  # without numba-cuda
    explained = fc.explain(NETWORKS["plain"](), X[0], LABELS[0], loss="cross_entropy")
    served = [line.served_by for line in explained.passes["training step"]]
    simt = "CUDA (emulated), as no other family takes these operands: simt float32, 64 x 64 x 16"
    assert served[0] == simt
    assert "CUDA (emulated)" in served
    layer = fc.nn.Dense(72, in_features=80)
    with fc.use_precision("bfloat16"):
        (*_, line) = fc.explain(layer, np.ones((70, 80), np.float32)).passes["forward"]
    assert line.served_by == "CUDA (emulated), by rule: mma bfloat16, 64 x 64 x 32"
