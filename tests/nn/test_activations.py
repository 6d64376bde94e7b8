"""Activation layers: values and gradients against PyTorch, extreme inputs, parameters of their own."""

from __future__ import annotations

import numpy as np
import pytest

from fcdense import activations, nn
from fcdense.errors import ArgumentError, DTypeError, ShapeError
from fcdense.tensor import tensor

PAIRS = {
    "ReLU": "ReLU",
    "ReLU6": "ReLU6",
    "SELU": "SELU",
    "Sigmoid": "Sigmoid",
    "HardSigmoid": "Hardsigmoid",
    "LogSigmoid": "LogSigmoid",
    "Tanh": "Tanh",
    "HardTanh": "Hardtanh",
    "TanhShrink": "Tanhshrink",
    "Softplus": "Softplus",
    "Softsign": "Softsign",
    "SiLU": "SiLU",
    "HardSiLU": "Hardswish",
    "Mish": "Mish",
}
OPTIONS = [
    ("LeakyReLU", (), "LeakyReLU", ()),
    ("LeakyReLU", (0.2,), "LeakyReLU", (0.2,)),
    ("LeakyReLU", (-0.5,), "LeakyReLU", (-0.5,)),
    ("ELU", (), "ELU", ()),
    ("ELU", (0.3,), "ELU", (0.3,)),
    ("CELU", (), "CELU", ()),
    ("CELU", (2.5,), "CELU", (2.5,)),
    ("GELU", (), "GELU", ()),
    ("GELU", ("tanh",), "GELU", ("tanh",)),
    ("Softmax", (), "Softmax", (-1,)),
    ("Softmax", (0,), "Softmax", (0,)),
    ("LogSoftmax", (), "LogSoftmax", (-1,)),
    ("LogSoftmax", (1,), "LogSoftmax", (1,)),
    *((ours, (), theirs, ()) for ours, theirs in PAIRS.items()),
]
SMOOTH = [
    *(nn.SELU, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.TanhShrink, nn.Softplus, nn.Squareplus, nn.Softsign, nn.SiLU),
    *(nn.Mish, nn.Sine, nn.ELU, nn.CELU, nn.GELU, nn.Softmax, nn.LogSoftmax, nn.LeakyReLU, nn.ReLU),
]


@pytest.mark.parametrize(("name", "given", "theirs", "options"), OPTIONS)
def test_equals_torch(name, given, theirs, options, rng):
    torch = pytest.importorskip("torch")
    values = 3.0 * rng.standard_normal((6, 5, 7))
    dy = rng.standard_normal(values.shape)
    x = tensor(values, requires_grad=True)
    y = getattr(nn, name)(*given)(x)
    y.backward(tensor(dy))
    z = torch.tensor(values, requires_grad=True)
    keywords = {"approximate": options[0]} if name == "GELU" and options else None
    other = getattr(torch.nn, theirs)(**keywords) if keywords else getattr(torch.nn, theirs)(*options)
    expected = other(z)
    expected.backward(torch.tensor(dy))
    np.testing.assert_allclose(y.numpy(), expected.detach().numpy(), rtol=1e-12, atol=1e-14)
    # PyTorch's hard sigmoid has a slope of 1/6 in float32 whatever the dtype.
    np.testing.assert_allclose(
        x.grad.numpy(), z.grad.numpy(), rtol=1e-7 if name == "HardSigmoid" else 1e-11, atol=1e-13
    )


@pytest.mark.parametrize("kind", SMOOTH)
def test_gradients(kind, check_gradients, rng):
    check_gradients(kind(), rng.standard_normal((4, 3)))


def test_defaults_are_those_of_the_table():
    assert nn.LeakyReLU().activation is activations.leaky_relu
    assert nn.ELU().activation is activations.elu
    assert nn.CELU().activation is activations.celu
    assert nn.GELU().activation is activations.gelu
    assert nn.GELU("tanh").activation is activations.gelu_tanh
    assert nn.LeakyReLU(0.2).activation is nn.LeakyReLU(0.2).activation


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.LeakyReLU("0.1"), "slope"),
        (lambda: nn.LeakyReLU(float("nan")), "slope"),
        (lambda: nn.LeakyReLU(10**400), "slope"),
        (lambda: nn.ELU(float("inf")), "alpha"),
        (lambda: nn.CELU(0.0), "alpha"),
        (lambda: nn.CELU(True), "alpha"),
        (lambda: nn.GELU(True), "approximate"),
        (lambda: nn.Softmax(1.5), "axis"),
        (lambda: nn.LogSoftmax(None), "axis"),
        (lambda: nn.Activation(3), "activation"),
    ],
)
def test_arguments_that_mean_nothing(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_inputs():
    with pytest.raises(DTypeError):
        nn.ReLU()(np.array([1, 2]))
    with pytest.raises(ShapeError):
        nn.Softmax()(np.float64(2.0))
    with pytest.raises(ShapeError):
        nn.Softmax(axis=2)(np.zeros((2, 2)))
    with pytest.raises(ArgumentError, match="ReLU: x is None"):
        nn.ReLU()(None)
    assert nn.ReLU()(np.zeros((0, 3))).shape == (0, 3)
    assert nn.Sigmoid()(np.float64(0.0)).item() == 0.5


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.ReLU(), "ReLU()"),
        (nn.LeakyReLU(0.2), "LeakyReLU(slope=0.2)"),
        (nn.ELU(), "ELU(alpha=1)"),
        (nn.GELU(), "GELU(approximate='none')"),
        (nn.Softmax(), "Softmax(axis=-1)"),
        (nn.Activation("tanh"), "Activation(tanh)"),
    ],
)
def test_repr(layer, text):
    assert repr(layer) == text
