"""Networks with 16-bit copies of their parameters, ways to change the parameters, and what the output must be then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fcdense as fc
from fcdense.backends import Device
from fcdense.backends.cuda import CudaBackend
from fcdense.backends.reference import ReferenceBackend
from fcdense.precision import dtype_of
from tests import emulation

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 8)).astype(np.float32)


class CountingBackend(ReferenceBackend):
    """Counts what is rounded to 16 bits, but for X."""

    casts = 0

    def copy(self, x: Any, *, out: Any) -> None:
        self.casts += x.dtype.itemsize == 4 and out.dtype.itemsize == 2 and x.shape != X.shape
        super().copy(x, out=out)


COUNTING = CountingBackend()
DEVICES = {"reference": Device("reference", backend=COUNTING)}
if emulation.is_available():
    DEVICES["emu"] = Device("emu", 0, backend=CudaBackend(emulation.EmulatedDriver()))


def network(**options: Any) -> fc.nn.Sequential:
    return fc.nn.Sequential(fc.nn.Dense(7, in_features=8, **options), fc.nn.Dense(3, in_features=7))


def rounded(x: Any) -> Any:
    return np.asarray(x).astype(dtype_of("bfloat16")).astype(np.float64)


def expected(model: fc.nn.Sequential) -> Any:
    """What linear layers give for X with the parameters as they are now."""
    y = X
    for layer in model.children():
        assert isinstance(layer, fc.nn.Dense)
        assert layer.bias is not None
        y = rounded(rounded(y) @ rounded(layer.kernel.numpy()) + layer.bias.numpy())
    return y


def check(model: fc.nn.Sequential, y: Any = None) -> None:
    """Hold an output (of a call now) against them; a copy that was forgotten is off by much more."""
    with fc.no_grad():
        got = (model(X) if y is None else y).numpy().astype(np.float64)
    np.testing.assert_allclose(got, expected(model), rtol=2.0**-6, atol=2.0**-6)


def loss_of(y: Any) -> Any:
    return ((y.astype("float32") - 1.0) ** 2).mean()


def train(model: Any, optimizer: fc.optim.Optimizer, x: Any = X, **options: Any) -> Any:
    """One step."""
    optimizer.zero_grad()
    loss = loss_of(model(x))
    loss.backward()
    optimizer.step(**options)
    return loss


# ---- changes of parameters that stay where they are ------------------------------------------------------------------


def by_assign(model: Any, optimizer: Any) -> None:
    model[0].kernel.assign(2.0 * model[0].kernel.numpy())


def in_place(model: Any, optimizer: Any) -> None:
    with fc.no_grad():
        model[1].kernel[1:] = 3.0


def through_a_view(model: Any, optimizer: Any) -> None:
    model[1].kernel.detach()[:] = -1.0


def by_load_state_dict(model: Any, optimizer: Any) -> None:
    model.load_state_dict({name: values + 1.0 for name, values in model.state_dict().items()})


def by_training(model: Any, optimizer: Any) -> None:
    train(model, optimizer)
    train(model, optimizer)


def by_training_in_float32(model: Any, optimizer: Any) -> None:
    with fc.use_precision("float32"):
        train(model, optimizer)


def by_training_one_layer(model: Any, optimizer: Any) -> None:
    for parameter in model[0].parameters():
        parameter.requires_grad = False
    train(model, optimizer)
    for parameter in model[0].parameters():
        parameter.requires_grad = True


def by_another_optimizer(model: Any, optimizer: Any) -> None:
    train(model, fc.optim.SGD(model[1].parameters(), 0.125))


def by_a_captured_step(model: Any, optimizer: Any) -> None:
    step = fc.capture(lambda x: train(model, optimizer, x))
    for _ in range(4):
        step(X)


def by_an_assignment_before_a_step(model: Any, optimizer: Any) -> None:
    optimizer.zero_grad()
    loss_of(model(X)).backward()
    by_assign(model, optimizer)
    optimizer.step()


CHANGES: list[Callable[[Any, Any], None]] = [
    by_assign,
    in_place,
    through_a_view,
    by_load_state_dict,
    by_training,
    by_training_in_float32,
    by_training_one_layer,
    by_another_optimizer,
    by_a_captured_step,
    by_an_assignment_before_a_step,
]
