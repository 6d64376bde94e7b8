"""LayerNorm and BatchNorm against PyTorch, in training and evaluation, and their gradients."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from fcdense import nn
from fcdense.errors import ArgumentError, DTypeWarning, ShapeError
from fcdense.random import manual_seed
from fcdense.tape import no_grad
from fcdense.tensor import tensor


def randomize(layer, rng):
    for parameter in layer.parameters():
        parameter.assign(rng.standard_normal(parameter.shape))


@pytest.mark.parametrize(("use_scale", "use_bias"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.BatchNorm])
@pytest.mark.parametrize("shape", [(6, 4), (2, 3, 4)])
def test_gradients(kind, use_scale, use_bias, shape, check_gradients, rng):
    layer = kind(use_scale=use_scale, use_bias=use_bias, dtype="float64", in_features=4)
    randomize(layer, rng)
    check_gradients(layer, rng.standard_normal(shape))
    check_gradients(layer.eval(), rng.standard_normal(shape))


def test_gradients_of_one_row(check_gradients, rng):
    check_gradients(nn.LayerNorm(dtype="float64"), rng.standard_normal(5))
    check_gradients(nn.BatchNorm(dtype="float64").eval(), rng.standard_normal((1, 5)))


@pytest.mark.parametrize("shape", [(6, 4), (2, 3, 4), (4,), (0, 4)])
def test_layer_norm_equals_torch(shape, rng):
    torch = pytest.importorskip("torch")
    ours, theirs = nn.LayerNorm(1e-3, dtype="float64", in_features=4), torch.nn.LayerNorm(4, 1e-3, dtype=torch.float64)
    randomize(ours, rng)
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(ours.scale.numpy()))
        theirs.bias.copy_(torch.tensor(ours.bias.numpy()))
    compare(torch, ours, theirs, rng.standard_normal(shape), rng)


def compare(torch, ours, theirs, values, rng):
    """Output and gradients of both for one input."""
    dy = rng.standard_normal(values.shape)
    x, z = tensor(values, requires_grad=True), torch.tensor(values, requires_grad=True)
    ours.zero_grad()
    theirs.zero_grad()
    y, expected = ours(x), theirs(z)
    y.backward(tensor(dy))
    expected.backward(torch.tensor(dy))
    options = {"rtol": 1e-10, "atol": 1e-12}
    np.testing.assert_allclose(y.numpy(), expected.detach().numpy(), **options)
    np.testing.assert_allclose(x.grad.numpy(), z.grad.numpy(), **options)
    np.testing.assert_allclose(ours.scale.grad.numpy(), theirs.weight.grad.numpy(), **options)
    np.testing.assert_allclose(ours.bias.grad.numpy(), theirs.bias.grad.numpy(), **options)


def test_batch_norm_equals_torch(rng):
    """Training steps, then evaluation; PyTorch's momentum is one minus ours."""
    torch = pytest.importorskip("torch")
    ours = nn.BatchNorm(0.8, 1e-3, dtype="float64", in_features=4)
    theirs = torch.nn.BatchNorm1d(4, eps=1e-3, momentum=0.2, dtype=torch.float64)
    randomize(ours, rng)
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(ours.scale.numpy()))
        theirs.bias.copy_(torch.tensor(ours.bias.numpy()))
    for rows in (7, 2, 30):
        compare(torch, ours, theirs, 3.0 + 2.0 * rng.standard_normal((rows, 4)), rng)
        np.testing.assert_allclose(ours.running_mean.numpy(), theirs.running_mean.numpy(), rtol=1e-12)
        np.testing.assert_allclose(ours.running_var.numpy(), theirs.running_var.numpy(), rtol=1e-12)
    ours.eval()
    theirs.eval()
    before = ours.state_dict()
    for rows in (1, 5):
        compare(torch, ours, theirs, rng.standard_normal((rows, 4)), rng)
    assert all((array == before[name]).all() for name, array in ours.state_dict().items())


def test_all_axes_but_the_last_are_rows(rng):
    x = rng.standard_normal((2, 3, 4))
    one, other = nn.BatchNorm(dtype="float64"), nn.BatchNorm(dtype="float64")
    np.testing.assert_allclose(one(x).numpy(), other(x.reshape(6, 4)).numpy().reshape(x.shape), rtol=1e-12)
    np.testing.assert_allclose(one.running_var.numpy(), other.running_var.numpy(), rtol=1e-14)
    np.testing.assert_allclose(one.running_var.numpy(), 0.9 + 0.1 * x.reshape(6, 4).var(axis=0, ddof=1), rtol=1e-12)


@pytest.mark.parametrize("shape", [(1, 4), (1, 1, 4), (4,), (0, 4)])
def test_training_needs_two_rows(shape):
    layer = nn.Sequential(nn.BatchNorm(in_features=4))
    before = layer.state_dict()
    with pytest.raises(ShapeError, match=r"BatchNorm 'layers.0': .* at least 2"):
        layer(np.ones(shape, np.float32))
    assert all((array == before[name]).all() for name, array in layer.state_dict().items())
    assert layer.eval()(np.ones(shape, np.float32)).shape == shape


def test_statistics_are_no_parameters():
    layer = nn.BatchNorm(in_features=4)
    assert [name for name, _ in layer.named_parameters()] == ["scale", "bias"]
    assert not any(parameter.decay for parameter in layer.parameters())
    assert [name for name, _ in layer.named_buffers()] == ["running_mean", "running_var"]
    layer(np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)).sum().backward()
    assert layer.running_mean.grad is None
    assert not layer.running_mean.requires_grad


def test_frozen_and_unrecorded_calls_still_follow_the_batches(rng):
    layer = nn.BatchNorm(in_features=4).freeze()
    x = rng.standard_normal((5, 4)).astype(np.float32)
    with no_grad():
        layer(x)
    np.testing.assert_allclose(layer.running_mean.numpy(), 0.1 * x.mean(axis=0), rtol=1e-5, atol=1e-7)


def test_two_calls_before_one_backward(rng):
    """As for a discriminator that sees real and made rows: the statistics move between the calls."""
    layer = nn.BatchNorm(dtype="float64")
    total = layer(rng.standard_normal((5, 4))).sum() + (layer(rng.standard_normal((5, 4))) ** 2).sum()
    total.backward()
    assert layer.scale.has_grad


def test_lazy_sizes_and_copies():
    layer = nn.BatchNorm()
    assert layer.in_features is None
    assert repr(layer) == "BatchNorm(?, eps=1e-05, momentum=0.9)"
    layer(np.ones((3, 5), np.float32))
    assert repr(layer) == "BatchNorm(5, eps=1e-05, momentum=0.9)"
    assert layer.in_features == 5
    twin = copy.deepcopy(layer)
    twin(np.ones((3, 5), np.float32))
    assert (twin.running_mean.numpy() != layer.running_mean.numpy()).all()
    bare = nn.BatchNorm(use_scale=False, use_bias=False)
    bare(np.ones((3, 5), np.float32))
    assert bare.in_features == 5
    assert (
        repr(nn.LayerNorm(use_bias=False, dtype="float64")) == "LayerNorm(?, eps=1e-05, use_bias=False, dtype=float64)"
    )


def test_sizes_that_differ():
    for kind in (nn.LayerNorm, nn.BatchNorm):
        with pytest.raises(ShapeError, match=rf"{kind.__name__}: x has 3 features, its scale expects 4 \(x \(2, 3\)"):
            kind(in_features=4)(np.ones((2, 3), np.float32))
    free = nn.LayerNorm(use_scale=False, use_bias=False)
    assert free(np.ones((2, 3), np.float32)).shape == (2, 3)
    assert free(np.ones((2, 4), np.float32)).shape == (2, 4)
    with pytest.raises(ShapeError, match="expects 4"):
        nn.LayerNorm(use_scale=False, use_bias=False, in_features=4)(np.ones((2, 3), np.float32))


def test_casts_as_dense_does():
    for kind in (nn.LayerNorm, nn.BatchNorm):
        with pytest.warns(DTypeWarning, match=f"{kind.__name__}: x is float64"):
            assert kind()(np.ones((2, 3))).dtype == np.float32
        assert kind()(np.ones((2, 3), int)).dtype == np.float32


def test_a_constant_feature_stays_finite():
    manual_seed(0)
    assert (nn.BatchNorm()(np.full((4, 2), 7.0, np.float32)).numpy() == 0.0).all()
    assert (nn.LayerNorm()(np.full((4, 2), 7.0, np.float32)).numpy() == 0.0).all()


@pytest.mark.parametrize(
    "options",
    [
        *({"eps": value} for value in (0.0, -1.0, "a", True, float("nan"))),
        *({"use_scale": value} for value in (1, None)),
        *({"in_features": value} for value in (0, 2.5)),
    ],
)
@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.BatchNorm])
def test_arguments_that_mean_nothing(kind, options):
    with pytest.raises(ArgumentError):
        kind(**options)


@pytest.mark.parametrize("momentum", [1.0, -0.1, None, True])
def test_momentum(momentum):
    with pytest.raises(ArgumentError, match="momentum"):
        nn.BatchNorm(momentum)
