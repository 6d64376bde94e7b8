"""The fused dense layer against the same equation in plain operations, PyTorch and central differences."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from fcdense import activations, ops
from fcdense.activation import Activation
from fcdense.backends import device, use_device
from fcdense.dense import DenseNode
from fcdense.errors import DeviceError, DTypeError, GraphError, ShapeError
from fcdense.gradients import grad, gradcheck
from fcdense.nn import Dense
from fcdense.operations import Elementwise
from fcdense.parameter import Parameter, pack
from fcdense.tensor import Tensor, tensor

CPU = device("cpu")
ELEMENTWISE = [name for name in activations.names() if isinstance(activations.get(name), Activation)]
Layer = Callable[..., Tensor]


def plain(x: Tensor, w: Tensor, b: Tensor | None = None, activation: Any = None) -> Tensor:
    """f(x @ w + b), an operation at a time."""
    z = x @ w if b is None else x @ w + b
    return z if activation is None else Tensor.apply(Elementwise(activation.program), z)


def fused(x: Tensor, w: Tensor, b: Tensor | None = None, activation: Any = None) -> Tensor:
    return ops.dense(x, w, b, activation or activations.get("linear"))


def weights(rng: np.random.Generator, *sizes: int) -> list[Any]:
    return [a for n, m in pairwise(sizes) for a in (rng.normal(size=(n, m)), rng.normal(size=m))]


def as_leaves(arrays: Sequence[Any]) -> list[Tensor]:
    return [tensor(a, requires_grad=True) for a in arrays]


def as_parameters(arrays: Sequence[Any]) -> list[Tensor]:
    parameters = [Parameter(a.copy(), CPU) for a in arrays]
    pack(parameters)
    return list(parameters)


def compare(
    run: Callable[[Layer, Tensor, list[Tensor]], Tensor], x: Any, arrays: Sequence[Any], make: Any = as_leaves
) -> None:
    """Result and gradients of `run` with fused layers and with plain ones, leaves or packed parameters."""
    outcomes = []
    for layer, leaves in ((fused, make(arrays)), (plain, as_leaves(arrays))):
        start = tensor(x, requires_grad=True)
        out = run(layer, start, leaves)
        out.sum().backward()
        outcomes.append([out, start.grad, *(leaf.grad for leaf in leaves)])
    for one, other in zip(*outcomes, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.shape == other.shape
            scale = max(1.0, float(np.abs(other.numpy()).max(initial=0.0)))
            np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-14, atol=1e-14 * scale)


def chain(layer: Layer, x: Tensor, p: list[Tensor], f: Any) -> Tensor:
    h = x
    for k in range(0, len(p), 2):
        h = layer(h, p[k], p[k + 1], f)
    return h


@pytest.mark.parametrize("make", [as_leaves, as_parameters])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_three_layers_of_every_activation(name: str, make: Any, rng: np.random.Generator) -> None:
    f = activations.get(name)
    arrays = [a / 3.0 for a in weights(rng, 4, 6, 5, 3)]  # exp(exp(exp(x))) stays finite
    compare(lambda layer, x, p: chain(layer, x, p, f), rng.normal(size=(5, 4)), arrays, make)


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "silu", "linear"])
def test_gradients_against_central_differences(name: str, rng: np.random.Generator) -> None:
    f = activations.get(name)
    arrays = [rng.normal(size=(3, 4)), *weights(rng, 4, 3, 2)]
    gradcheck(lambda x, *p: chain(fused, x, list(p), f), arrays)


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "silu", "softplus", "elu", "leaky_relu", "sigmoid"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_against_pytorch(name: str, dtype: Any, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    x, arrays = rng.normal(size=(7, 4)).astype(dtype), [a.astype(dtype) for a in weights(rng, 4, 6, 3)]
    ours, theirs = as_leaves([x, *arrays]), [torch.tensor(a, requires_grad=True) for a in (x, *arrays)]
    chain(fused, ours[0], ours[1:], activations.get(name)).sum().backward()
    h, function = theirs[0], getattr(torch.nn.functional, name)
    for k in (1, 3):
        h = function(h @ theirs[k] + theirs[k + 1])
    h.sum().backward()
    tolerance = 1e-5 if dtype == np.float32 else 1e-13
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.grad.numpy(), other.grad.numpy(), rtol=tolerance, atol=tolerance)


TANH, GELU, RELU = (activations.get(name) for name in ("tanh", "gelu", "relu"))


def shared(layer: Layer, x: Tensor, p: list[Tensor]) -> Tensor:
    return layer(layer(layer(x, p[0], p[1], TANH), p[0], p[1], GELU), p[0], p[1], TANH)


def tied(layer: Layer, x: Tensor, p: list[Tensor]) -> Tensor:
    return layer(layer(x, p[0], p[1], TANH), p[0].T, None, TANH)


def residual(layer: Layer, x: Tensor, p: list[Tensor]) -> Tensor:
    h = layer(x, p[0], p[1], TANH)
    return h + layer(h, p[2], p[3], GELU)


def two_heads(layer: Layer, x: Tensor, p: list[Tensor]) -> Tensor:
    h = layer(x, p[0], p[1], GELU)
    return layer(h, p[2], p[3], TANH) + layer(h, p[2], p[3], RELU)


def hidden_loss(layer: Layer, x: Tensor, p: list[Tensor]) -> Tensor:
    h = layer(x, p[0], p[1], TANH)
    return layer(h, p[2], p[3], GELU).sum() + (h * h).sum()


def as_its_own_weights(layer: Layer, x: Tensor, p: list[Tensor]) -> Tensor:
    h = layer(x, p[0], p[1], TANH)
    return layer(h, h, p[3], TANH)


def without_bias(layer: Layer, x: Tensor, p: list[Tensor]) -> Tensor:
    return layer(layer(layer(x, p[0], None, TANH), p[2], None), p[2], None, GELU) + 0.0 * (p[1].sum() + p[3].sum())


def computed_weights(layer: Layer, x: Tensor, p: list[Tensor]) -> Tensor:
    return layer(layer(x, p[0] * p[0], np.tanh(p[1]), TANH), p[2] * 0.5, p[3] + p[1], GELU)


def through_a_view(layer: Layer, x: Tensor, p: list[Tensor]) -> Tensor:
    return layer(layer(x, p[0], p[1], TANH)[::-1], p[2], p[3], TANH)


def strided_gradient(layer: Layer, x: Tensor, p: list[Tensor]) -> Tensor:
    return layer(layer(x, p[0], p[1]), p[2], None).T[1:, ::2].sum(axis=1) + 0.0 * p[3].sum()


@pytest.mark.parametrize("make", [as_leaves, as_parameters])
@pytest.mark.parametrize(
    "run",
    [
        shared,
        tied,
        residual,
        two_heads,
        hidden_loss,
        as_its_own_weights,
        without_bias,
        computed_weights,
        through_a_view,
        strided_gradient,
    ],
    ids=lambda run: run.__name__,
)
def test_layers_used_in_other_ways(run: Any, make: Any, rng: np.random.Generator) -> None:
    compare(run, rng.normal(size=(4, 4)), weights(rng, 4, 4, 4), make)


@pytest.mark.parametrize(
    "frozen", [(0,), (1,), (2,), (3,), (0, 1), (0, 2), (1, 3), (2, 3), (0, 1, 2, 3), (0, 1, 2)], ids=str
)
@pytest.mark.parametrize("make", [as_leaves, as_parameters])
def test_frozen_kernels_and_biases(frozen: tuple[int, ...], make: Any, rng: np.random.Generator) -> None:
    def run(layer: Layer, x: Tensor, p: list[Tensor]) -> Tensor:
        for k in frozen:
            p[k].requires_grad = False
        return chain(layer, x, p, GELU)

    compare(run, rng.normal(size=(5, 3)), weights(rng, 3, 4, 2), make)


@pytest.mark.parametrize("shape", [(3,), (0, 3), (2, 5, 3), (2, 0, 3), (1, 1, 1, 3)])
def test_leading_axes(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    arrays = weights(rng, 3, 4, 2)
    compare(lambda layer, x, p: chain(layer, x, p, TANH), rng.normal(size=shape), arrays)
    assert chain(fused, tensor(rng.normal(size=shape)), as_leaves(arrays), TANH).shape == (*shape[:-1], 2)


@pytest.mark.parametrize(("inputs", "outputs"), [(0, 3), (3, 0), (0, 0)])
def test_no_features(inputs: int, outputs: int, rng: np.random.Generator) -> None:
    compare(lambda layer, x, p: layer(x, p[0], p[1], TANH), rng.normal(size=(4, inputs)), weights(rng, inputs, outputs))


def test_inputs_of_any_strides(rng: np.random.Generator) -> None:
    base = rng.normal(size=(6, 8))
    for view in (base.T, base[::2, ::-1], base[:, 2:5], np.broadcast_to(base[0], (4, 8))):
        array, arrays = np.array(view), weights(rng, view.shape[1], 3)
        start = tensor(array)
        strided = start.derived(view)
        for one, other in zip(
            *(grad(fused(x, *(p := as_leaves(arrays)), TANH).sum(), p) for x in (start, strided)), strict=True
        ):
            np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-14, atol=1e-14)


def test_several_backwards_sum_up(rng: np.random.Generator) -> None:
    arrays, batches = weights(rng, 3, 4, 2), [rng.normal(size=(5, 3)) for _ in range(3)]
    expected = [np.zeros_like(a) for a in arrays]
    for x in batches:
        leaves = as_leaves(arrays)
        chain(plain, tensor(x), leaves, GELU).sum().backward()
        expected = [total + leaf.grad.numpy() for total, leaf in zip(expected, leaves, strict=True)]
    parameters = as_parameters(arrays)
    for _ in range(2):  # the second round overwrites the first after zero_grad
        for p in parameters:
            p.zero_grad()
        for x in batches:
            chain(fused, tensor(x), parameters, GELU).sum().backward()
        for p, total in zip(parameters, expected, strict=True):
            np.testing.assert_allclose(p.grad.numpy(), total, rtol=1e-13, atol=1e-13)


def test_the_peephole_joins_two_layers_and_only_where_nobody_else_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[bool] = []
    original = DenseNode._input_gradient

    def spy(self: DenseNode, *args: Any) -> Any:
        result = original(self, *args)
        joined.append(not isinstance(result, Tensor))
        return result

    monkeypatch.setattr(DenseNode, "_input_gradient", spy)
    x, w = tensor(np.ones((2, 3))), tensor(np.eye(3), requires_grad=True)
    h = fused(x, w, None, TANH)
    fused(h, w, None, TANH).sum().backward()
    assert joined == [True]
    joined.clear()
    h = fused(x, w, None, TANH)
    y = fused(h, w, None, TANH)
    gradient = grad(y.sum(), h)
    assert joined == [False]
    np.testing.assert_allclose(gradient.numpy(), (1.0 - y.numpy() ** 2) @ np.eye(3), rtol=1e-15)


def test_gradients_of_hidden_layers_come_whole(rng: np.random.Generator) -> None:
    """d(y)/d(h) must be dy Wᵀ, not yet multiplied by h's own f'."""
    arrays, x = weights(rng, 3, 4, 2), rng.normal(size=(5, 3))
    results = []
    for layer in (fused, plain):
        p = as_leaves(arrays)
        start = tensor(x, requires_grad=True)
        h = layer(start, p[0], p[1], GELU)
        y = layer(h, p[2], p[3], TANH)
        results.append(grad(y.sum(), [h, start, p[0], p[1], p[3], y, h]))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-13, atol=1e-14)


def test_the_input_gradient_is_computed_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    backend = CPU.backend
    for name in ("dense_grad_input", "dense_grad_weight"):
        original = getattr(backend, name)
        monkeypatch.setattr(backend, name, lambda *a, _f=original, _n=name, **k: (calls.append(_n), _f(*a, **k))[1])
    leaves = as_leaves([np.ones((2, 3)), np.eye(3), np.eye(3)])
    for x, wanted, expected in (
        (leaves[0].detach(), None, ["dense_grad_input", "dense_grad_weight", "dense_grad_weight"]),
        (leaves[0], leaves[0], ["dense_grad_input", "dense_grad_input"]),
        (leaves[0], leaves[2], ["dense_grad_weight"]),
    ):
        calls.clear()
        y = fused(fused(x, leaves[1], None, TANH), leaves[2], None, TANH).sum()
        if wanted is None:
            y.backward()
        else:
            grad(y, wanted)
        assert calls == expected


@pytest.mark.parametrize("name", ["tanh", "gelu", "softplus", "silu", "sigmoid"])
def test_second_derivatives(name: str, rng: np.random.Generator) -> None:
    f, arrays = activations.get(name), [rng.normal(size=(3, 2)), *weights(rng, 2, 4, 1)]

    def penalty(*leaves: Tensor) -> Tensor:
        y = chain(fused, leaves[0], list(leaves[1:]), f)
        gradients = grad(y.sum(), list(leaves), create_graph=True)
        return sum(((g * g).sum() for g in gradients), y.sum())

    gradcheck(penalty, arrays, atol=1e-4)
    leaves = as_leaves(arrays)
    y = chain(fused, leaves[0], leaves[1:], f).sum()
    for recorded, joined in zip(grad(y, leaves, create_graph=True), grad(y, leaves), strict=True):
        np.testing.assert_allclose(recorded.numpy(), joined.numpy(), rtol=1e-13, atol=1e-14)


def test_a_change_of_any_operand_is_refused(rng: np.random.Generator) -> None:
    """Of the bias too: second derivatives compute the layer once more."""
    for k in range(3):
        leaves = as_leaves([rng.normal(size=(3, 2)), *weights(rng, 2, 4)])
        y = fused(*leaves, GELU).sum()
        leaves[k].version.bump()
        for create_graph in (False, True):
            with pytest.raises(GraphError, match=re.escape(f"'dense' saved an array of shape {leaves[k].shape}")):
                grad(y, leaves[0], create_graph=create_graph)


def test_what_does_not_fit() -> None:
    x, w, b = tensor(np.ones((2, 3))), tensor(np.ones((3, 4))), tensor(np.ones(4))
    for shape in ((4, 3), (3,), (3, 4, 1)):
        with pytest.raises(ShapeError, match=re.escape(f"x of shape (2, 3) does not fit a kernel of shape {shape}")):
            ops.dense(x, tensor(np.ones(shape)))
    with pytest.raises(ShapeError, match=r"a bias of shape \(3,\)"):
        ops.dense(x, w, tensor(np.ones(3)))
    with pytest.raises(ShapeError):
        ops.dense(tensor(1.0), w)
    with pytest.raises(DTypeError, match="x is float64, the kernel float32"):
        ops.dense(x, w.astype(np.float32))
    with pytest.raises(DTypeError, match="x is float64, the bias float32"):
        ops.dense(x, w, b.astype(np.float32))
    with pytest.raises(DTypeError, match="x is int64"):
        ops.dense(x.astype(int), w.astype(int))
    with pytest.raises(DeviceError, match="x lies on cpu, the kernel on reference"):
        ops.dense(x, w.to("reference"))


def test_float16_computes_here_too(rng: np.random.Generator) -> None:
    """float16 is meant for CUDA; on the CPU the same code rounds each result to it."""
    arrays = [rng.integers(-2, 3, shape).astype(np.float16) for shape in ((4, 3), (3, 2), (2,))]
    x, w, b = as_leaves(arrays)
    y = fused(x, w, b, RELU)
    y.sum().backward()
    z = arrays[0].astype(float) @ arrays[1].astype(float) + arrays[2].astype(float)
    np.testing.assert_array_equal(y.numpy(), np.maximum(z, 0.0))
    np.testing.assert_array_equal(w.grad.numpy(), arrays[0].astype(float).T @ (z > 0))
    assert {t.dtype for t in (y, x.grad, w.grad, b.grad)} == {np.dtype(np.float16)}


@pytest.mark.parametrize("on", ["numpy", "cpu"])
@pytest.mark.parametrize("act", ["linear", "tanh"])
@pytest.mark.parametrize(
    ("which", "has_bias"),
    [
        *(("kernel", has_bias) for has_bias in (True, False)),
        *(("bias below", has_bias) for has_bias in (True, False)),
        ("bias", True),
        ("bias as an array", True),
    ],
)
def test_a_gradient_that_lies_in_a_parameters_own(which: str, has_bias: bool, act: str, on: str) -> None:
    """It is read before it is written, as if it were a copy."""
    rng = np.random.default_rng(4)
    rows = 5 if which == "kernel" else 1
    with use_device(on):
        below, layer = Dense(5, in_features=4), Dense(5, act, in_features=5, use_bias=has_bias)
        x = tensor(rng.normal(size=(rows, 4)).astype(np.float32))
        layer(below(x)).sum().backward()
        before = {parameter: parameter.grad.numpy().copy() for parameter in [*below.parameters(), *layer.parameters()]}
        own = {"kernel": layer.kernel, "bias below": below.bias}.get(which, layer.bias)
        given = own.grad.reshape(rows, 5)
        copy = given.numpy().copy()
        layer(below(x)).backward(given.numpy() if which == "bias as an array" else given)
        found = {parameter: parameter.grad.numpy() - before[parameter] for parameter in before}
        for parameter in before:
            parameter.zero_grad()
        layer(below(x)).backward(copy)
        for parameter, ours in found.items():
            np.testing.assert_allclose(ours, parameter.grad.numpy(), rtol=1e-5, atol=1e-5)
