"""A model as a class of one's own: two layers and a ReLU, called on (4, 10)."""

from __future__ import annotations

import numpy as np

import fcdense as fc


class TwoLayers(fc.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = fc.nn.Dense(16, dtype="float64", in_features=10)
        self.relu = fc.nn.ReLU()
        self.output = fc.nn.Dense(3, dtype="float64", in_features=16)

    def forward(self, x: fc.Tensor) -> fc.Tensor:
        return self.output(self.relu(self.hidden(x)))


def test_forward(rng: np.random.Generator):
    model, x = TwoLayers(), rng.normal(size=(4, 10))
    hidden = np.maximum(x @ model.hidden.kernel.numpy() + model.hidden.bias.numpy(), 0.0)
    y = model(x)
    assert y.shape == (4, 3)
    np.testing.assert_allclose(
        y.numpy(), hidden @ model.output.kernel.numpy() + model.output.bias.numpy(), rtol=1e-12, atol=1e-13
    )


def test_what_belongs_to_it():
    shapes = {name: parameter.shape for name, parameter in TwoLayers().named_parameters()}
    assert shapes == {
        "hidden.kernel": (10, 16),
        "hidden.bias": (16,),
        "output.kernel": (16, 3),
        "output.bias": (3,),
    }
    assert TwoLayers().num_parameters() == 10 * 16 + 16 + 16 * 3 + 3


def test_one_step_of_gradient_descent(rng: np.random.Generator):
    model, x, target = TwoLayers(), rng.normal(size=(4, 10)), rng.normal(size=(4, 3))
    before = {name: values.copy() for name, values in model.state_dict().items()}
    z = x @ before["hidden.kernel"] + before["hidden.bias"]
    y = np.maximum(z, 0.0) @ before["output.kernel"] + before["output.bias"]
    dy = 2 * (y - target) / y.size
    dz = (dy @ before["output.kernel"].T) * (z > 0.0)
    gradients = {
        "hidden.kernel": x.T @ dz,
        "hidden.bias": dz.sum(axis=0),
        "output.kernel": np.maximum(z, 0.0).T @ dy,
        "output.bias": dy.sum(axis=0),
    }

    optimizer = fc.optim.SGD(model.parameters(), learning_rate=0.1)
    fc.losses.mean_squared_error(model(x), target).backward()
    optimizer.step()

    for name, values in model.state_dict().items():
        np.testing.assert_allclose(values, before[name] - 0.1 * gradients[name], rtol=1e-12, atol=1e-14)


def test_the_script(run_example):
    output = run_example("subclassed_model.py")
    assert "(hidden): Dense(10 -> 16)\n  (relu): ReLU()\n  (output): Dense(16 -> 3)" in output
    assert "(4, 10) -> (4, 3)" in output
    assert "hidden.kernel  (10, 16)" in output
    assert "parameters: 227" in output
