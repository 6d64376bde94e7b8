"""Activations of one's own: registration, what is refused with which advice, and what is saved."""

from __future__ import annotations

import copy
import json
import math
import pickle
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fcdense import activations, emit
from fcdense import math as fcmath
from fcdense.activation import Activation, RowActivation, get
from fcdense.activations import activation
from fcdense.errors import ArgumentError, FormatError, TraceError, UnknownNameError
from fcdense.expression import array_var
from fcdense.program import trace


@pytest.fixture(autouse=True)
def own_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registrations of a test end with it."""
    module = sys.modules["fcdense.activation"]  # as an attribute of the package, this name is the decorator
    monkeypatch.setattr(module, "_table", dict(module._table))


def own(fn: Callable[[Any], Any]) -> Activation:
    made = get(fn)
    assert isinstance(made, Activation)
    return made


def test_register() -> None:
    @activation
    def quick_gelu(x: Any) -> Any:
        """x sigmoid(1.702 x)."""
        return x * fcmath.sigmoid(1.702 * x)

    assert get("quick_gelu") is quick_gelu
    assert quick_gelu.name == "quick_gelu"
    assert quick_gelu.__doc__ == "x sigmoid(1.702 x)."
    assert "quick_gelu" in activations.names()
    x = np.linspace(-3, 3, 7)
    np.testing.assert_allclose(quick_gelu(x), x / (1 + np.exp(-1.702 * x)), rtol=1e-14)
    assert activation(lambda x: x * 2.0, name="double").aux == "none"
    assert get("double")(3.0) == 6.0


def test_names_are_unique() -> None:
    for name in ("gelu", "swish", "softmax"):
        with pytest.raises(ArgumentError, match=f"'{name}' is a built-in activation.*name="):
            activation(lambda x: x + 1, name=name)


def test_an_own_activation_can_be_defined_again() -> None:
    activation(lambda x: x + 1, name="defined_again")
    second = activation(lambda x: x * 2, name="defined_again")
    assert get("defined_again") is second


def test_get() -> None:
    assert get(None) is activations.linear
    assert get("relu") is activations.relu
    assert get(activations.relu) is activations.relu
    assert isinstance(get("softmax"), RowActivation)
    assert own(lambda x: x * x)(3.0) == 9.0
    with pytest.raises(UnknownNameError, match=r"Unknown activation 'rleu'.*'relu'"):
        get("rleu")
    with pytest.raises(UnknownNameError):
        get("ReLU ")
    with pytest.raises(ArgumentError, match="expected a name"):
        get(5)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: np.maximum(x, 0),
        lambda x: np.where(x > 0, x, 0),
        lambda x: x * (x > 0),
        lambda x: np.clip(x, 0, None),
        lambda x: (abs(x) + x) / 2,
    ],
)
def test_relu_however_written(fn: Callable[[Any], Any]) -> None:
    slope = emit.apply(own(fn).derivative, np.array([-1.0, -0.0, 0.0, 1.0, np.nan]))
    np.testing.assert_array_equal(slope, [0.0, 0.0, 0.0, 1.0, np.nan])


@pytest.mark.parametrize(
    ("fn", "aux"),
    [
        (lambda x: 3 * x + 1, "none"),
        (lambda x: np.tanh(2 * x), "output"),
        (lambda x: 1 / (1 + np.exp(-x)), "output"),
        (lambda x: np.maximum(x, -1.5), "output"),
        (lambda x: np.minimum(np.maximum(x, 0), 1), "output"),
        (lambda x: np.where(x > 0, x, 0.3 * x), "output"),
        (lambda x: np.sqrt(x * x + 1) * 0 + np.exp(x), "derivative"),
        (lambda x: np.where(x > 0, x, -0.3 * x), "derivative"),
        (lambda x: np.tanh(x) * x, "derivative"),
        (lambda x: np.maximum(2 * x, 0), "derivative"),
        (lambda x: np.abs(x), "derivative"),
    ],
)
def test_aux(fn: Callable[[Any], Any], aux: str) -> None:
    act = own(fn)
    assert act.aux == aux
    if act.gradient_from_aux is not None:
        x = np.array([-3.0, -1.5, -1.0, 0.0, 0.5, 1.0, 2.0])
        given = emit.apply(act.gradient_from_aux, act(x))
        np.testing.assert_array_equal(given, emit.apply(act.derivative, x))


def test_nan_reaches_the_derivative() -> None:
    act = own(lambda x: np.where(np.isnan(x), 0.0, np.where(x > 1, x * x, x)))
    np.testing.assert_array_equal(emit.apply(act.derivative, np.array([np.nan, 0.0, 2.0])), [np.nan, 1.0, 4.0])


def test_own_derivative() -> None:
    act = activation(lambda x: x**3, name="cube", derivative=lambda x: 3 * x * x)
    assert act.derivative.outputs[0] is 3 * array_var(0) * array_var(0)
    with pytest.raises(ArgumentError, match=r"f'\(.*\) is .* as traced, central differences of f give"):
        activation(lambda x: x**3, name="wrong", derivative=lambda x: 3 * x)
    with pytest.raises(ArgumentError, match="central differences"):
        activation(lambda x: np.maximum(x, 0), name="wrong", derivative=lambda x: x > 1)
    assert "wrong" not in activations.names()


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x: np.sqrt(x), r"f is not finite on \[-20, -0\.04\] in float64.*np\.maximum"),
        (lambda x: np.log(np.abs(x) - 5), r"f is not finite on \[-4\.96, 4\.96\]"),
        (lambda x: np.sqrt(np.abs(x)), r"f' is not finite on \[0, 0\] in float64"),
        (lambda x: (np.exp(x) - np.exp(-x)) / (np.exp(x) + np.exp(-x)), r"not finite on \[-100, -8.*\] in float32"),
    ],
)
def test_where_it_is_not_finite_is_named(fn: Callable[[Any], Any], message: str) -> None:
    with np.errstate(all="ignore"), pytest.raises(ArgumentError, match=message):
        activation(fn, name="mine")
    assert "mine" not in activations.names()


def test_overflow_of_the_function_itself_is_allowed() -> None:
    act = own(lambda x: np.exp(x) * x)
    assert np.isinf(act(np.array([1000.0]))).all()


def test_a_function_that_treats_symbols_differently() -> None:
    def fn(x: Any) -> Any:
        return x * x if isinstance(x, np.ndarray) else x * x + 1

    with pytest.raises(ArgumentError, match=r"mine.*as traced, the function gives"):
        activation(fn, name="mine")


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x: x if x > 0 else 0 * x, r"np\.where"),
        (lambda x: math.exp(x), r"np\.exp etc\. or fc\.math"),
        (lambda x: x - np.mean(x), "reductions"),
        (lambda x: x + np.arange(3), "array of shape"),
        (lambda x: None, "returns None"),
        (lambda x: np.floor(x), "These can"),
    ],
)
def test_what_cannot_be_traced(fn: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        activation(fn, name="mine")


def test_several_results_are_refused() -> None:
    with pytest.raises(ArgumentError, match="one array in and one out"):
        activation(lambda x: (x, x), name="mine")
    with pytest.raises(ArgumentError, match="one array in and one out"):
        Activation("mine", trace(lambda x, y: x * y, 2))


def test_conditions_count_as_1_and_0() -> None:
    act = own(lambda x: x > 0)
    assert act.aux == "none"
    np.testing.assert_array_equal(act(np.array([-1.0, 2.0])), [0.0, 1.0])


@pytest.mark.parametrize("name", activations.names())
def test_copies_are_the_same_object(name: str) -> None:
    act = get(name)
    assert pickle.loads(pickle.dumps(act)) is act
    if isinstance(act, Activation):
        assert copy.copy(act) is copy.deepcopy(act) is act
        assert Activation.from_data(json.loads(json.dumps(act.to_data(), allow_nan=False))) is act


def test_data_needs_no_code() -> None:
    data = json.dumps(own(lambda x: np.where(x > 0, x, 0.2 * np.sin(x))).to_data())
    act = Activation.from_data(json.loads(data))
    x = np.linspace(-2, 2, 9)
    np.testing.assert_allclose(act(x), np.where(x > 0, x, 0.2 * np.sin(x)))
    np.testing.assert_allclose(emit.apply(act.derivative, x), np.where(x > 0, 1, 0.2 * np.cos(x)))


def test_data_of_another_kind_is_refused() -> None:
    good = activations.tanh.to_data()
    two = trace(lambda x, y: x * y, 2).to_data()
    for bad in (None, [], {}, good | {"function": None}, good | {"function": two}, good | {"derivative": two}):
        with pytest.raises(FormatError):
            Activation.from_data(bad)


def test_immutable() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        activations.relu.name = "other"


class Wrapped:
    """Stands for a tensor."""

    def __fc_activate__(self, function: Any) -> Any:
        return function


def test_tensors_apply_activations_themselves() -> None:
    x = Wrapped()
    assert activations.tanh(x) is activations.tanh
    assert activations.softmax(x) is activations.softmax
    with pytest.raises(TraceError, match="combines the elements of a row"):
        trace(lambda x: activations.softmax(x) * 2, 1)


def test_activations_inside_of_another() -> None:
    act = own(lambda x: activations.silu(x) + activations.tanh(2 * x))
    x = np.linspace(-2, 2, 9)
    np.testing.assert_allclose(act(x), x / (1 + np.exp(-x)) + np.tanh(2 * x), rtol=1e-14)
