"""Second derivatives through a network, and a differential equation solved with them."""

from __future__ import annotations

import re

import numpy as np

import fcdense as fc


def test_second_derivative_of_a_small_network(rng: np.random.Generator):
    x = fc.tensor(np.linspace(-1.0, 1.0, 7)[:, None], requires_grad=True)
    hidden = fc.nn.Dense(5, "tanh", bias_initializer="normal", dtype="float64", in_features=1)
    output = fc.nn.Dense(1, use_bias=False, dtype="float64", in_features=5)
    u = output(hidden(x))
    slope = fc.grad(u.sum(), x, create_graph=True)
    curvature = fc.grad(slope.sum(), x, create_graph=True)

    # u = t v with t = tanh(x w + b): u'' = -2 t (1 - t^2) w^2 v
    w, b, v = hidden.kernel.numpy(), hidden.bias.numpy(), output.kernel.numpy()
    t = np.tanh(x.numpy() @ w + b)
    np.testing.assert_allclose(slope.numpy(), ((1 - t**2) * w) @ v, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(curvature.numpy(), (-2 * t * (1 - t**2) * w**2) @ v, rtol=1e-11, atol=1e-13)

    # d(sum u'')/dv, the third differentiation
    curvature.sum().backward()
    expected = (-2 * t * (1 - t**2) * w**2).sum(axis=0)
    np.testing.assert_allclose(output.kernel.grad.numpy()[:, 0], expected, rtol=1e-11, atol=1e-13)


def test_the_script(run_example):
    output = run_example("second_derivative.py")
    losses = [float(number) for number in re.findall(r"u'' \+ u: (\S+)", output)]
    assert losses[-1] < 1e-2 * losses[0]
    error = re.search(r"difference from sin\(x\): (\S+)", output)
    assert error is not None
    assert float(error[1]) < 0.1
