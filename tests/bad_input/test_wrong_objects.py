"""One object given for another, a trainer for its model or an array for a device: refused with what to give instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fcdense as fc
from fcdense.errors import ArgumentError, DeviceError, DTypeError, GraphError
from tests.bad_input.unchanged import refused, settled, table

X, Y = table()
MODELS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "trainer": (lambda trainer: trainer, "got Trainer as the model; expected an nn.Module. Pass its model: trainer.m"),
    "captured": (lambda trainer: fc.capture(trainer.model), "got Captured as the model; expected an nn.Module. Pass t"),
    "captured function": (lambda trainer: fc.capture(lambda x: x), "got Captured as the model; expected an nn.Module"),
    "None": (lambda trainer: None, "got None as the model; expected an nn.Module"),
    "function": (lambda trainer: lambda x: x, "got function as the model; expected an nn.Module"),
    "class": (lambda trainer: fc.nn.Dense, "got Dense as the model; expected an nn.Module. Pass an instance: Dense("),
    "array": (lambda trainer: X, "got ndarray as the model; expected an nn.Module. Call"),
}


@pytest.mark.parametrize("function", [fc.predict, fc.explain], ids=lambda function: function.__name__)
@pytest.mark.parametrize("case", MODELS)
def test_what_is_no_model(case, function):
    make, message = MODELS[case]
    trainer = settled()
    with refused(ArgumentError, f"{function.__name__} {message}", keeps=(trainer,)):
        function(make(trainer), X)


@pytest.mark.parametrize("gradient", [1.0, fc.tensor(1.0), np.array(1.0)], ids=["float", "tensor", "array"])
def test_one_gradient_for_several_outputs(gradient):
    x = fc.tensor([1.0, 2.0], requires_grad=True)
    given = f"a list of gradients, one for each output (or None); given {type(gradient).__name__}."
    with refused(ArgumentError, "grad of several outputs", given):
        fc.grad([x.sum(), (x * x).sum()], x, gradient)


CHECKS: list[tuple[Any, Any, type[Exception], str]] = [
    (lambda a: 3, [1.0], ArgumentError, "The function returned int; gradcheck needs one tensor."),
    (lambda a: (a, a), [1.0], ArgumentError, "The function returned tuple"),
    ("f", [1.0], ArgumentError, "gradcheck needs a function of tensors; given 'f'."),
    (lambda a: a, None, DTypeError, "an input of gradcheck has dtype object"),
    (lambda a: a, ["a"], DTypeError, "an input of gradcheck has dtype <U1"),
]


@pytest.mark.parametrize(("function", "inputs", "error", "message"), CHECKS)
def test_gradcheck(function, inputs, error, message):
    with refused(error, message):
        fc.gradcheck(function, inputs)


@pytest.mark.parametrize("result", ["0.5", None, 1j, {}], ids=repr)
def test_metrics_that_return_no_number(result):
    def closeness(prediction, target):
        return result

    trainer = fc.Trainer(settled().model, metrics=[closeness])
    with refused(DTypeError, f"Metric 'closeness' returned {result!r}, expected one real number.", keeps=(trainer,)):
        trainer.evaluate(X, Y)


@pytest.mark.parametrize("result", [2, True, np.float32(2), fc.tensor([2.0]), [2.0]], ids=repr)
def test_metrics_may_return_any_number(result):
    trainer = fc.Trainer(settled().model, metrics=[lambda prediction, target: result])
    assert trainer.evaluate(X, Y)["<lambda>"] == float(np.asarray(result).item())


@pytest.mark.parametrize("given", [None, 3], ids=repr)
def test_the_parts_of_a_piecewise_schedule(given):
    with refused(ArgumentError, f"boundaries is {given}, expected a list of numbers"):
        fc.optim.schedules.Piecewise(given, [1])
    with refused(ArgumentError, f"values is {given}, expected a list of numbers"):
        fc.optim.schedules.Piecewise([1], given)


@pytest.mark.parametrize("given", [X, fc.tensor(X), np.float32(1)], ids=["array", "tensor", "number"])
@pytest.mark.parametrize(
    "use",
    [fc.use_device, fc.device, lambda given: fc.tensor(X, device=given), fc.nn.Dense(2).to],
    ids=["use_device", "device", "tensor", "to"],
)
def test_data_for_a_device(use, given):
    with refused(DeviceError, f"as {type(given).__name__}", '"auto", "cpu", "cuda" or "cuda:N"', "x.device"):
        use(given)


@pytest.mark.parametrize(
    ("layer", "name"), [(fc.nn.Dense(3), "layers.1.kernel"), (fc.nn.BatchNorm(), "layers.1.scale")]
)
def test_models_that_are_not_built_yet(layer, name, tmp_path):
    model = fc.nn.Sequential(fc.nn.Dense(2, in_features=3), layer)
    message = f"Parameter '{name}' has no shape yet: its {type(layer).__name__} takes in_features from the first input."
    for use in (lambda: fc.save(tmp_path / "model.safetensors", model), model.state_dict):
        with refused(GraphError, message, "Call the model once"):
            use()
    assert not list(tmp_path.iterdir())
    model(X)
    fc.save(tmp_path / "model.safetensors", model)
