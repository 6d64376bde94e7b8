"""The loss scale: its rule, what a step does with it, and that a captured step follows it."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fcdense as fc
from fcdense.backends import Device, device
from fcdense.backends.checked import CheckedBackend
from fcdense.backends.cuda import CudaBackend
from fcdense.backends.reference import ReferenceBackend
from fcdense.errors import ArgumentError, DTypeError, FormatError
from tests import emulation

DEVICES = {"cpu": device("cpu"), "checked": Device("checked", backend=CheckedBackend(ReferenceBackend()))}
if emulation.is_available():
    DEVICES["emu"] = Device("emu", 0, backend=CudaBackend(emulation.EmulatedDriver()))
on_every_device = pytest.mark.parametrize("on", DEVICES.values(), ids=DEVICES.keys())
each_way = pytest.mark.parametrize("captured", [False, True], ids=["eager", "captured"])


class Plain:
    """The rule, as it is written down (PyTorch's GradScaler), with a lower bound of 1."""

    def __init__(self, scale: float, growth: float, backoff: float, interval: int) -> None:
        self.scale, self.growth, self.backoff, self.interval = scale, growth, backoff, interval
        self.tracker = 0

    def update(self, found_inf: bool) -> None:
        if found_inf:
            self.scale, self.tracker = max(self.scale * self.backoff, 1.0), 0
            return
        self.tracker += 1
        if self.tracker == self.interval:
            self.scale, self.tracker = min(self.scale * self.growth, 2.0**127), 0


def stepping(w: Any, optimizer: Any, scale: Any, captured: bool, **options: Any) -> Callable[[Any], Any]:
    """A step with the gradient that it is given."""

    def step(x: Any) -> None:
        optimizer.zero_grad()
        scale.backward((w * x).sum())
        optimizer.step(loss_scale=scale, **options)

    return fc.capture(step) if captured else step


@on_every_device
@each_way
@pytest.mark.parametrize("options", [(4.0, 2.0, 0.5, 3), (2.0**125, 4.0, 0.25, 2), (8.0, 1.5, 0.125, 1)])
def test_the_rule(on: Device, captured: bool, options: tuple[float, float, float, int]) -> None:
    plain, rng = Plain(*options), np.random.default_rng(0)
    initial, growth, backoff, interval = options
    with fc.use_device(on), np.errstate(all="ignore"):
        w = fc.nn.parameter(np.zeros(3))
        scale = fc.LossScale(initial, growth_factor=growth, backoff_factor=backoff, growth_interval=interval)
        run = stepping(w, fc.optim.SGD([w], 1e-3), scale, captured)
        for _ in range(40):
            number = rng.choice([1.0, np.inf, -np.inf, np.nan], p=[0.7, 0.1, 0.1, 0.1])
            before = w.numpy().copy()
            run(np.array([1.0, number, 2.0]))
            plain.update(not math.isfinite(number))
            assert (scale.scale, scale.finite_steps) == (plain.scale, plain.tracker)
            assert (w.numpy() == before).all() == (not math.isfinite(number))


@on_every_device
@each_way
@pytest.mark.parametrize("clip", [None, 0.5, 1e6])
def test_the_scale_leaves_no_trace(on: Device, captured: bool, clip: float | None) -> None:
    """A power of two goes in and comes out again without rounding: weights, slots and the norm are those without."""
    gradients = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    results = []
    with fc.use_device(on):
        for scaled in (False, True):
            w = fc.nn.parameter(np.ones(5, np.float32))
            optimizer = fc.optim.AdamW([w], 0.1, clip_norm=clip)
            scale = fc.LossScale(2.0**40, growth_interval=2)

            def step(x: Any, w: Any = w, optimizer: Any = optimizer, chosen: Any = scale if scaled else None) -> None:
                optimizer.zero_grad()
                loss = (w * x).sum()
                if chosen is None:
                    loss.backward()
                else:
                    chosen.backward(loss)
                optimizer.step(loss_scale=chosen, check_finite=True, gradient_scale=0.5)

            run = fc.capture(step) if captured else step
            norms = []
            for g in gradients:
                run(g)
                norms.append(optimizer.gradient_norm)
            results.append((w.numpy().copy(), norms))
    assert scale.scale == 2.0**43
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-12)
    np.testing.assert_allclose(results[0][1], 0.5 * np.linalg.norm(gradients.astype(float), axis=1), rtol=1e-6)


@each_way
def test_a_plan_may_be_used_with_and_without(captured: bool) -> None:
    w = fc.nn.parameter(np.zeros(3))
    optimizer, scale = fc.optim.SGD([w], 1.0, clip_norm=100.0), fc.LossScale(8.0)
    run = stepping(w, optimizer, scale, captured)
    for _ in range(3):
        run(np.ones(3))
        optimizer.zero_grad()
        (w * np.ones(3)).sum().backward()
        optimizer.step()
    np.testing.assert_array_equal(w.numpy(), -6.0)


def test_gradients_of_several_batches() -> None:
    w = fc.nn.parameter(np.zeros(3))
    optimizer, scale = fc.optim.SGD([w], 1.0), fc.LossScale(1024.0)
    for weight in (1.0, 0.25, 2.0):
        scale.backward((w * np.ones(3)).sum(), weight)
    np.testing.assert_array_equal(w.grad.numpy(), 1024.0 * 3.25)
    optimizer.step(loss_scale=scale, gradient_scale=1 / 3.25)
    np.testing.assert_array_equal(w.numpy(), -1.0)


def test_a_loss_that_is_not_finite_counts() -> None:
    w = fc.nn.parameter(np.zeros(3))
    optimizer, scale = fc.optim.SGD([w], 1.0), fc.LossScale(16.0)
    (w * np.ones(3)).sum().backward()
    assert not optimizer.step(loss_scale=scale, check_finite=fc.tensor(np.inf))
    assert (scale.scale, optimizer.skipped_steps, optimizer.steps) == (8.0, 1, 0)
    assert optimizer.step(loss_scale=scale)


def test_parameters_on_several_devices() -> None:
    other = DEVICES["checked"]
    here = fc.nn.parameter(np.zeros(2))
    with fc.use_device(other):
        there = fc.nn.parameter(np.zeros(2))
    for on in (device("cpu"), other):
        optimizer, scale = fc.optim.SGD([here, there], 1.0), fc.LossScale(16.0, device=on)
        here.grad, there.grad = np.full(2, 16.0), np.full(2, 16.0)
        assert optimizer.step(loss_scale=scale)
        here.grad, there.grad = np.full(2, 16.0), np.array([0.0, np.inf])
        assert not optimizer.step(loss_scale=scale)
        assert (scale.scale, scale.finite_steps) == (8.0, 0)
    np.testing.assert_array_equal(here.numpy(), -2.0)
    np.testing.assert_array_equal(there.numpy(), -2.0)


@each_way
def test_float16_overflows_and_recovers(captured: bool) -> None:
    """From a scale that is much too large, training comes to the point where it is all the same as in float32."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 8)).astype(np.float32), rng.integers(0, 3, 16)
    with fc.use_device("reference"), np.errstate(all="ignore"):
        fc.manual_seed(0)
        model = fc.nn.Sequential(fc.nn.Dense(9, "tanh", in_features=8), fc.nn.Dense(3, in_features=9))
        optimizer, scale = fc.optim.SGD(model.parameters(), 0.5), fc.LossScale(2.0**30, growth_interval=4)

        def step(x: Any, y: Any) -> Any:
            optimizer.zero_grad()
            with fc.use_precision("float16"):
                loss = fc.losses.cross_entropy(model(x), y)
            scale.backward(loss)
            optimizer.step(loss_scale=scale)
            return loss

        run = fc.capture(step) if captured else step
        first = model.state_dict()
        scales, losses = [], []
        for _ in range(30):
            losses.append(run(x, y).item())
            scales.append(scale.scale)
            if optimizer.steps == 0:
                assert all((model.state_dict()[name] == array).all() for name, array in first.items())
    skipped = scales.index(min(scales)) + 1
    assert 8 < skipped < 16
    assert losses[skipped] == losses[0]
    assert losses[-1] < 0.7 * losses[0]
    assert max(scales[skipped:]) > scales[skipped]  # it tries again


def test_small_gradients_survive() -> None:
    """What the scale is for: without it these gradients are 0 in float16."""
    x = np.full((4, 2), 2.0**-6, np.float32)
    changes = {}
    with fc.use_device("reference"), fc.use_precision("float16"):
        for initial in (1.0, 2.0**16):
            layer = fc.nn.Dense(1, in_features=2, kernel_initializer="ones")
            optimizer, scale = fc.optim.SGD(layer.parameters(), 1.0), fc.LossScale(initial)
            scale.backward((layer(x).astype("float32") * 2.0**-26).mean())
            optimizer.step(loss_scale=scale)
            changes[initial] = layer.bias.numpy().item()
    assert changes == {1.0: 0.0, 2.0**16: -(2.0**-26)}


# ---- what it is ------------------------------------------------------------------------------------------------------


def test_state_goes_out_and_in() -> None:
    scale = fc.LossScale(4.0, growth_interval=10)
    state = json.loads(json.dumps({"scale": 32.0, "finite_steps": 7}))
    scale.load_state_dict(state)
    assert scale.state_dict() == state
    again = [copy.deepcopy(scale), pickle.loads(pickle.dumps(scale))]
    scale.load_state_dict({"scale": 1.0, "finite_steps": 0})
    for one in again:
        assert one.state_dict() == state
        assert repr(one) == "LossScale(32; growth_factor=2, backoff_factor=0.5, growth_interval=10; 7 finite steps)"


@pytest.mark.parametrize("state", [{}, {"scale": 2.0}, {"scale": 0.0, "finite_steps": 1}, {"scale": "x"}, None, [1, 2]])
def test_a_state_that_does_not_fit(state: Any) -> None:
    scale = fc.LossScale(4.0)
    with pytest.raises(FormatError, match="does not fit a LossScale"):
        scale.load_state_dict(state)
    assert scale.scale == 4.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initial": 0.5}, "initial is 0.5, expected a number from 1"),
        ({"initial": math.inf}, "initial is inf"),
        ({"initial": "big"}, "initial is 'big'"),
        ({"growth_factor": 1.0}, "growth_factor is 1.0, expected a number > 1"),
        ({"backoff_factor": 1.0}, "backoff_factor is 1.0"),
        ({"backoff_factor": 0.0}, "backoff_factor is 0.0"),
        ({"growth_interval": 0}, "growth_interval is 0, expected a whole number > 0"),
        ({"growth_interval": 2.5}, "growth_interval is 2.5"),
    ],
)
def test_values_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=f"LossScale: {message}"):
        fc.LossScale(**options)


def test_a_loss_of_16_bits_is_refused() -> None:
    w = fc.nn.parameter(np.ones(3, np.float16))
    with pytest.raises(DTypeError, match=r"the loss is float16; expected float32\. Compute it inside of fc\.use_prec"):
        fc.LossScale().backward((w * w).sum())
    assert w.grad is None


def test_the_defaults_are_those_of_the_field() -> None:
    assert repr(fc.LossScale()) == (
        "LossScale(65536; growth_factor=2, backoff_factor=0.5, growth_interval=2000; 0 finite steps)"
    )


def test_what_is_no_loss_and_what_is_no_scale() -> None:
    scale = fc.LossScale(device="cpu")
    for given, said in (
        (3.0, "3.0"),
        (fc.tensor(1.0, device="reference"), "a tensor on reference"),
    ):
        with pytest.raises(ArgumentError, match=rf"LossScale on cpu: the loss is {said}; .*LossScale\(device=\.\.\.\)"):
            scale.backward(given)  # type: ignore[arg-type]
    w = fc.nn.parameter(np.ones(2, np.float32))
    w.sum().backward()
    with pytest.raises(ArgumentError, match=r"loss_scale is 1024\.0; expected an fc\.LossScale"):
        fc.optim.SGD([w], 0.1).step(loss_scale=1024.0)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="growth_interval"):
        fc.LossScale(growth_interval=float("inf"))  # type: ignore[arg-type]
    for steps in (float("nan"), -5.0, 0.5):
        with pytest.raises(FormatError, match="finite_steps"):
            scale.load_state_dict({"scale": 2.0, "finite_steps": steps})
