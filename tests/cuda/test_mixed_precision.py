"""Training in mixed precision on the emulated GPU, against a NumPy program that rounds in the same places."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fcdense as fc
from fcdense.backends import Device
from fcdense.backends.cuda import CudaBackend
from fcdense.errors import DeviceError, NonFiniteError
from fcdense.precision import dtype_of
from tests import emulation
from tests.emulation import EmulatedDriver

pytestmark = pytest.mark.skipif(not emulation.is_available(), reason="no g++ here")
RNG = np.random.default_rng(0)
X, LABELS = RNG.normal(size=(6, 12, 8)).astype(np.float32), RNG.integers(0, 3, (6, 12))
WIDTHS = (8, 9, 7, 3)
RATE, MOMENTUM, SCALE = 0.25, 0.5, 2.0**10
in_16_bits = pytest.mark.parametrize("precision", ["bfloat16", "float16"])
DRIVER = EmulatedDriver()
EMU = Device("emu", 0, backend=CudaBackend(DRIVER))


@pytest.fixture(autouse=True)
def _emulated() -> Iterator[None]:
    with fc.use_device(EMU):
        yield


def network() -> fc.nn.Sequential:
    fc.manual_seed(0)
    acts = ("relu", "leaky_relu", None)
    return fc.nn.Sequential(
        *(fc.nn.Dense(o, act, in_features=i) for i, o, act in zip(WIDTHS, WIDTHS[1:], acts, strict=False))
    )


def trained(precision: str, *, captured: bool = False, accumulate: int = 1) -> tuple[list[float], list[Any], Any]:
    """The losses of a few steps of SGD with momentum, the parameters after them, and the optimizer."""
    model = network()
    optimizer = fc.optim.SGD(model.parameters(), RATE, momentum=MOMENTUM)
    scale = fc.LossScale(SCALE)

    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        for part in range(accumulate):
            rows = slice(part * len(X[0]) // accumulate, (part + 1) * len(X[0]) // accumulate)
            with fc.use_precision(precision):
                loss = fc.losses.cross_entropy(model(x[rows]), y[rows])
            scale.backward(loss)
        optimizer.step(loss_scale=scale, gradient_scale=1 / accumulate)
        return loss

    run = fc.capture(step) if captured else step
    losses = [run(fc.tensor(x), fc.tensor(y)).item() for x, y in zip(X, LABELS, strict=True)]
    assert optimizer.skipped_steps == 0
    return losses, [p.numpy().copy() for p in model.parameters()], optimizer


def by_hand(precision: str) -> tuple[list[float], list[Any]]:
    """The same in NumPy: float64 between the roundings, which are where the layers store 16 bits or float32."""
    narrow = dtype_of(precision)

    def round16(x: Any) -> Any:
        return np.asarray(x, np.float32).astype(narrow).astype(np.float64)

    def round32(x: Any) -> Any:
        return np.asarray(x, np.float32).astype(np.float64)

    with fc.use_device("cpu"):
        parameters = [p.numpy().astype(np.float64) for p in network().parameters()]
    velocities, losses = [np.zeros_like(p) for p in parameters], []
    for x, labels in zip(X, LABELS, strict=True):
        kernels, biases = [round16(w) for w in parameters[::2]], parameters[1::2]
        x0 = round16(x)
        y1 = round16(np.maximum(x0 @ kernels[0] + biases[0], 0.0))
        z2 = y1 @ kernels[1] + biases[1]
        y2 = round16(np.where(z2 > 0.0, z2, 0.01 * z2))
        logits = round16(y2 @ kernels[2] + biases[2])
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        losses.append(-np.log(p[np.arange(12), labels]).mean())
        dz3 = round16(SCALE * round32((p - np.eye(3)[labels]) / 12))
        exact2 = dz3 @ kernels[2].T * np.where(y2 > 0.0, 1.0, 0.01)
        dz2 = round16(exact2)
        exact1 = dz2 @ kernels[1].T * (y1 > 0.0)
        dz1 = round16(exact1)
        gradients = [x0.T @ dz1, exact1.sum(axis=0), y1.T @ dz2, exact2.sum(axis=0), y2.T @ dz3, dz3.sum(axis=0)]
        for k, g in enumerate(gradients):
            velocities[k] = round32(MOMENTUM * velocities[k] + round32(g) / SCALE)
            parameters[k] = round32(parameters[k] - RATE * velocities[k])
    return losses, parameters


def distance(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> float:
    """The largest difference of two trainings, in losses and parameters."""
    numbers = [np.concatenate([np.ravel(run[0]), *map(np.ravel, run[1])]) for run in (ours, theirs)]
    return float(np.abs(numbers[0] - numbers[1]).max())


@in_16_bits
def test_training_is_that_of_a_numpy_program(precision: str) -> None:
    """To a fiftieth of the last place of 16 bits, room for one sum that float32 and float64 round apart.

    From training in float32 it is farther than that, and not as far as many last places.
    """
    last_place = {"bfloat16": 2.0**-8, "float16": 2.0**-11}[precision]
    mixed, program, single = trained(precision), by_hand(precision), trained("float32")
    assert distance(mixed, program) <= last_place / 50
    assert last_place / 8 < distance(mixed, single) < 8 * last_place
    assert mixed[0][-1] < 0.9 * mixed[0][0]


@in_16_bits
def test_rows_of_probabilities_in_captured_steps(precision: str) -> None:
    def run(captured: bool) -> list[float]:
        model, scale = network(), fc.LossScale(SCALE)
        optimizer = fc.optim.SGD(model.parameters(), RATE)

        def step(x: Any, y: Any) -> Any:
            optimizer.zero_grad()
            with fc.use_precision(precision):
                loss = fc.losses.cross_entropy(model(x), y)
            scale.backward(loss)
            optimizer.step(loss_scale=scale)
            return loss

        called = fc.capture(step) if captured else step
        rows = 0.8 * np.eye(3, dtype=np.float32)[LABELS] + np.float32(0.2 / 3)
        return [called(fc.tensor(x), fc.tensor(y)).item() for x, y in zip(X, rows, strict=True)]

    losses = run(captured=True)
    assert losses == run(captured=False)
    assert np.isfinite(losses).all()


@in_16_bits
@pytest.mark.parametrize("accumulate", [1, 2])
def test_captured_steps_are_eager_ones(precision: str, accumulate: int) -> None:
    eager, captured = (trained(precision, captured=how, accumulate=accumulate) for how in (False, True))
    assert eager[0] == captured[0]
    for ours, theirs in zip(eager[1], captured[1], strict=True):
        np.testing.assert_array_equal(ours, theirs)


@in_16_bits
def test_slots_and_gradients_are_float32(precision: str) -> None:
    _, _, optimizer = trained(precision)
    for parameter in optimizer.parameters:
        assert parameter.dtype == parameter.grad.dtype == np.float32
    state = optimizer.state_dict()["parameters"]
    assert all(entry["velocity"].dtype == np.float32 for entry in state.values())
    resumed = fc.optim.SGD(network().parameters(), RATE, momentum=MOMENTUM)
    resumed.load_state_dict(optimizer.state_dict())
    for name, entry in resumed.state_dict()["parameters"].items():
        np.testing.assert_array_equal(entry["velocity"], state[name]["velocity"])


def test_a_loss_scale_is_cast_once() -> None:
    """To the dtype of the loss."""
    model, scale = network(), fc.LossScale()
    copies = {}
    for scaled in (False, True, False, True):
        for parameter in model.parameters():
            parameter.zero_grad()
        before = len(DRIVER.launches)
        with fc.use_precision("float16"):
            loss = fc.losses.cross_entropy(model(X[0]), LABELS[0])
        scale.backward(loss) if scaled else loss.backward()
        copies[scaled] = DRIVER.launches[before:].count("copy")
    assert copies[True] == copies[False] + 1


@in_16_bits
def test_a_steady_step_casts_no_parameter(precision: str) -> None:
    """Nothing of the parameters; their gradients come out in float32 as they are."""
    model = network()
    optimizer = fc.optim.Adam(model.parameters(), 0.01)
    for x, y in zip(X[:3], LABELS, strict=False):
        before = len(DRIVER.launches)
        optimizer.zero_grad()
        with fc.use_precision(precision):
            fc.losses.cross_entropy(model(x), y).backward()
        optimizer.step()
        copies = DRIVER.launches[before:].count("copy")
    # Of the input; of float16, of the logits and their gradient too.
    assert copies == {"bfloat16": 1, "float16": 3}[precision]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_fit_predict_and_save(precision: str, tmp_path: Any) -> None:
    data = fc.data.digits().split(0.9, seed=0)
    x, y = data.x_train[:96], data.y_train[:96]
    results = []
    for capture in (False, True):
        fc.manual_seed(0)
        model = fc.nn.Sequential(
            fc.nn.Dense(24, "relu"), fc.nn.LayerNorm(), fc.nn.Dropout(0.1), fc.nn.Dense(16, "gelu"), fc.nn.Dense(10)
        )
        trainer = fc.Trainer(
            model, metrics=["accuracy"], learning_rate=0.02, clip_norm=1.0, precision=precision, capture=capture
        )
        history = trainer.fit(x, y, epochs=4, batch_size=32, validation_data=(x, y), verbose=False)
        results.append((history["loss"], history["val_accuracy"], trainer.predict(x)))
        assert trainer.not_captured == ("" if capture else "capture=False")
    for eager, captured in zip(*results, strict=True):
        np.testing.assert_array_equal(eager, captured)
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    fc.save(tmp_path / "model.safetensors", model)
    loaded = fc.load(tmp_path / "model.safetensors")
    with fc.use_precision(precision):
        np.testing.assert_array_equal(fc.predict(loaded, x), results[1][2])
    assert "CUDA" in str(fc.explain(model, x))


def test_tf32_is_seen_by_the_products_alone() -> None:
    """Captured as well, and no other recording is taken for it."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(66, 70)).astype(np.float32)
    layer = fc.nn.Dense(65, in_features=70)
    captured = fc.capture(lambda x: layer(x))
    exact = x.astype(np.float64) @ layer.kernel.numpy()
    errors = {}
    for precision in ("tf32", "float32", "tf32"):
        with fc.use_precision(precision), fc.no_grad():
            for call in (layer, captured, captured, captured):
                y = call(fc.tensor(x))
                assert y.dtype == np.float32
                errors.setdefault(precision, []).append(np.abs(y.numpy() - exact).max())
    assert max(errors["float32"]) < 1e-5 < min(errors["tf32"])
    assert max(errors["tf32"]) < 2.0**-10 * (np.abs(x) @ np.abs(layer.kernel.numpy())).max()


def test_a_captured_step_may_choose_tf32_inside() -> None:
    layer = fc.nn.Dense(65, in_features=70)
    x = np.random.default_rng(6).normal(size=(66, 70)).astype(np.float32)

    def step(x: Any) -> Any:
        with fc.no_grad(), fc.use_precision("tf32"):
            return layer(x)

    captured = fc.capture(step)
    for _ in range(3):
        np.testing.assert_array_equal(captured(fc.tensor(x)).numpy(), step(fc.tensor(x)).numpy())


def test_the_cpu_has_no_tf32() -> None:
    refused = pytest.raises(DeviceError, match="precision 'tf32' needs a GPU")
    with fc.use_device("cpu"), fc.use_precision("tf32"), refused:
        fc.nn.Dense(3, in_features=2)(np.ones((1, 2), np.float32))


def test_a_trainer_in_tf32() -> None:
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(64, 70)).astype(np.float32), rng.normal(size=(64, 66)).astype(np.float32)

    def losses(precision: str | None, around: str = "float32") -> list[float]:
        fc.manual_seed(0)
        trainer = fc.Trainer(fc.nn.Dense(66), "mse", "sgd", learning_rate=0.1, precision=precision)
        with fc.use_precision(around):
            return trainer.fit(x, y, epochs=2, batch_size=64, verbose=False)["loss"]

    assert losses("tf32") == losses(None, "tf32") != losses("float32") == losses(None)
    with fc.use_device("cpu"), pytest.raises(DeviceError, match=r"precision 'tf32' needs a GPU.*Trainer\(precision"):
        losses("tf32")


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"sample_weight": np.arange(1.0, 6.0)}])
def test_the_loss_takes_bfloat16_logits_as_if_they_were_float32(options: dict[str, Any]) -> None:
    rng = np.random.default_rng(9)
    values, y = rng.normal(size=(5, 7)).astype(np.float32), rng.integers(0, 7, 5)
    found = []
    for widen in (False, True):
        x = fc.tensor(values, requires_grad=True)
        z = x.astype("bfloat16")
        loss = fc.losses.cross_entropy(z.astype("float32") if widen else z, y, **options)
        (first,) = fc.grad(loss, [x], retain_graph=True)
        (again,) = fc.grad(loss, [x], create_graph=True)
        (second,) = fc.grad((again * again).sum(), [x])
        assert loss.dtype == np.float32
        found.append([loss.numpy(), first.numpy(), second.numpy()])
    for ours, theirs in zip(found[0][:2], found[1][:2], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(found[0][2], found[1][2], rtol=0, atol=2.0**-8 * np.abs(found[1][2]).max())


def test_a_float16_fit_that_learns_nothing_says_so(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=(8, 5)).astype(np.float32), 1e3 * rng.normal(size=(8, 3)).astype(np.float32)
    trainer = fc.Trainer(fc.nn.Dense(3), "mse", "sgd", precision="float16")
    trainer.fit(x, y, batch_size=4, verbose=False)
    assert trainer.optimizer.steps == 0
    assert "float16: none of the 2 batches of an epoch changed the model" in caplog.text
    assert "The loss scale has come down to 16384" in caplog.text
    caplog.clear()
    trainer.fit(x, y, epochs=8, batch_size=4, verbose=False)
    assert trainer.optimizer.steps
    assert len(caplog.records) < 8


def test_what_is_too_large_for_float16_is_named() -> None:
    trainer = fc.Trainer(fc.nn.Sequential(fc.nn.Dense(3), fc.nn.Dense(2)), "mse", "sgd", precision="float16")
    x = np.full((4, 5), 1e5, np.float32)
    with pytest.raises(
        NonFiniteError, match=r"layer 'layers.0' .*float16 ends at 65504: scale the data, or train in bfl"
    ):
        trainer.fit(x, np.zeros((4, 2), np.float32), verbose=False)
