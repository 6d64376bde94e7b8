"""CuPy's arrays go into the library and its results come out, in the same memory: on a stand-in for CuPy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fcdense as fc
from fcdense.backends import Device
from fcdense.backends.cuda import CudaBackend
from fcdense.errors import CaptureError, DataError, DeviceError, DTypeError, NonFiniteError, OutOfMemory, ShapeError
from tests import emulation
from tests.cuda import fake_cupy
from tests.cuda.fake_cuda import Machine
from tests.cuda.test_cupy_driver import driver_of

pytestmark = pytest.mark.skipif(not emulation.is_available(), reason="no g++ here")
NUMBER = itertools.count(1000)
X = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
ROWS = np.random.default_rng(1).normal(size=(22, 6)).astype(np.float32)
CLASSES = np.random.default_rng(2).integers(0, 3, 22).astype(np.int32)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return fake_cupy.install(monkeypatch)


@pytest.fixture
def on(machine: Machine) -> Iterator[Device]:
    with fc.use_device(Device("cupy", next(NUMBER), backend=CudaBackend(driver_of(0)))) as device:
        yield device


def callers(machine: Machine, values: Any) -> Any:
    """An array that somebody made with CuPy."""
    import cupy

    made = cupy.ndarray(values.shape, values.dtype, machine.default_pool.malloc(values.nbytes))
    write(made, values)
    return made


def write(array: Any, values: Any) -> None:
    """As a caller does, on the stream of the moment, for which nobody waits."""
    for place in np.ndindex(values.shape):
        array[place] = values[place]


def read(machine: Machine, array: Any) -> np.ndarray:
    """What a caller sees on the stream of the moment."""
    return array.get(machine.stream(), np.empty(array.shape, array.dtype))


def erase(machine: Machine, array: Any) -> None:
    """As a caller does who then waits for it."""
    write(array, np.zeros(array.shape, array.dtype))
    assert not read(machine, array).any()


def test_inference_reads_a_callers_array_where_it_lies(machine: Machine, on: Device) -> None:
    layer = fc.nn.Dense(3, "tanh", in_features=6)
    x = callers(machine, X)
    with fc.no_grad():
        y = layer(x)
    np.testing.assert_array_equal(y.numpy(), layer(X).numpy())
    write(x, 2 * X)
    with fc.no_grad():
        np.testing.assert_array_equal(layer(x).numpy(), layer(2 * X).numpy())


def test_what_a_gradient_is_going_to_read_is_copied(machine: Machine, on: Device) -> None:
    layer = fc.nn.Dense(3, in_features=6)
    x = callers(machine, X)
    y = layer(x)
    erase(machine, x)
    y.sum().backward()
    np.testing.assert_allclose(layer.kernel.grad.numpy(), np.repeat(X.sum(0)[:, None], 3, 1), rtol=1e-6)


SHARES = np.random.default_rng(5).dirichlet(np.ones(3), 4).astype(np.float32)


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (fc.losses.mse, SHARES),
        (fc.losses.mse, SHARES > 0.3),
        (fc.losses.mean_absolute_error, SHARES.astype(np.float64)),
        (fc.losses.binary_cross_entropy_with_logits, SHARES),
        (fc.losses.cross_entropy, SHARES),
        (fc.losses.cross_entropy, CLASSES[:4]),
    ],
)
def test_targets_may_be_overwritten_at_once(machine: Machine, on: Device, loss: Any, target: Any) -> None:
    """Before the loss is read, its gradient is taken, or that gradient's."""

    def found(target: Any, after: Any) -> list[np.ndarray]:
        model = network()
        prediction = model(X)
        value = loss(prediction, target)
        with fc.no_grad():
            bare = loss(prediction, target)
        after()
        slope = fc.grad(value, prediction, create_graph=True)
        results = [value, bare, slope, fc.grad((slope * slope).sum(), model.layers[0].kernel)]
        return [result.numpy() for result in results]

    wanted = found(target, lambda: None)
    given = callers(machine, target)
    for ours, theirs in zip(found(given, lambda: erase(machine, given)), wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_tensors_of_a_callers_array_are_copies(machine: Machine, on: Device) -> None:
    x = callers(machine, X)
    given, cast = fc.tensor(x), fc.tensor(x, dtype="float64")
    erase(machine, x)
    np.testing.assert_array_equal(given.numpy(), X)
    np.testing.assert_array_equal(cast.numpy(), X.astype(np.float64))
    assert given.device is on
    np.testing.assert_array_equal((fc.tensor(X) + callers(machine, X)).numpy(), 2 * X)


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "int32", "bool"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_operands_have_the_dtypes_that_numpys_have(machine: Machine, on: Device, dtype: str, kind: str) -> None:
    """A single number takes the tensor's dtype, as do integers and booleans."""
    t = fc.tensor(X.astype(dtype))
    for operand in (np.array(1, kind), np.ones(6, kind)):
        found, wanted = t * callers(machine, operand), t * operand
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found.numpy(), wanted.numpy())


def test_dtypes_are_refused_as_numpys_are(machine: Machine, on: Device) -> None:
    layer = network()
    uses = (
        lambda x: fc.predict(layer, x),
        lambda x: fc.losses.mse(layer(ROWS)[:4], x[:, :3]),
        lambda x: layer(x),
        lambda x: fc.tensor(x),
        lambda x: fc.tensor(x, dtype="float32"),
    )
    for dtype, said in (("complex64", "is complex"), ("bfloat16", "has dtype bfloat16; expected")):
        kind = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
        for use in uses:
            for given in (X.astype(kind), callers(machine, X.astype(kind))):
                with pytest.raises(DTypeError, match=said):
                    use(given)


def test_what_has_to_be_copied_is_refused_where_no_copy_may_be(machine: Machine, on: Device) -> None:
    t = fc.tensor(X)
    np.testing.assert_array_equal(np.asarray(t), X)
    with pytest.raises(ValueError, match=r"Leave out copy=False: np\.asarray"):
        np.asarray(t, copy=False)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_a_callers_array_is_a_gradient(machine: Machine, on: Device, dtype: str) -> None:
    """To begin with, or to be the gradient; later writes to it change neither."""
    given = np.arange(24).reshape(4, 6).astype(dtype)
    factor = np.float32(2.5)
    for x in (fc.tensor(X, requires_grad=True), fc.nn.parameter(X)):
        for begin in (
            lambda g, x=x: (x * factor).backward(g),
            lambda g, x=x: setattr(x, "grad", fc.grad(x * factor, x, g)),
            lambda g, x=x: setattr(x, "grad", fc.grad([x * factor], x, [g])),
        ):
            x.zero_grad()
            g = callers(machine, given)
            begin(g)
            erase(machine, g)
            np.testing.assert_array_equal(x.grad.numpy(), factor * given)
            assert x.grad.dtype == np.float32
        x.grad = g = callers(machine, given)
        erase(machine, g)
        np.testing.assert_array_equal(x.grad.numpy(), given)


def test_gradients_that_fit_no_tensor_are_refused(machine: Machine, on: Device) -> None:
    x = fc.tensor(X, requires_grad=True)
    x.grad = before = fc.tensor(X)
    with pytest.raises(ShapeError, match=r"gradient has shape \(4, 5\), the tensor \(4, 6\)"):
        x.grad = callers(machine, X[:, :5])
    with pytest.raises(DTypeError, match="the gradient is complex"):
        (x * 2).backward(callers(machine, X.astype("complex64")))
    host = fc.tensor(X, device="cpu", requires_grad=True)
    with pytest.raises(DeviceError, match=r"lies on a GPU, but it is used on cpu.*cupy\.asnumpy"):
        host.backward(callers(machine, X))
    assert x.grad is before
    assert host.grad is None


def test_what_cannot_be_is_refused(machine: Machine, on: Device) -> None:
    x = callers(machine, X)
    with fc.use_device("cpu"):
        with pytest.raises(DeviceError, match=r"lies on a GPU, but it is used on .*cupy\.asnumpy"):
            fc.tensor(x)
        with pytest.raises(DeviceError, match="lies on a GPU"):
            fc.nn.Dense(3, in_features=6)(x)
    layer = fc.nn.Dense(3, in_features=6)

    @fc.capture
    def step() -> Any:
        return layer(x)

    with fc.no_grad(), pytest.raises(CaptureError, match="every replay would read that"):
        for _ in range(3):
            step()


def test_results_are_handed_out_where_they_lie(machine: Machine, on: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """By DLPack, as an array for the caller's stream."""
    import cupy

    y = fc.nn.Dense(3, in_features=6)(X).detach()
    monkeypatch.setattr(cupy.ndarray, "__dlpack__", lambda array, **options: (array, options), raising=False)
    monkeypatch.setattr(type(y.array), "__dlpack_device__", lambda array: (2, 0), raising=False)
    assert y.__dlpack_device__() == (2, 0)
    array, options = y.__dlpack__(stream=7)
    assert options == {"stream": 7}
    assert array.data.ptr == y.array.data.ptr
    np.testing.assert_array_equal(on.backend.to_host(array), y.numpy())


def network() -> fc.nn.Sequential:
    fc.manual_seed(3)
    return fc.nn.Sequential(fc.nn.Dense(5, "tanh", in_features=6), fc.nn.Dense(3, in_features=5))


def parameters(model: fc.nn.Module) -> list[np.ndarray]:
    return [parameter.numpy() for parameter in model.parameters()]


@pytest.mark.parametrize("batch_size", [22, 5, 1024])
def test_predictions_stay_on_the_gpu(
    machine: Machine, on: Device, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cupy

    model = network()
    wanted = fc.predict(model, ROWS, batch_size=batch_size)
    x = callers(machine, ROWS)
    with monkeypatch.context() as patch:
        patch.setattr(on.backend, "to_host", None)
        found = [fc.predict(model, x, batch_size=batch_size) for _ in range(3)]  # called, recorded, replayed
    for result in found:
        assert isinstance(result, cupy.ndarray)
        np.testing.assert_array_equal(read(machine, result), wanted)
    write(x, 2 * ROWS)
    np.testing.assert_array_equal(read(machine, fc.predict(model, x)), fc.predict(model, 2 * ROWS))
    assert fc.predict(model, x[:0]).shape == (0, 3)
    np.testing.assert_array_equal(fc.predict(model, iter([x, x])), np.concatenate([fc.predict(model, 2 * ROWS)] * 2))


@pytest.mark.parametrize("capture", [True, False])
@pytest.mark.parametrize("options", [{}, {"drop_last": True}, {"validation_split": 0.25}])
def test_training_on_a_callers_arrays(machine: Machine, on: Device, options: dict[str, Any], capture: bool) -> None:
    """The bits of a training on the same numbers from the host."""

    def trained(x: Any, y: Any) -> tuple[list[dict[str, float]], list[np.ndarray]]:
        model = network()
        trainer = fc.Trainer(model, metrics=["accuracy"], capture=capture)
        trainer.fit(x, y, epochs=3, batch_size=4, verbose=False, **options)
        assert trainer.not_captured == ("" if capture else "capture=False")
        return [*trainer.history, trainer.evaluate(x, y)], parameters(model)

    (history, weights), (wanted, expected) = (
        trained(x, y) for x, y in [(callers(machine, ROWS), callers(machine, CLASSES)), (ROWS, CLASSES)]
    )
    assert history == wanted
    for ours, theirs in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("loss", ["mse", "binary_cross_entropy_with_logits", lambda p, t: ((p - t) ** 2).mean()])
@pytest.mark.parametrize("kind", ["arrays", "batches"])
def test_other_losses_and_batches(machine: Machine, on: Device, loss: Any, kind: str) -> None:
    y = np.random.default_rng(4).random((22, 3)).astype(np.float32)

    def trained(x: Any, y: Any) -> list[np.ndarray]:
        model = network()
        data = (x, y) if kind == "arrays" else ([(x[:9], y[:9]), (x[9:], y[9:])],)
        fc.Trainer(model, loss, metrics=[lambda p, t: float(np.abs(p - t).max())]).fit(*data, epochs=2, verbose=False)
        return parameters(model)

    for ours, theirs in zip(trained(callers(machine, ROWS), callers(machine, y)), trained(ROWS, y), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_losses_and_captured_steps_take_a_callers_arrays(machine: Machine, on: Device) -> None:
    model = network()

    @fc.capture
    def step(x: Any, y: Any) -> Any:
        return fc.losses.cross_entropy(model(x), y)

    wanted = fc.losses.cross_entropy(model(ROWS), CLASSES).item()
    assert fc.losses.cross_entropy(model(ROWS), callers(machine, CLASSES)).item() == wanted
    for _ in range(3):
        assert step(callers(machine, ROWS), callers(machine, CLASSES)).item() == wanted
    assert str(fc.explain(model, callers(machine, ROWS))) == str(fc.explain(model, ROWS))


def test_classes_weigh_and_wrong_ones_are_named(machine: Machine, on: Device) -> None:
    x, y = callers(machine, ROWS), callers(machine, CLASSES)
    weighted = {"class_weight": {0: 2.0}}
    found = fc.Trainer(network(), **weighted).evaluate(x, y)
    assert found == fc.Trainer(network(), **weighted).evaluate(ROWS, CLASSES)
    wrong = CLASSES.copy()
    wrong[7] = 3
    with pytest.raises(DataError, match="target is 3 in row 7"):
        fc.losses.cross_entropy(network()(ROWS), callers(machine, wrong))
    with pytest.raises(DataError, match=r"^target is 3 in row 7;"):
        fc.Trainer(network()).fit(x, callers(machine, wrong), batch_size=4, verbose=False)
    with pytest.raises(DataError, match=r"^validation_data: target is 3 in row 7;"):
        fc.Trainer(network()).fit(x, y, validation_data=(x, callers(machine, wrong)), batch_size=4, verbose=False)
    bad = ROWS.copy()
    bad[9, 1] = np.nan
    with pytest.raises(NonFiniteError, match="x of the batch is nan in row 9"):
        fc.Trainer(network()).fit(callers(machine, bad), y, batch_size=22, shuffle=False, verbose=False)


def test_parts_of_a_callers_arrays(machine: Machine, on: Device) -> None:
    given = fc.data.train_test_split(callers(machine, ROWS), callers(machine, CLASSES))
    for ours, theirs in zip(given, fc.data.train_test_split(ROWS, CLASSES), strict=True):
        np.testing.assert_array_equal(read(machine, ours), theirs)


def test_rows_without_room_are_refused(machine: Machine, on: Device) -> None:
    """By the library's own error, where CuPy raises one of its own."""
    x, y = callers(machine, ROWS), callers(machine, CLASSES)
    for call in (lambda: next(iter(fc.data.Batches(x, y))), lambda: fc.data.train_test_split(x, y)):
        machine.free[0] = 0
        with pytest.raises(OutOfMemory, match=r"cuda:0 cannot hold \d+ rows of an array \(22, 6\) beside it: .*batch"):
            call()


class OfAnotherLibrary:
    """An array on a GPU that is not CuPy's."""

    __cuda_array_interface__ = None
    dtype = "torch.float32"


def test_what_training_cannot_take_is_refused(machine: Machine, on: Device) -> None:
    x, y = callers(machine, ROWS), callers(machine, CLASSES)
    trainer = fc.Trainer(network())
    with pytest.raises(DeviceError, match=r"sample_weight lies on a GPU.*cupy\.asnumpy"):
        trainer.fit(x, y, sample_weight=callers(machine, np.ones(22)), verbose=False)
    with pytest.raises(DeviceError, match=r"y lies on a GPU.*cupy\.asnumpy"):
        fc.data.train_test_split(x, y, stratify=True)
    scaler = fc.data.Standardizer().fit(ROWS)
    for measure in (scaler.fit, scaler.transform, scaler.inverse_transform):
        with pytest.raises(DeviceError, match=r"x lies on a GPU.*cupy\.asnumpy"):
            measure(x)
    with pytest.raises(DTypeError, match=r"x is a OfAnotherLibrary on a GPU; pass cupy\.asarray\(x\)"):
        trainer.fit(OfAnotherLibrary(), y, verbose=False)
    with fc.use_device("cpu"):
        model = network()
        for call in (lambda: fc.predict(model, x), lambda: fc.Trainer(model).fit(x, y, verbose=False)):
            with pytest.raises(DeviceError, match=r"lies on a GPU, but it is used on cpu.*cupy\.asnumpy"):
                call()
