"""A residual network as a module."""

from __future__ import annotations

import re

import numpy as np

import fcdense as fc


class Residual(fc.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = fc.nn.Dense(4, "tanh", dtype="float64", in_features=4)

    def forward(self, x: fc.Tensor) -> fc.Tensor:
        return x + self.layer(x)


def test_the_gradient_takes_both_ways(rng: np.random.Generator):
    block, x, dy = Residual(), fc.tensor(rng.normal(size=(8, 4)), requires_grad=True), rng.normal(size=(8, 4))
    y = block(x)
    y.backward(dy)
    w = block.layer.kernel.numpy()
    t = np.tanh(x.numpy() @ w)
    np.testing.assert_allclose(y.numpy(), x.numpy() + t, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(x.grad.numpy(), dy + (dy * (1 - t**2)) @ w.T, rtol=1e-11, atol=1e-13)


def test_the_script(run_example):
    output = run_example("residual_network.py")
    assert "passes its input on: True" in output
    # 4 * 32 + 32, four blocks of 2 * 32 and two layers, 32 + 1
    assert f"parameters: {4 * 32 + 32 + 4 * (2 * 32 + 2 * (32 * 32 + 32)) + 33}" in output
    variance, error = (float(number) for number in re.findall(r": (\d+\.\d+)$", output, re.MULTILINE))
    assert error < 0.2 * variance
