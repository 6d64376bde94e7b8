"""The oracle that every layer is held against: central differences in float64, for the input and each parameter."""

from __future__ import annotations

import numpy as np
import pytest

from fcdense.gradients import gradcheck
from fcdense.random import manual_seed
from fcdense.tensor import tensor

EPS = 1e-6


@pytest.fixture(autouse=True)
def _seeded():
    manual_seed(0)


@pytest.fixture
def check_gradients():
    """check_gradients(module, *inputs): the module computes in float64 and gives the same output for the same input."""

    def check(module, *inputs):
        points = [np.asarray(x, np.float64) for x in inputs]
        module(*(tensor(x) for x in points))  # builds what is not
        gradcheck(module, points)
        if not list(module.parameters()):
            return
        direction = np.random.default_rng(1).uniform(0.5, 1.5, module(*(tensor(x) for x in points)).shape)

        def value():
            return float((module(*(tensor(x) for x in points)).numpy() * direction).sum())

        module.zero_grad()
        module(*(tensor(x) for x in points)).backward(tensor(direction))
        for name, parameter in module.named_parameters():
            start, computed = np.array(parameter.numpy()), parameter.grad.numpy()
            numeric = np.zeros_like(start)
            for index in np.ndindex(start.shape):
                shifted = start.copy()
                shifted[index] += EPS
                parameter.assign(shifted)
                above = value()
                shifted[index] -= 2 * EPS
                parameter.assign(shifted)
                numeric[index] = (above - value()) / (2 * EPS)
            parameter.assign(start)
            np.testing.assert_allclose(computed, numeric, atol=1e-5, rtol=1e-3, err_msg=name)

    return check
