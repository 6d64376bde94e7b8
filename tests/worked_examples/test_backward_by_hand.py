"""The gradients of a dense layer from their formulas, with and without regularizers, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fcdense as fc

# The regularizer, and d(penalty)/dw.
REGULARIZERS: dict[str, tuple[Any, Any]] = {
    "none": (None, lambda w: 0.0 * w),
    "l1": (fc.regularizers.l1(0.03), lambda w: 0.03 * np.sign(w)),
    "l2": (fc.regularizers.l2(0.05), lambda w: 2 * 0.05 * w),
    "l1_l2": (fc.regularizers.l1_l2(0.03, 0.05), lambda w: 0.03 * np.sign(w) + 2 * 0.05 * w),
}


class ByHand:
    """y = x @ W + b from NumPy alone."""

    def __init__(self, w: Any, b: Any) -> None:
        self.w, self.b = w, b

    def forward(self, x: Any) -> Any:
        self.x = x
        return x @ self.w + self.b

    def backward(self, dy: Any) -> Any:
        self.dw = self.x.T @ dy
        self.db = dy.sum(axis=0)
        return dy @ self.w.T


@pytest.mark.parametrize("kernel", REGULARIZERS)
@pytest.mark.parametrize("bias", REGULARIZERS)
def test_one_layer(kernel: str, bias: str, rng: np.random.Generator):
    x, dy = fc.tensor(rng.normal(size=(8, 10)), requires_grad=True), rng.normal(size=(8, 3))
    (of_kernel, kernel_slope), (of_bias, bias_slope) = REGULARIZERS[kernel], REGULARIZERS[bias]
    layer = fc.nn.Dense(
        3,
        bias_initializer="normal",
        kernel_regularizer=of_kernel,
        bias_regularizer=of_bias,
        dtype="float64",
        in_features=10,
    )
    w, b = layer.kernel.numpy(), layer.bias.numpy()
    by_hand = ByHand(w, b)

    y, penalty = layer(x), layer.penalty()
    loss = (y * dy).sum()
    (loss if penalty is None else loss + penalty).backward()

    assert (penalty is None) == (kernel == bias == "none")
    np.testing.assert_allclose(y.numpy(), by_hand.forward(x.numpy()), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(x.grad.numpy(), by_hand.backward(dy), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(layer.kernel.grad.numpy(), by_hand.dw + kernel_slope(w), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(layer.bias.grad.numpy(), by_hand.db + bias_slope(b), rtol=1e-12, atol=1e-12)


def test_two_layers(rng: np.random.Generator):
    x, dy = rng.normal(size=(8, 10)), rng.normal(size=(8, 4))
    model = fc.nn.Sequential(
        fc.nn.Dense(3, dtype="float64", in_features=10), fc.nn.Dense(4, dtype="float64", in_features=3)
    )
    first, second = (ByHand(layer.kernel.numpy(), layer.bias.numpy()) for layer in model)
    expected = second.forward(first.forward(x))
    first.backward(second.backward(dy))
    y = model(x)
    y.backward(dy)
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-12, atol=1e-12)
    for layer, by_hand in zip(model, (first, second), strict=True):
        np.testing.assert_allclose(layer.kernel.grad.numpy(), by_hand.dw, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(layer.bias.grad.numpy(), by_hand.db, rtol=1e-12, atol=1e-12)


def test_the_script(run_example):
    lines = run_example("backward_by_hand.py").splitlines()
    assert len(lines) == 5
    assert all(line.endswith(": True") or line.endswith(":  True") for line in lines)
