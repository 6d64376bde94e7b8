"""The dense layer: values and gradients against PyTorch and central differences, shapes, casts, errors."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from fcdense import activations, constraints, init, nn, regularizers
from fcdense.errors import ArgumentError, DTypeError, DTypeWarning, ShapeError, TraceError, UnknownNameError
from fcdense.gradients import grad
from fcdense.random import manual_seed
from fcdense.tensor import tensor

FUNCTIONS = {
    "linear": lambda t: t,
    "sigmoid": lambda t: t.sigmoid(),
    "relu": lambda t: t.relu(),
    "silu": lambda t: t * t.sigmoid(),
    "softmax": lambda t: t.softmax(-1),
    "log_softmax": lambda t: t.log_softmax(-1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("shape", [(5, 3), (3,), (2, 4, 3), (0, 3), (2, 0, 3), (1, 1, 1, 3)])
@pytest.mark.parametrize("use_bias", [True, False])
def test_equals_torch(name, shape, use_bias, rng):
    torch = pytest.importorskip("torch")
    layer = nn.Dense(4, name, use_bias, bias_initializer="normal", dtype="float64", in_features=3)
    x = tensor(rng.standard_normal(shape), requires_grad=True)
    y = layer(x)
    dy = rng.standard_normal((*shape[:-1], 4))
    assert y.shape == dy.shape
    y.backward(tensor(dy))

    other = torch.nn.Linear(3, 4, use_bias, dtype=torch.float64)
    with torch.no_grad():
        other.weight.copy_(torch.tensor(layer.kernel.numpy()).T)
        if use_bias:
            other.bias.copy_(torch.tensor(layer.bias.numpy()))
    z = torch.tensor(x.numpy(), requires_grad=True)
    expected = FUNCTIONS[name](other(z))
    expected.backward(torch.tensor(dy))
    options = {"rtol": 1e-11, "atol": 1e-13}
    np.testing.assert_allclose(y.numpy(), expected.detach().numpy(), **options)
    np.testing.assert_allclose(x.grad.numpy(), z.grad.numpy(), **options)
    np.testing.assert_allclose(layer.kernel.grad.numpy(), other.weight.grad.numpy().T, **options)
    if use_bias:
        np.testing.assert_allclose(layer.bias.grad.numpy(), other.bias.grad.numpy(), **options)


@pytest.mark.parametrize("activation", ["linear", "tanh", "gelu_tanh", "softmax", "log_softmax", lambda v: v * v])
@pytest.mark.parametrize("shape", [(4, 3), (3,), (2, 2, 3)])
def test_gradients(activation, shape, check_gradients, rng):
    check_gradients(nn.Dense(2, activation, dtype="float64"), rng.standard_normal(shape))


def test_second_derivatives(rng):
    """d2/dx2 of tanh(w x + b), summed: -2 w^2 y (1 - y^2)."""
    layer = nn.Dense(1, "tanh", dtype="float64", in_features=1)
    x = tensor(rng.standard_normal((5, 1)), requires_grad=True)
    y = layer(x)
    first = grad(y.sum(), x, create_graph=True)
    second = grad(first.sum(), x).numpy()
    w, y = layer.kernel.item(), y.numpy()
    np.testing.assert_allclose(second, -2 * w * w * y * (1 - y * y), rtol=1e-12)


def test_parameter_counts():
    model = nn.Sequential(*(nn.Dense(units, "sigmoid") for units in (4, 5, 6)))
    assert model(np.zeros((2, 3), np.float32)).shape == (2, 6)
    assert [layer.num_parameters() for layer in model] == [16, 25, 36]
    assert model.num_parameters() == 77


def test_what_the_parameters_are():
    layer = nn.Dense(
        *(4, "relu"),
        kernel_regularizer="l2",
        bias_regularizer=regularizers.l1(0.5),
        kernel_constraint="non_neg",
        in_features=3,
    )
    kernel, bias = layer.parameters()
    assert (kernel.name, kernel.shape, kernel.decay, kernel.dtype) == ("kernel", (3, 4), True, np.float32)
    assert (bias.name, bias.shape, bias.decay, bias.dtype) == ("bias", (4,), False, np.float32)
    assert kernel.regularizer == layer.kernel_regularizer == regularizers.l2(0.01)
    assert bias.regularizer == layer.bias_regularizer == regularizers.l1(0.5)
    assert kernel.constraint == layer.kernel_constraint == constraints.non_neg()
    assert bias.constraint is None
    assert not bias.numpy().any()
    without = nn.Dense(4, use_bias=False, bias_regularizer="l2", in_features=3)
    assert without.bias is None
    assert without.bias_regularizer is None
    assert without.num_parameters() == 12


def test_initial_values_are_drawn_from_the_seed():
    def weights(dtype="float32", lazy=False):
        manual_seed(3)
        sizes = (None, None) if lazy else (3, 4)
        layers = [nn.Dense(4, dtype=dtype, bias_initializer="normal", in_features=sizes[0])]
        layers += [nn.Dense(5, dtype=dtype, in_features=sizes[1])]
        model = nn.Sequential(layers)
        model(np.zeros((1, 3), dtype))
        return model.state_dict()

    first = weights()
    for other in (weights(), weights(lazy=True)):
        assert first.keys() == other.keys()
        assert all((first[name] == other[name]).all() for name in first)
    wide = weights("float64")
    assert all((first[name] == wide[name].astype(np.float32)).all() for name in first)
    limit = np.sqrt(6 / (3 + 4))
    assert 0.5 * limit < np.abs(first["layers.0.kernel"]).max() <= limit
    manual_seed(4)
    assert (nn.Dense(4, in_features=3).kernel.numpy() != first["layers.0.kernel"]).all()


def test_initializers_of_every_kind():
    assert (nn.Dense(2, kernel_initializer=0.5, in_features=2).kernel.numpy() == 0.5).all()
    assert (nn.Dense(2, bias_initializer=init.constant(3.0), in_features=2).bias.numpy() == 3.0).all()
    eye = nn.Dense(2, kernel_initializer=lambda shape, dtype, generator: np.eye(*shape), in_features=2)
    assert eye.kernel.numpy().tolist() == [[1.0, 0.0], [0.0, 1.0]]


# sizes that are found at the first call


def test_lazy_size():
    layer = nn.Dense(4)
    assert layer.in_features is None
    assert not layer.is_built
    assert repr(layer) == "Dense(? -> 4)"
    assert layer(np.zeros((2, 7), np.float32)).shape == (2, 4)
    assert layer.in_features == 7
    assert layer.kernel.shape == (7, 4)
    with pytest.raises(ShapeError, match="expects 7"):
        layer(np.zeros((2, 6), np.float32))


def test_a_parameter_that_is_held_from_the_start_is_the_one_that_is_built():
    layer = nn.Dense(4)
    kernel, bias = layer.parameters()
    layer(np.zeros((2, 7), np.float32))
    assert layer.kernel is kernel
    assert bias.shape == (4,)


def test_a_tied_kernel_is_not_built_anew():
    first, second = nn.Dense(3, in_features=3), nn.Dense(3)
    second.kernel = first.kernel
    before = np.array(first.kernel.numpy())
    second(np.ones((1, 3), np.float32))
    np.testing.assert_array_equal(first.kernel.numpy(), before)
    assert second.bias.is_built


# errors


@pytest.mark.parametrize("units", [0, -3, 2.5, 2.0, True, np.True_, "64", None, [3], np.float32(3)])
def test_units_must_be_a_positive_integer(units):
    with pytest.raises(ArgumentError, match=r"Dense: units is .*; expected a positive integer"):
        nn.Dense(units)


@pytest.mark.parametrize("size", [0, -1, 1.5, False, "3"])
def test_in_features_must_be_a_positive_integer(size):
    with pytest.raises(ArgumentError, match=r"Dense: in_features is .*; expected a positive integer"):
        nn.Dense(3, in_features=size)


def test_numpy_integers_are_integers():
    layer = nn.Dense(np.int32(4), in_features=np.uint8(3))
    assert (type(layer.units), layer.units, layer.in_features) == (int, 4, 3)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"activation": "sigmiod"}, UnknownNameError),
        ({"activation": 3}, ArgumentError),
        ({"activation": lambda v: v if v > 0 else 0 * v}, TraceError),
        ({"use_bias": 1}, ArgumentError),
        ({"kernel_initializer": "glorot"}, UnknownNameError),
        ({"kernel_regularizer": "l3"}, UnknownNameError),
        ({"bias_regularizer": 0.01}, ArgumentError),
        ({"kernel_constraint": "max_norm"}, ArgumentError),
        ({"dtype": "int32"}, DTypeError),
        ({"dtype": "bfloat16"}, DTypeError),
        ({"dtype": None}, DTypeError),
    ],
)
def test_arguments_that_mean_nothing(options, error):
    with pytest.raises(error):
        nn.Dense(3, **options)


def test_shape_errors_say_what_where_and_what_was_expected():
    model = nn.Sequential(nn.Dense(784, in_features=3), nn.Dense(128, in_features=784))
    x = np.zeros((32, 783), np.float32)
    with pytest.raises(ShapeError) as caught:
        model[1](x)
    assert str(caught.value) == "Dense: x has 783 features, its kernel expects 784 (x (32, 783), kernel (784, 128))."
    del model[0]
    model.insert(0, nn.ReLU())
    with pytest.raises(ShapeError) as caught:
        model(x)
    assert str(caught.value) == (
        "Dense 'layers.1': x has 783 features, its kernel expects 784 (x (32, 783), kernel (784, 128))."
    )


@pytest.mark.parametrize("layer", [lambda: nn.Dense(2), lambda: nn.Dense(2, in_features=3)])
def test_inputs_without_features(layer):
    layer = layer()
    with pytest.raises(ShapeError, match="Dense: x is a single number"):
        layer(tensor(1.0))
    with pytest.raises(ShapeError, match="features"):
        layer(np.zeros((5, 0), np.float32))
    assert layer(np.zeros((5, 3), np.float32)).shape == (5, 2)


def test_a_deferred_layer_holds_the_size_that_was_given():
    with nn.unbuilt():
        layer = nn.Dense(2, in_features=3)
    with pytest.raises(ShapeError, match=r"x has 4 features, its kernel expects 3 \(x \(5, 4\), kernel \(3, 2\)\)"):
        layer(np.zeros((5, 4), np.float32))
    assert not layer.is_built


# dtypes


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_layers_dtype_is_the_outputs(dtype):
    layer = nn.Dense(2, "gelu", dtype=dtype, in_features=3)
    y = layer(np.ones((4, 3), dtype))
    y.sum().backward()
    assert y.dtype == layer.kernel.dtype == layer.kernel.grad.dtype == dtype


@pytest.mark.parametrize("given", ["int8", "uint64", "bool", "float16"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_silent_casts(given, dtype):
    layer = nn.Dense(2, dtype=dtype, in_features=3)
    x = np.array([[0, 1, 1], [1, 0, 1]]).astype(given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = layer(x)
    np.testing.assert_array_equal(y.numpy(), layer(x.astype(dtype)).numpy())


@pytest.mark.parametrize(
    ("given", "dtype", "verb"),
    [("float64", "float32", "rounded"), ("float32", "float64", "widened"), ("float32", "float16", "rounded")],
)
def test_other_casts_are_said_once_for_each_layer(given, dtype, verb):
    x = np.ones((2, 3), given)
    for _ in range(2):
        model = nn.Sequential(nn.Dense(2, dtype=dtype, in_features=3), nn.Dense(2, dtype=dtype))
        with pytest.warns(DTypeWarning, match=rf"Dense 'layers.0': x is {given} and is {verb} to {dtype}") as record:
            outputs = [model(x) for _ in range(3)]
        assert len(record) == 1
        assert outputs[0].dtype == dtype


def test_longdouble_and_lists():
    layer = nn.Dense(2, in_features=3)
    for x in (np.ones((2, 3), np.longdouble), [[1.0, 1.0, 1.0]]):
        with pytest.warns(DTypeWarning):
            assert nn.Dense(2, in_features=3)(x).dtype == np.float32
    assert layer([[1, 0, 1]]).dtype == np.float32


def test_gradients_come_back_in_the_inputs_dtype():
    x = tensor(np.ones((2, 3)), requires_grad=True)
    with pytest.warns(DTypeWarning):
        nn.Dense(2, in_features=3)(x).sum().backward()
    assert x.grad.dtype == np.float64


def test_nan_and_infinity_pass_through():
    layer = nn.Dense(1, kernel_initializer="ones", in_features=2)
    y = layer(np.array([[np.nan, 1.0], [np.inf, 1.0], [-np.inf, 1.0]], np.float32)).numpy().ravel()
    np.testing.assert_array_equal(y, np.array([np.nan, np.inf, -np.inf], np.float32))


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (lambda: nn.Dense(4, in_features=3), "Dense(3 -> 4)"),
        (lambda: nn.Dense(4, "sigmoid", in_features=3), "Dense(3 -> 4, activation=sigmoid)"),
        (lambda: nn.Dense(4, activations.softmax), "Dense(? -> 4, activation=softmax)"),
        (lambda: nn.Dense(4, use_bias=False, dtype="float64"), "Dense(? -> 4, use_bias=False, dtype=float64)"),
    ],
)
def test_repr(layer, text):
    assert repr(layer()) == text


def test_a_refused_call_changes_nothing():
    """Neither are parameters built, nor was the warning said."""
    layer = nn.Dense(2)
    with pytest.raises(ShapeError):
        layer(np.zeros((2, 0)))
    assert not layer.is_built
    with pytest.warns(DTypeWarning):
        layer(np.zeros((2, 3)))
