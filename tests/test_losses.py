"""Losses against plain NumPy in float64, closed forms, central differences, and PyTorch where it is installed."""

from __future__ import annotations

import functools
import inspect
import pickle

import numpy as np
import pytest

from fcdense import losses, tape
from fcdense.backends import use_device
from fcdense.errors import ArgumentError, ShapeError, TraceError, UnknownNameError
from fcdense.gradients import grad, gradcheck
from fcdense.tensor import Tensor, tensor

ELEMENTWISE = {
    "mean_squared_error": lambda p, t: (p - t) ** 2,
    "mean_absolute_error": lambda p, t: np.abs(p - t),
    "huber": lambda p, t, delta=1.0: np.where(
        np.abs(p - t) <= delta, (p - t) ** 2 / 2, delta * (np.abs(p - t) - delta / 2)
    ),
    "binary_cross_entropy_with_logits": lambda p, t, pos_weight=1.0: (
        np.maximum(p, 0) - p * t + np.log1p(np.exp(-np.abs(p))) + (pos_weight - 1) * t * np.logaddexp(0, -p)
    ),
}
OPTIONS = [(name, {}) for name in ELEMENTWISE]
OPTIONS += [("huber", {"delta": 0.3}), ("binary_cross_entropy_with_logits", {"pos_weight": 2.5})]


def data(rng, name, shape=(7, 3)):
    """A prediction and a target that `name` takes."""
    p = 2.0 * rng.standard_normal(shape)
    return p, rng.random(shape) if "cross" in name else rng.standard_normal(shape)


def softmax_loss(z, t):
    """-sum_k t_bk log softmax(z_b)_k for each row."""
    shifted = z - z.max(axis=-1, keepdims=True)
    return (t * (np.log(np.exp(shifted).sum(axis=-1, keepdims=True)) - shifted)).sum(axis=-1)


def value_and_gradient(loss, p, *args, **options):
    """The loss and its gradient at `p`, as floats of NumPy."""
    prediction = tensor(p, requires_grad=True)
    out = loss(prediction, *args, **options)
    assert out.shape == ()
    out.backward()
    return out.item(), prediction.grad.numpy()


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_elementwise_is_the_mean_of_its_formula(rng, name, options):
    p, t = data(rng, name)
    value, _ = value_and_gradient(losses.TABLE[name], p, t, **options)
    assert value == pytest.approx(ELEMENTWISE[name](p, t, **options).mean(), rel=1e-13)
    assert gradcheck(lambda x: losses.TABLE[name](x, t, **options), p)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_elementwise_weighted_mean(rng, name, options, axes):
    p, t = data(rng, name, (5, 2, 3))
    w = rng.random((5, 2, 3)[:axes])
    w[1] = 0.0
    wide = np.broadcast_to(w.reshape(*w.shape, *[1] * (3 - axes)), p.shape)
    expected = (wide * ELEMENTWISE[name](p, t, **options)).sum() / wide.sum()
    value, gradient = value_and_gradient(losses.TABLE[name], p, t, w, **options)
    assert value == pytest.approx(expected, rel=1e-13)
    assert not gradient[1].any()
    assert gradcheck(lambda x: losses.TABLE[name](x, t, w, **options), p)
    assert losses.TABLE[name](tensor(p), t, (w * 1e-60).tolist(), **options).item() == pytest.approx(
        expected, rel=1e-13
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_large_logits(dtype):
    p = np.array([1e4, 1e4, -1e4, -1e4], dtype)
    value, slope = value_and_gradient(losses.binary_cross_entropy_with_logits, p, [1, 0, 1, 0])
    assert value == 5e3
    np.testing.assert_array_equal(slope, np.array([0, 0.25, -0.25, 0]))
    z = np.array([[1e4, -1e4], [-1e4, 1e4]], dtype)
    value, slope = value_and_gradient(losses.cross_entropy, z, [0, 0])
    assert value == 1e4
    np.testing.assert_array_equal(slope, [[0, 0], [-0.5, 0.5]])


def test_kinks_and_tails():
    assert value_and_gradient(losses.mae, [1.0], [1.0])[1] == 0.0
    assert value_and_gradient(losses.binary_cross_entropy_with_logits, [0.0], [1.0])[1] == -0.5
    value, slope = value_and_gradient(losses.binary_cross_entropy_with_logits, [40.0], [1.0])
    np.testing.assert_allclose([value, slope[0]], [np.exp(-40.0), -np.exp(-40.0)], rtol=1e-12)


def test_a_class_of_probability_zero():
    value, slope = value_and_gradient(losses.cross_entropy, [[-np.inf, 0.0, 0.0]], [1])
    assert value == pytest.approx(np.log(2), rel=1e-15)
    np.testing.assert_allclose(slope, [[0, -0.5, 0.5]])
    assert losses.cross_entropy(tensor([[-np.inf, 0.0]]), [0]).item() == np.inf


@pytest.mark.parametrize("name", ["mean_squared_error", "huber", "binary_cross_entropy_with_logits", "cross_entropy"])
def test_second_derivatives(rng, name):
    p, t = data(rng, name, (4, 3))
    t = t / t.sum(axis=1, keepdims=True) if name == "cross_entropy" else t
    w = np.array([1.0, 2.0, 0.5, 3.0])

    def gradient(x):
        inner = x if x.requires_grad else tensor(x.numpy(), requires_grad=True)
        with tape.recording(True):
            return grad(losses.TABLE[name](inner * 1.0, t, w), inner, create_graph=True)

    assert gradcheck(gradient, p)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("by_class", [None, [0.5, 2.0, 0.0, 1.5]])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_is_its_formula(rng, smoothing, rows, by_class, weighted):
    z = 3.0 * rng.standard_normal((6, 4))
    labels = np.array([0, 1, 2, 3, 1, 1])
    t = rng.dirichlet(np.ones(4), 6) if rows else np.eye(4)[labels]
    v = np.ones(4) if by_class is None else np.array(by_class)
    w = rng.random(6) if weighted else None
    terms = softmax_loss(z, v * ((1 - smoothing) * t + smoothing / 4))
    expected = (terms * (1 if w is None else w)).sum() / ((t @ v) * (1 if w is None else w)).sum()
    loss = functools.partial(losses.cross_entropy, label_smoothing=smoothing, class_weight=by_class)
    value, _ = value_and_gradient(loss, z, t if rows else labels, w)
    assert value == pytest.approx(expected, rel=1e-12)
    assert gradcheck(lambda x: loss(x, t if rows else labels, w), z)
    if not rows:
        one_hot = value_and_gradient(loss, z, t.astype(np.int8), w)
        np.testing.assert_allclose(one_hot[0], value, rtol=1e-13)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("by_class", [None, (0.5, 2.0, 1.0, 1.5)])
@pytest.mark.parametrize("ignore", [None, -100, 2])
def test_cross_entropy_is_that_of_pytorch(rng, smoothing, by_class, ignore):
    torch = pytest.importorskip("torch")
    z = 3.0 * rng.standard_normal((8, 4))
    y = np.array([0, 1, 2, 3, 2, 1, 0, 3])
    if ignore is not None:
        y[[1, 4]] = ignore
    x = torch.tensor(z, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(
        x,
        torch.tensor(y),
        weight=None if by_class is None else torch.tensor(by_class, dtype=torch.float64),
        ignore_index=-100 if ignore is None else ignore,
        label_smoothing=smoothing,
    )
    expected.backward()
    value, slope = value_and_gradient(
        losses.cross_entropy, z, y, ignore_index=ignore, label_smoothing=smoothing, class_weight=by_class
    )
    assert abs(value - expected.item()) < 1e-10
    np.testing.assert_allclose(slope, x.grad.numpy(), atol=1e-10, rtol=0)


def test_the_others_are_those_of_pytorch(rng):
    torch = pytest.importorskip("torch")
    functions = {
        "mse": torch.nn.functional.mse_loss,
        "mae": torch.nn.functional.l1_loss,
        "huber": functools.partial(torch.nn.functional.huber_loss, delta=0.7),
        "binary_cross_entropy_with_logits": functools.partial(
            torch.nn.functional.binary_cross_entropy_with_logits, pos_weight=torch.tensor(3.0, dtype=torch.float64)
        ),
    }
    options = {"huber": {"delta": 0.7}, "binary_cross_entropy_with_logits": {"pos_weight": 3.0}}
    for name, function in functions.items():
        p, t = data(rng, name)
        x = torch.tensor(p, requires_grad=True)
        expected = function(x, torch.tensor(t))
        expected.backward()
        value, slope = value_and_gradient(losses.TABLE[name], p, t, **options.get(name, {}))
        assert abs(value - expected.item()) < 1e-10, name
        np.testing.assert_allclose(slope, x.grad.numpy(), atol=1e-10, rtol=0, err_msg=name)


def test_cross_entropy_over_the_last_axis(rng):
    z, y = rng.standard_normal((2, 3, 4)), rng.integers(0, 4, (2, 3))
    flat = value_and_gradient(losses.cross_entropy, z.reshape(6, 4), y.reshape(6))
    value, slope = value_and_gradient(losses.cross_entropy, z, y)
    assert value == flat[0]
    np.testing.assert_array_equal(slope.reshape(6, 4), flat[1])
    weighted, _ = value_and_gradient(losses.cross_entropy, z, y[..., None], [1.0, 3.0])
    rows = softmax_loss(z, np.eye(4)[y]).mean(axis=1)
    assert weighted == pytest.approx((rows[0] + 3 * rows[1]) / 4, rel=1e-13)
    assert losses.cross_entropy(tensor(z[0, 0]), 2).item() == pytest.approx(softmax_loss(z[0, 0], np.eye(4)[2]))


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"class_weight": [1.0, 2.0]}])
def test_all_rows_ignored(options):
    value, slope = value_and_gradient(
        losses.cross_entropy, [[3.0, 1.0], [0.0, 2.0]], [-1, -1], ignore_index=-1, **options
    )
    assert value == 0.0
    assert not slope.any()
    assert losses.cross_entropy(tensor([[3.0, 1.0]]), [0], class_weight=[0, 1], label_smoothing=0.1).item() == 0.0


def test_class_weight_of_some_classes(rng):
    z, y = rng.standard_normal((5, 3)), [0, 1, 2, 2, 1]
    value, _ = value_and_gradient(losses.cross_entropy, z, y, class_weight={2: 4.0})
    assert value == value_and_gradient(losses.cross_entropy, z, y, class_weight=[1.0, 1.0, 4.0])[0]


@pytest.mark.parametrize("name", list(losses.TABLE))
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_dtype_of_the_prediction_and_the_reference_backend(rng, name, dtype):
    p, t = data(rng, name)
    t = [0, 1, 2, 2, 1, 0, 1] if name == "cross_entropy" else t.tolist()
    results = {}
    for where in ("cpu", "reference"):
        with use_device(where):
            x = tensor(p.astype(dtype), requires_grad=True)
            out = losses.TABLE[name](x, t, 1e-60 * np.arange(1.0, 8.0))
            out.backward()
            assert out.dtype == x.grad.dtype == dtype
            results[where] = out.item(), x.grad.numpy()
    for cpu, reference in zip(*results.values(), strict=True):
        np.testing.assert_allclose(cpu, reference, rtol=16 * np.finfo(dtype).eps, atol=4 * np.finfo(dtype).eps)


def test_a_target_may_need_a_gradient(rng):
    p, t = rng.standard_normal((4, 2)), rng.standard_normal((4, 2))
    assert gradcheck(lambda a, b: losses.huber(a, b, [1.0, 2.0, 3.0, 4.0]), (p, t))
    assert gradcheck(lambda b: losses.mse(tensor(p), b), t)
    with pytest.raises(ArgumentError, match=r"target\.detach"):
        losses.cross_entropy(tensor(p), tensor(np.eye(2)[[0, 1, 0, 1]], requires_grad=True))


def test_own_entry_of_the_table(rng, monkeypatch):
    monkeypatch.setattr(losses, "TABLE", dict(losses.TABLE))

    @losses.elementwise("quantile")
    def pinball(p, t, tau=0.5):
        """l = max(tau (t - p), (tau - 1) (t - p))."""
        return np.maximum(tau * (t - p), (tau - 1) * (t - p))

    p, t = rng.standard_normal((2, 6))
    value, _ = value_and_gradient(losses.get("quantile").function, p, t, tau=0.9)
    assert value == pytest.approx(np.maximum(0.9 * (t - p), -0.1 * (t - p)).mean())
    assert gradcheck(lambda x: pinball(x, t, tau=0.9), p)
    assert list(inspect.signature(pinball).parameters) == ["prediction", "target", "sample_weight", "tau"]
    assert pinball.__doc__.startswith("l = max")
    with pytest.raises(ArgumentError, match="'quantile' exists already"):
        losses.elementwise("quantile")(lambda p, t: p - t)
    for wrong in (lambda p, t, tau: p - t, lambda p: p):
        with pytest.raises(ArgumentError, match="each with a default"):
            losses.elementwise()(wrong)
    with pytest.raises(TraceError):
        losses.elementwise()(lambda p, t: np.sum(p - t))


def test_get():
    assert losses.get("mse").function is losses.mean_squared_error is losses.mse
    assert losses.get("mae").function is losses.mae
    assert repr(losses.get("huber")) == "<loss huber>" == repr(losses.huber)
    assert losses.get(losses.get("huber")).name == "huber"
    partial = losses.get(functools.partial(losses.huber, delta=2.0))
    assert partial(tensor([5.0]), [0.0], [1.0]).item() == 2 * (5 - 1)
    assert pickle.loads(pickle.dumps(losses.get("huber"))).function is losses.huber
    with pytest.raises(UnknownNameError, match="cross_entropy"):
        losses.get("crossentropy")
    for wrong in (3, None):
        with pytest.raises(ArgumentError, match="expected a name or a function"):
            losses.get(wrong)
    with pytest.raises(ArgumentError, match=r"function of \(prediction, target\[, sample_weight\]\); too many"):
        losses.get(lambda prediction: prediction)


def test_own_function():
    def cubic(prediction: Tensor, target):
        return (abs(prediction - target) ** 3).mean()

    loss = losses.get(cubic)
    t = np.array([[1.0], [3.0]])
    assert loss.name == "cubic"
    assert gradcheck(lambda p: loss(p, t), np.array([[0.5], [1.0]]))
    with pytest.raises(ArgumentError, match="parameter named sample_weight"):
        loss(tensor([[1.0], [2.0]]), t, [1.0, 2.0])

    weighted = losses.get(lambda prediction, target, sample_weight=1.0: ((prediction - target) * sample_weight).sum())
    assert weighted(tensor([1.0, 5.0]), [0.0, 0.0], np.array([10.0, 1.0])).item() == 15.0
    with pytest.raises(ShapeError, match=r"returned shape \(2,\).*mean"):
        losses.get(lambda p, t: p - t)(tensor([1.0, 5.0]), [0.0, 0.0])
    with pytest.raises(ArgumentError, match="returned float64"):
        losses.get(lambda p, t: (p.numpy() - t).mean())(tensor([1.0, 5.0]), [0.0, 0.0])
