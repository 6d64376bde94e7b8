"""Whole networks are trained by others with the same numbers: PyTorch, plain NumPy, and the reference device.

Same initial values, same data, in float64: gradients and twenty optimizer steps agree to 1e-10. In float32, where
nobody is right, the error against float64 is held against that of PyTorch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fcdense as fc
from tests import plain_numpy

BOUND = 1e-10
STEPS = 20
ROWS, FEATURES, OUTPUTS = 12, 5, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(STEPS, ROWS, FEATURES))
LABELS = RNG.integers(0, OUTPUTS, (STEPS, ROWS))
IGNORING = np.where(RNG.random((STEPS, ROWS)) < 0.3, -1, LABELS)
ONE_HOT = np.eye(OUTPUTS)[LABELS]
CLASS_WEIGHT = np.array([0.5, 2.0, 1.25])
BITS = RNG.integers(0, 2, (STEPS, ROWS, OUTPUTS)).astype(np.float64)
VALUES = RNG.normal(size=(STEPS, ROWS, OUTPUTS))

Numbers = dict[str, np.ndarray]


def network(dtype: str = "float64", dropout: bool = True, normalized: bool = False) -> fc.nn.Sequential:
    """5-7-6-4-3; dropout is there, and off."""
    fc.manual_seed(0)
    hidden = [fc.nn.Dense(units, name, dtype=dtype) for units, name in ((7, "tanh"), (6, "gelu"), (4, "relu"))]
    layers: list[fc.nn.Module] = [hidden[0], hidden[1], hidden[2], fc.nn.Dense(OUTPUTS, dtype=dtype)]
    if dropout:
        layers.insert(2, fc.nn.Dropout(0.5))
    if normalized:
        layers[1:1] = [fc.nn.BatchNorm(dtype=dtype), fc.nn.LayerNorm(dtype=dtype)]
    model = fc.nn.Sequential(*layers).eval()
    model(X[0].astype(dtype))
    for parameter in model.parameters():  # biases that are not zero
        parameter.assign(parameter.numpy() + 0.1 * RNG_OF[parameter.name.rpartition(".")[2]](parameter.shape))
    return model


RNG_OF: dict[str, Callable[[tuple[int, ...]], np.ndarray]] = {
    "kernel": np.zeros,
    "scale": lambda shape: np.cos(np.arange(shape[0])),
    "bias": lambda shape: np.sin(np.arange(shape[0])),
}


def run(
    model: fc.nn.Module, loss: Any, optimizer: fc.optim.Optimizer, targets: Any
) -> tuple[list[float], Numbers, Numbers]:
    """The losses, the gradients of the first step, and the parameters after all steps."""
    values, first = [], {}
    for x, target in zip(X, targets, strict=True):
        optimizer.zero_grad()
        value = loss(model(x), target)
        value.backward()
        values.append(value.item())
        first = first or {name: p.grad.numpy().copy() for name, p in model.named_parameters()}
        optimizer.step()
    return values, first, model.state_dict()


# ---- PyTorch ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


def in_torch(torch: Any, model: fc.nn.Sequential, dtype: str = "float64") -> Any:
    """A copy of the model there; its kernels are transposed."""
    names = {"tanh": torch.nn.Tanh, "gelu": torch.nn.GELU, "relu": torch.nn.ReLU, "sigmoid": torch.nn.Sigmoid}
    layers: list[Any] = []
    for layer in model:
        if isinstance(layer, fc.nn.Dense):
            rows, columns = layer.kernel.shape
            layers.append(torch.nn.Linear(rows, columns, dtype=getattr(torch, dtype)))
            with torch.no_grad():
                layers[-1].weight.copy_(torch.from_numpy(layer.kernel.numpy().T.copy()))
                layers[-1].bias.copy_(torch.from_numpy(layer.bias.numpy().copy()))
            if layer.activation.name != "linear":
                layers.append(names[layer.activation.name]())
        elif isinstance(layer, fc.nn.BatchNorm | fc.nn.LayerNorm):
            kind = torch.nn.BatchNorm1d if isinstance(layer, fc.nn.BatchNorm) else torch.nn.LayerNorm
            layers.append(kind(layer.in_features, dtype=getattr(torch, dtype)))
            with torch.no_grad():
                layers[-1].weight.copy_(torch.from_numpy(layer.scale.numpy().copy()))
                layers[-1].bias.copy_(torch.from_numpy(layer.bias.numpy().copy()))
    return torch.nn.Sequential(*layers)


def arrays_of(model: Any, attribute: str = "data") -> list[np.ndarray]:
    """Values or gradients in the order and form of fcdense."""
    return [
        getattr(p, attribute).numpy().T.copy() if p.ndim == 2 else getattr(p, attribute).numpy().copy()
        for p in model.parameters()
    ]


def functional(name: str, **options: Any) -> Callable[[Any], Callable[[Any, Any], Any]]:
    return lambda torch: lambda y, t: getattr(torch.nn.functional, name)(y, t, **options)


def cross_entropy(weighted: bool = False, **options: Any) -> Callable[[Any], Callable[[Any, Any], Any]]:
    def make(torch: Any) -> Callable[[Any, Any], Any]:
        weight = torch.from_numpy(CLASS_WEIGHT) if weighted else None
        return lambda y, t: torch.nn.functional.cross_entropy(y, t, weight=weight, **options)

    return make


def with_options(name: str, **options: Any) -> Callable[[Any, Any], fc.Tensor]:
    return lambda y, t: getattr(fc.losses, name)(y, t, **options)


# ours, theirs, targets
LOSSES: dict[str, tuple[Any, Any, np.ndarray]] = {
    "cross entropy": (with_options("cross_entropy"), cross_entropy(), LABELS),
    "one-hot": (with_options("cross_entropy"), cross_entropy(), ONE_HOT),
    "smoothing": (with_options("cross_entropy", label_smoothing=0.1), cross_entropy(label_smoothing=0.1), LABELS),
    "one-hot, smoothing": (
        with_options("cross_entropy", label_smoothing=0.1), cross_entropy(label_smoothing=0.1), ONE_HOT,
    ),
    "class weights": (with_options("cross_entropy", class_weight=CLASS_WEIGHT), cross_entropy(True), LABELS),
    "class weights, smoothing": (
        with_options("cross_entropy", class_weight=CLASS_WEIGHT, label_smoothing=0.2),
        cross_entropy(True, label_smoothing=0.2), LABELS,
    ),
    "ignore_index": (with_options("cross_entropy", ignore_index=-1), cross_entropy(ignore_index=-1), IGNORING),
    "ignore_index, weights, smoothing": (
        with_options("cross_entropy", ignore_index=-1, class_weight=CLASS_WEIGHT, label_smoothing=0.1),
        cross_entropy(True, ignore_index=-1, label_smoothing=0.1), IGNORING,
    ),
    "binary": (with_options("binary_cross_entropy_with_logits"), functional("binary_cross_entropy_with_logits"), BITS),
    "mse": (with_options("mean_squared_error"), functional("mse_loss"), VALUES),
    "mae": (with_options("mean_absolute_error"), functional("l1_loss"), VALUES),
    "huber": (with_options("huber"), functional("huber_loss"), VALUES),
    "huber 0.3": (with_options("huber", delta=0.3), functional("huber_loss", delta=0.3), VALUES),
}  # fmt: skip

# Weight decay acts on all parameters there, so on all of ours.
OPTIMIZERS: dict[str, tuple[Any, dict[str, Any], str, dict[str, Any]]] = {
    "sgd": (fc.optim.SGD, {"learning_rate": 0.1}, "SGD", {"lr": 0.1}),
    "momentum": (fc.optim.SGD, {"learning_rate": 0.1, "momentum": 0.9}, "SGD", {"lr": 0.1, "momentum": 0.9}),
    "nesterov": (
        fc.optim.SGD, {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True},
        "SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    ),
    "sgd, decay": (
        fc.optim.SGD, {"learning_rate": 0.1, "momentum": 0.5, "weight_decay": 0.05, "exclude": ()},
        "SGD", {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.05},
    ),
    "adam": (fc.optim.Adam, {"learning_rate": 0.01}, "Adam", {"lr": 0.01}),
    "adam, decay": (
        fc.optim.Adam, {"learning_rate": 0.01, "betas": (0.8, 0.99), "weight_decay": 0.05, "exclude": ()},
        "Adam", {"lr": 0.01, "betas": (0.8, 0.99), "weight_decay": 0.05},
    ),
    "adamw": (fc.optim.AdamW, {"learning_rate": 0.01, "exclude": ()}, "AdamW", {"lr": 0.01}),
    "rmsprop": (fc.optim.RMSprop, {"learning_rate": 0.01}, "RMSprop", {"lr": 0.01}),
    "rmsprop, momentum, decay": (
        fc.optim.RMSprop, {"learning_rate": 0.01, "momentum": 0.5, "weight_decay": 0.05, "exclude": ()},
        "RMSprop", {"lr": 0.01, "momentum": 0.5, "weight_decay": 0.05},
    ),
}  # fmt: skip


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_twenty_steps_are_those_of_pytorch(torch, loss, optimizer):
    ours, make_theirs, targets = LOSSES[loss]
    kind, options, name, torch_options = OPTIMIZERS[optimizer]
    model = network()
    other = in_torch(torch, model)
    values, first, last = run(model, ours, kind(model.parameters(), **options), targets)
    theirs, by_other = make_theirs(torch), getattr(torch.optim, name)(other.parameters(), **torch_options)
    for step, (x, target) in enumerate(zip(X, targets, strict=True)):
        by_other.zero_grad()
        value = theirs(other(torch.from_numpy(x)), torch.from_numpy(target))
        value.backward()
        assert abs(value.item() - values[step]) < BOUND
        if step == 0:
            for found, expected in zip(first.values(), arrays_of(other, "grad"), strict=True):
                np.testing.assert_allclose(found, expected, rtol=0, atol=BOUND)
        by_other.step()
    for found, expected in zip(last.values(), arrays_of(other), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=BOUND)


def test_normalized_networks_are_those_of_pytorch(torch):
    """Statistics of the batch while training, running ones afterwards."""
    model = network(dropout=False, normalized=True)
    other = in_torch(torch, model)
    run(model.train(), fc.losses.cross_entropy, fc.optim.SGD(model.parameters(), 0.1, momentum=0.9), LABELS)
    by_other = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    for x, target in zip(X, LABELS, strict=True):
        by_other.zero_grad()
        torch.nn.functional.cross_entropy(other(torch.from_numpy(x)), torch.from_numpy(target)).backward()
        by_other.step()
    for found, expected in zip(model.parameters(), arrays_of(other), strict=True):
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=BOUND)
    for (_, found), expected in zip(model.named_buffers(), other.buffers(), strict=False):
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=BOUND)
    found = model.eval()(X[0]).numpy()
    np.testing.assert_allclose(found, other.eval()(torch.from_numpy(X[0])).detach().numpy(), rtol=0, atol=BOUND)


def test_clipped_steps_are_those_of_pytorch(torch):
    model = network()
    other = in_torch(torch, model)
    _, _, last = run(model, fc.losses.mse, fc.optim.SGD(model.parameters(), 0.1, clip_norm=0.2), VALUES)
    by_other = torch.optim.SGD(other.parameters(), lr=0.1)
    clipped = 0
    for x, target in zip(X, VALUES, strict=True):
        by_other.zero_grad()
        torch.nn.functional.mse_loss(other(torch.from_numpy(x)), torch.from_numpy(target)).backward()
        clipped += bool(torch.nn.utils.clip_grad_norm_(other.parameters(), 0.2) > 0.2)
        by_other.step()
    assert clipped
    for found, expected in zip(last.values(), arrays_of(other), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=BOUND)


# ---- plain NumPy -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["cross_entropy", "mean_squared_error"])
def test_twenty_steps_of_adam_are_those_of_plain_numpy(loss):
    model = network(dropout=False)
    names = [f"layers.{i}" for i in range(4)]
    plain = plain_numpy.Network(model.state_dict(), dict(zip(names, ("tanh", "gelu", "relu", "linear"), strict=True)))
    targets = LABELS if loss == "cross_entropy" else VALUES
    values, first, last = run(model, fc.losses.TABLE[loss], fc.optim.Adam(model.parameters(), 0.01), targets)
    oracle = plain_numpy.Adam(0.01)
    for step, (x, target) in enumerate(zip(X, targets, strict=True)):
        value, gradients = plain.gradients(names, x, target, getattr(plain_numpy, loss))
        assert abs(value - values[step]) < BOUND
        if step == 0:
            for name, gradient in gradients.items():
                np.testing.assert_allclose(first[name], gradient, rtol=0, atol=BOUND)
        oracle.step(plain.parameters, gradients)
    for name, array in plain.parameters.items():
        np.testing.assert_allclose(last[name], array, rtol=0, atol=BOUND)


# ---- the reference device --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "optimizer"), list(zip(LOSSES, itertools.cycle(OPTIMIZERS))))
def test_twenty_steps_are_those_of_the_reference_device(loss, optimizer):
    """Normalization and dropout as well: the same masks are drawn on every device."""
    ours, _, targets = LOSSES[loss]
    kind, options, _, _ = OPTIMIZERS[optimizer]
    results = []
    for device in ("cpu", "reference"):
        model = network(normalized=True).to(device).train()
        fc.manual_seed(1)
        results.append(run(model, ours, kind(model.parameters(), **options), targets))
    (values, first, last), (values_there, first_there, last_there) = results
    np.testing.assert_allclose(values, values_there, rtol=0, atol=BOUND)
    for found, expected in ((first, first_there), (last, last_there)):
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=BOUND, err_msg=name)


# ---- float32 ---------------------------------------------------------------------------------------------------------

# sizes, activation, optimizer and its PyTorch counterpart, learning rate
PRECISION: dict[str, tuple[list[int], str, Any, str, float]] = {
    "relu, adam": ([8, 64, 64, 4], "relu", fc.optim.Adam, "Adam", 1e-3),
    "gelu, adam": ([784, 128, 64, 10], "gelu", fc.optim.Adam, "Adam", 1e-3),
    "sigmoid, sgd": ([784, 128, 64, 10], "sigmoid", fc.optim.SGD, "SGD", 1e-2),
}


def chain(sizes: list[int], activation: str, dtype: str) -> fc.nn.Sequential:
    names = [activation] * (len(sizes) - 2) + [None]
    sizes_and_names = zip(itertools.pairwise(sizes), names, strict=True)
    return fc.nn.Sequential(*[fc.nn.Dense(o, name, dtype=dtype, in_features=i) for (i, o), name in sizes_and_names])


def errors(
    logits: np.ndarray, parameters: list[np.ndarray], exact: Any, start: list[np.ndarray]
) -> tuple[float, float]:
    """Of the logits, relative to the largest; of the worst parameter, relative to how far it went (both RMS)."""
    true_logits, true_parameters = exact
    updates = [
        np.linalg.norm(p.astype(np.float64) - t) / np.linalg.norm(t - s)
        for p, t, s in zip(parameters, true_parameters, start, strict=True)
    ]
    return float(np.abs(logits - true_logits).max() / np.abs(true_logits).max()), float(max(updates))


@pytest.mark.parametrize("case", PRECISION)
def test_float32_errs_at_most_twice_as_much_as_pytorch(torch, case):
    """After three steps, against float64 from the same float32 start; the geometric mean of several seeds."""
    sizes, activation, kind, name, rate = PRECISION[case]
    ratios = []
    for seed in range(8):
        generator = np.random.default_rng(seed)
        x = generator.normal(size=(3, 32, sizes[0])).astype(np.float32)
        labels = generator.integers(0, sizes[-1], (3, 32))
        fc.manual_seed(seed)
        model, exact = chain(sizes, activation, "float32"), chain(sizes, activation, "float64")
        exact.load_state_dict(model.state_dict())
        start, other = list(exact.state_dict().values()), in_torch(torch, model, "float32")
        by_other = getattr(torch.optim, name)(other.parameters(), lr=rate)
        for trained, data in ((model, x), (exact, x.astype(np.float64))):
            optimizer = kind(trained.parameters(), learning_rate=rate)
            for rows, target in zip(data, labels, strict=True):
                optimizer.zero_grad()
                fc.losses.cross_entropy(trained(rows), target).backward()
                optimizer.step()
        for rows, target in zip(x, labels, strict=True):
            by_other.zero_grad()
            torch.nn.functional.cross_entropy(other(torch.from_numpy(rows)), torch.from_numpy(target)).backward()
            by_other.step()
        truth = exact(x[0].astype(np.float64)).numpy(), list(exact.state_dict().values())
        ours = errors(model(x[0]).numpy(), list(model.state_dict().values()), truth, start)
        theirs = errors(other(torch.from_numpy(x[0])).detach().numpy(), arrays_of(other), truth, start)
        ratios.append(np.log(np.divide(ours, theirs)))
    logits, update = np.exp(np.mean(ratios, axis=0))
    assert logits < 2, f"{logits:.2f} times the error of PyTorch in the logits"
    assert update < 2, f"{update:.2f} times the error of PyTorch in an update"
