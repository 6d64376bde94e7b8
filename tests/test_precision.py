"""`use_precision`: what multiplies in 16 bits, what stays float32, and who refuses. On the reference backend."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

import fcdense as fc
from fcdense.errors import ArgumentError, DeviceError, DTypeError, UnknownNameError
from fcdense.precision import dtype_of
from fcdense.tensor import Tensor

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 8)).astype(np.float32)
LABELS = RNG.integers(0, 3, 12)
in_16_bits = pytest.mark.parametrize("precision", ["bfloat16", "float16"])


@pytest.fixture(autouse=True)
def _reference() -> Iterator[None]:
    with fc.use_device("reference"):
        fc.manual_seed(0)
        yield


def network(*between: fc.nn.Module) -> fc.nn.Sequential:
    return fc.nn.Sequential(fc.nn.Dense(9, "tanh", in_features=8), *between, fc.nn.Dense(3, in_features=9))


# ---- the context -----------------------------------------------------------------------------------------------------


def test_it_holds_inside_of_the_block() -> None:
    assert fc.current_precision() == "float32"
    with fc.use_precision("bfloat16"):
        assert fc.current_precision() == "bfloat16"
        with fc.use_precision("float32"):
            assert fc.current_precision() == "float32"
        with pytest.raises(KeyError), fc.use_precision("float16"):
            assert fc.current_precision() == "float16"
            raise KeyError
        assert fc.current_precision() == "bfloat16"
    assert fc.current_precision() == "float32"


def test_it_holds_in_one_thread() -> None:
    seen = []
    with fc.use_precision("bfloat16"):
        thread = threading.Thread(target=lambda: seen.append(fc.current_precision()))
        thread.start()
        thread.join()
    assert seen == ["float32"]


@pytest.mark.parametrize("name", ["float64", "half", None, np.float16, np.dtype(np.float16)])
def test_names_that_mean_nothing(name: object) -> None:
    with pytest.raises(UnknownNameError, match="precision"), fc.use_precision(name):  # type: ignore[arg-type]
        pass
    with pytest.raises(UnknownNameError, match="precision"):
        fc.Trainer(network(), precision=name or "none")  # type: ignore[arg-type]


def test_bfloat16_needs_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ArgumentError, match="pip install ml-dtypes"), fc.use_precision("bfloat16"):
        pass
    with fc.use_precision("float16"):
        assert fc.current_precision() == "float16"


# ---- dtypes ----------------------------------------------------------------------------------------------------------


@in_16_bits
def test_who_computes_in_what(precision: str) -> None:
    narrow = dtype_of(precision)
    model = network(fc.nn.LayerNorm(), fc.nn.Dropout(0.5), fc.nn.ReLU())
    y = fc.tensor(X)
    dtypes = {}
    with fc.use_precision(precision):
        for layer in model.children():
            y = layer(y)
            dtypes[type(layer).__name__] = y.dtype
        loss = fc.losses.cross_entropy(y, LABELS)
        with_rows = fc.losses.mse(y, np.zeros((12, 3)))
    assert dtypes == {"Dense": narrow, "LayerNorm": np.float32, "Dropout": np.float32, "ReLU": np.float32}
    assert loss.dtype == with_rows.dtype == np.float32
    loss.backward()  # outside of the block
    for parameter in model.parameters():
        assert parameter.dtype == np.float32
        assert parameter.grad is None or parameter.grad.dtype == np.float32


@in_16_bits
def test_activations_and_arithmetic_stay_narrow(precision: str) -> None:
    narrow = dtype_of(precision)
    with fc.use_precision(precision):
        y = network()(X)
        for z in (fc.nn.GELU()(y), fc.nn.Dropout(0.5)(y), y + 1.0, y * y, fc.softmax(y), y.sum(axis=0), y[1:]):
            assert z.dtype == narrow
        assert (y + fc.tensor(np.ones(3, np.float32))).dtype == np.float32


def test_other_dtypes_are_as_ever() -> None:
    for dtype in ("float64", "float16"):
        layer = fc.nn.Dense(3, in_features=8, dtype=dtype)
        expected = layer(X.astype(dtype)).numpy()
        with fc.use_precision("bfloat16"):
            np.testing.assert_array_equal(layer(X.astype(dtype)).numpy(), expected)
    layer = fc.nn.Dense(3, in_features=8)
    with fc.use_precision("float32"):
        assert layer(X).dtype == np.float32


@pytest.mark.filterwarnings("error")
@in_16_bits
def test_only_what_is_wider_than_the_layer_warns(precision: str) -> None:
    layer = fc.nn.Dense(3, in_features=8)
    with fc.use_precision(precision):
        for x in (X, X.astype(np.float16), np.ones((2, 8), np.int8)):
            layer(x)
        with pytest.warns(fc.errors.DTypeWarning, match="rounded to float32"):
            layer(X.astype(np.float64))


def test_float16_and_bfloat16_meet_in_float32() -> None:
    layer = fc.nn.Dense(3, in_features=8)
    results = []
    for precision in ("bfloat16", "float16"):
        with fc.use_precision(precision):
            results.append(layer(X))
    assert (results[0] + results[1]).dtype == np.float32
    assert results[0].astype("float16").dtype == np.float16
    assert results[1].astype("bfloat16").dtype == dtype_of("bfloat16")


@in_16_bits
def test_the_input_gets_a_gradient_of_its_own_dtype(precision: str) -> None:
    x = fc.tensor(X, requires_grad=True)
    model = network()
    with fc.use_precision(precision):
        (model(x) * 1.0).sum().backward()
    assert x.grad.dtype == np.float32
    expected = fc.tensor(X, requires_grad=True)
    model(expected).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), expected.grad.numpy(), rtol=0.05, atol=0.02)


@in_16_bits
def test_operands_that_are_no_parameters(precision: str) -> None:
    w = fc.tensor(RNG.normal(size=(8, 3)).astype(np.float32), requires_grad=True)
    narrow = dtype_of(precision)
    with fc.use_precision(precision):
        y = fc.ops.dense(fc.tensor(X), w * 2.0)
    rounded = X.astype(narrow).astype(float), (2 * w.numpy()).astype(narrow).astype(float)
    np.testing.assert_allclose(y.numpy().astype(float), rounded[0] @ rounded[1], rtol=2.0**-8, atol=1e-6)
    y.sum().backward()
    np.testing.assert_allclose(w.grad.numpy(), np.tile(2 * rounded[0].sum(axis=0)[:, None], 3), rtol=1e-5)
    with fc.use_precision(precision), pytest.raises(DTypeError, match="x is float64, the kernel float32"):
        fc.ops.dense(fc.tensor(X.astype(float)), w)


@in_16_bits
def test_spectral_norm(precision: str) -> None:
    layer = fc.nn.SpectralNorm(fc.nn.Dense(3, in_features=8))
    with fc.use_precision(precision):
        layer(X).sum().backward()
    assert layer.layer.kernel.grad.dtype == np.float32


@in_16_bits
def test_second_derivatives_are_those_of_float32(precision: str) -> None:
    w = fc.nn.parameter(RNG.normal(size=(8, 3)).astype(np.float32) / 4)
    results = []
    for chosen in ("float32", precision):
        x = fc.tensor(X[:4], requires_grad=True)
        with fc.use_precision(chosen):
            y = fc.ops.dense(x, w, activation=fc.activations.get("tanh"))
            (first,) = fc.grad(y.sum(), [x], create_graph=True)
            (second,) = fc.grad((first * first).sum(), [x])
        assert second.dtype == np.float32
        results.append(second.numpy())
    np.testing.assert_allclose(results[1], results[0], rtol=0.03, atol=0.02)
    assert np.abs(results[0]).max() > 0.2


# ---- models ----------------------------------------------------------------------------------------------------------


@in_16_bits
def test_losses_see_probabilities_through_the_cast(precision: str) -> None:
    model = fc.nn.Sequential(fc.nn.Dense(3, "softmax", in_features=8))
    with fc.use_precision(precision), pytest.raises(ArgumentError, match="the result of a softmax already"):
        fc.losses.cross_entropy(model(X), LABELS)


@in_16_bits
def test_predictions_are_float32(precision: str) -> None:
    model = network()
    exact = fc.predict(model, X)
    for _ in range(3):  # called, recorded, replayed
        with fc.use_precision(precision):
            narrow = fc.predict(model, X)
        assert narrow.dtype == np.float32
        assert 0.0 < np.abs(narrow - exact).max() < 0.05
        np.testing.assert_array_equal(fc.predict(model, X), exact)


def test_a_captured_step_follows_the_precision() -> None:
    model = network()
    step = fc.capture(lambda x: model(x).astype("float32"))
    expected = {}
    for precision in ("float32", "bfloat16", "float16"):
        with fc.use_precision(precision):
            expected[precision] = model(X).numpy().astype(np.float32)
    for precision in ("float32", "bfloat16", "bfloat16", "float32", "float16", "bfloat16", "float32"):
        with fc.use_precision(precision):
            np.testing.assert_array_equal(step(X).numpy(), expected[precision])


@in_16_bits
def test_files_hold_float32(precision: str, tmp_path: object) -> None:
    trainer = fc.Trainer(network(), learning_rate=0.05, precision=precision)
    trainer.fit(X, LABELS, epochs=3, verbose=False)
    path = f"{tmp_path}/model.safetensors"
    fc.save(path, trainer.model)
    for name, array in fc.load(path).state_dict().items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, trainer.model.state_dict()[name])
    assert all(a.dtype == np.float32 for a in trainer.model.state_dict().values())


# ---- who has none ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", ["cpu", "numpy"])
@in_16_bits
def test_the_cpu_refuses_it_before_anything_changes(on: str, precision: str, rng: np.random.Generator) -> None:
    with fc.use_device(on):
        model = fc.nn.Sequential(fc.nn.Dense(9), fc.nn.Dense(3))
        with fc.use_precision(precision), pytest.raises(DeviceError, match=rf"Dense 'layers.0': .*{precision}.*GPU"):
            model(X)
        assert not any(parameter.is_built for parameter in model.parameters())
        w = fc.tensor(np.ones((8, 3), np.float32))
        with fc.use_precision(precision), pytest.raises(DeviceError, match=rf"dense: precision '{precision}' needs a"):
            fc.ops.dense(fc.tensor(X), w)
        with pytest.raises(DeviceError, match="needs a GPU"):
            fc.Trainer(model, precision=precision).fit(X, LABELS, verbose=False)
        with fc.use_precision(precision):
            fc.nn.Dense(3, dtype="float64")(X.astype(float))  # which is no part of it


# ---- training --------------------------------------------------------------------------------------------------------


def test_the_trainer_takes_the_precision_of_the_block_or_its_own() -> None:
    trainer = fc.Trainer(network())
    with fc.use_precision("float16"):
        trainer.fit(X, LABELS, verbose=False)
    assert isinstance(trainer.loss_scale, fc.LossScale)
    with fc.use_precision("float16"):
        again = fc.Trainer(network(), precision="bfloat16")
        again.fit(X, LABELS, verbose=False)
    assert again.loss_scale is None
    assert "precision='bfloat16'" in repr(again)
    assert "precision" not in repr(trainer)


def test_a_further_fit_goes_on_with_the_scale() -> None:
    trainer = fc.Trainer(network(), precision="float16")
    trainer.fit(X, LABELS, verbose=False)
    scale = trainer.loss_scale
    assert scale is not None
    before = scale.finite_steps
    trainer.fit(X, LABELS, epochs=3, verbose=False)
    assert trainer.loss_scale is scale
    assert scale.finite_steps == before + 3
    trainer.precision = None
    trainer.fit(X, LABELS, verbose=False)
    assert trainer.loss_scale is None


@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_that_overflow_are_left_out_in_silence(capture: bool, accumulate: int) -> None:
    x, y = np.tile(X, (8, 1)), np.tile(LABELS, 8)
    model = fc.nn.Sequential(fc.nn.Dense(9, "relu", in_features=8), fc.nn.BatchNorm(), fc.nn.Dense(3, in_features=9))
    trainer = fc.Trainer(
        model, optimizer="sgd", learning_rate=0.5, precision="float16", capture=capture, accumulate=accumulate
    )
    trainer.fit(x, y, batch_size=12, verbose=False)  # makes the scale
    assert trainer.loss_scale is not None
    trainer.loss_scale.load_state_dict({"scale": 2.0**21, "finite_steps": 5})
    before = trainer.optimizer.steps, trainer.optimizer.skipped_steps
    history = trainer.fit(x, y, epochs=4, batch_size=12, verbose=False)
    skipped = trainer.optimizer.skipped_steps - before[1]
    assert 2 <= skipped <= 12
    assert trainer.optimizer.steps - before[0] == 32 // accumulate - skipped
    assert trainer.loss_scale.scale == 2.0 ** (21 - skipped)
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    assert not capture or not trainer.not_captured


def test_captured_training_is_eager_training() -> None:
    x, y = np.tile(X, (8, 1)), np.tile(LABELS, 8)
    results = []
    for capture in (False, True):
        fc.manual_seed(0)
        model = network(fc.nn.BatchNorm())
        trainer = fc.Trainer(model, optimizer="adamw", clip_norm=0.5, precision="float16", capture=capture)
        history = trainer.fit(x, y, epochs=3, batch_size=12, verbose=False)
        results.append((history["loss"], model.state_dict(), trainer.optimizer.skipped_steps))
    assert results[0][0] == results[1][0]
    assert results[0][2] == results[1][2]
    for name, array in results[0][1].items():
        np.testing.assert_array_equal(results[1][1][name], array)


def test_what_no_scale_cures_is_an_error() -> None:
    model = network()
    trainer = fc.Trainer(model, lambda p, t: (p.sum() - p.sum().detach()) ** 0.5, precision="float16")  # slope 1 / 0
    with pytest.raises(fc.errors.NonFiniteError, match="gradient is not finite"):
        trainer.fit(X, LABELS, epochs=40, batch_size=12, verbose=False)
    assert trainer.loss_scale is not None
    assert trainer.loss_scale.scale == 1.0
    assert trainer.optimizer.skipped_steps == 16
    poisoned = X.copy()
    poisoned[3] = np.nan
    with pytest.raises(fc.errors.NonFiniteError, match="x of the batch is nan"):
        fc.Trainer(network(), precision="float16").fit(poisoned, LABELS, verbose=False)


@in_16_bits
def test_evaluation_and_metrics(precision: str) -> None:
    trainer = fc.Trainer(network(), metrics=["accuracy", lambda p, t: float(p.dtype.itemsize)], precision=precision)
    trainer.fit(X, LABELS, epochs=2, validation_data=(X, LABELS), verbose=False)
    result = trainer.evaluate(X, LABELS)
    predicted = trainer.predict(X)
    assert predicted.dtype == np.float32
    assert result["accuracy"] == np.mean(predicted.argmax(axis=1) == LABELS)
    assert result["<lambda>"] == 4.0


def test_explain_tells_the_precision() -> None:
    model = network()
    with fc.use_precision("bfloat16"):
        told = fc.explain(model, X, LABELS, loss="cross_entropy", optimizer="adam")
    assert told.precision == "bfloat16"
    assert "forward on reference in bfloat16, " in str(told)
    layer = next(line for line in told.passes["forward"] if line.primitive == "dense tanh")
    assert layer.reads == "12x8:bfloat16 8x9:bfloat16 9"
    update = next(line for line in told.passes["training step"] if line.primitive == "map adam")
    assert update.writes.count("bfloat16") == 1
    with fc.use_precision("float16"):
        step = fc.explain(model, X, LABELS, loss="cross_entropy", optimizer="adam").passes["training step"]
    assert "map following_loss_scale" in [line.primitive for line in step]
    assert "16" not in str(fc.explain(model, X).passes)


def test_a_tensor_shows_its_dtype() -> None:
    with fc.use_precision("bfloat16"):
        y = fc.ops.dense(fc.tensor(X[:1]), fc.tensor(np.ones((8, 1), np.float32)))
    assert isinstance(y, Tensor)
    assert "dtype=bfloat16" in repr(y)
    assert y.item() == pytest.approx(X[0].sum(), rel=0.02)
