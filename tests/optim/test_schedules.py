"""Schedules: closed forms with their boundaries, PyTorch's schedulers, composition, data and errors."""

from __future__ import annotations

import itertools
import json
import math
import pickle
from functools import partial

import numpy as np
import pytest

from fcdense.errors import ArgumentError, FormatError, UnknownNameError
from fcdense.optim import schedules
from fcdense.optim.schedules import (
    Constant,
    CosineDecay,
    Custom,
    ExponentialDecay,
    LinearDecay,
    OneCycle,
    Piecewise,
    PolynomialDecay,
    StepDecay,
    Warmup,
)

EVERY = [
    Constant(0.3),
    Piecewise([5, 12], [0.1, 0.02, 0.003]),
    StepDecay(0.1, every=7, factor=0.5),
    ExponentialDecay(0.1, steps=10, factor=0.3),
    PolynomialDecay(0.1, steps=20, final=0.01, power=2.0),
    LinearDecay(0.1, steps=20, final=0.01),
    CosineDecay(0.1, steps=20, final=0.01),
    OneCycle(0.1, steps=20),
    Warmup(CosineDecay(0.1, steps=20), steps=5, start=0.01),
]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(0.3), {0: 0.3, 10**12: 0.3}),
        (Piecewise([5, 12], [0.1, 0.02, 0.003]), {0: 0.1, 4: 0.1, 5: 0.02, 11: 0.02, 12: 0.003, 10**9: 0.003}),
        (Piecewise([], [0.1]), {0: 0.1, 9: 0.1}),
        (StepDecay(0.8, every=7, factor=0.5), {0: 0.8, 6: 0.8, 7: 0.4, 13: 0.4, 14: 0.2}),
        (ExponentialDecay(0.8, steps=10, factor=0.25), {0: 0.8, 5: 0.4, 10: 0.2, 20: 0.05}),
        (PolynomialDecay(1.0, steps=10, final=0.5, power=2.0), {0: 1.0, 5: 0.625, 10: 0.5, 11: 0.5}),
        (PolynomialDecay(1.0, steps=4), {0: 1.0, 1: 0.75, 4: 0.0}),
        (LinearDecay(1.0, steps=10, final=0.5), {0: 1.0, 5: 0.75, 10: 0.5, 99: 0.5}),
        (LinearDecay(0.0, steps=10, final=0.5), {0: 0.0, 5: 0.25, 10: 0.5}),
        (CosineDecay(0.3, steps=12, final=0.1), {0: 0.3, 4: 0.25, 6: 0.2, 8: 0.15, 12: 0.1, 13: 0.1}),
        (CosineDecay(0.3, steps=1), {0: 0.3, 1: 0.0}),
        (OneCycle(1.0, 20, 0.3, 10.0, 100.0), {0: 0.1, 3: 0.55, 6: 1.0, 13: 0.505, 20: 0.01, 21: 0.01}),
        (Warmup(Constant(0.4), steps=4), {0: 0.0, 1: 0.1, 3: 0.3, 4: 0.4, 5: 0.4}),
        (Warmup(LinearDecay(0.4, steps=4), steps=2, start=0.2), {0: 0.2, 1: 0.3, 2: 0.4, 4: 0.2, 6: 0.0}),
        (Warmup(Warmup(Constant(0.4), 2, start=0.2), 2), {0: 0.0, 1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}),
        (Custom(lambda step: 1 / (1 + step)), {0: 1.0, 3: 0.25}),
    ],
    ids=repr,
)
def test_closed_form(schedule, expected):
    for step, rate in expected.items():
        assert schedule(step) == pytest.approx(rate, rel=1e-14, abs=1e-17)


def test_ends_are_exact():
    """No rounding at the first step, at the end of a decay or at the end of a warm-up."""
    for initial, final in [(0.1, 0.03), (0.7, 1e-9), (1e-3, 0.3)]:
        for kind in (LinearDecay, CosineDecay, PolynomialDecay):
            for steps in (1, 3, 49):
                schedule = kind(initial, steps, final)
                assert (schedule(0), schedule(steps), schedule(10**6)) == (initial, final, final)
                assert Warmup(schedule, 7)(7) == initial


@pytest.mark.parametrize("schedule", EVERY[1:7], ids=repr)
def test_decays_never_rise(schedule):
    rates = [schedule(step) for step in range(60)]
    assert all(a >= b - 1e-17 for a, b in itertools.pairwise(rates))
    assert rates[0] > rates[-1]


def test_one_cycle_rises_then_falls():
    rates = [OneCycle(0.1, steps=40, rise=0.25)(step) for step in range(45)]
    assert max(rates) == rates[10] == 0.1
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_warmup_is_continuous(schedule):
    warm = Warmup(schedule, steps=1000)
    rates = [warm(step) for step in range(1001)]
    assert rates[0] == 0.0
    assert rates[1000] == schedule(0)
    assert max(abs(a - b) for a, b in itertools.pairwise(rates)) <= schedule(0) / 1000 * (1 + 1e-9)
    assert [warm(1000 + step) for step in range(30)] == [schedule(step) for step in range(30)]


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_rates_are_python_floats(schedule):
    for step in (0, 3, np.int64(3), 10**9):
        rate = schedule(step)
        assert type(rate) is float
        assert math.isfinite(rate)
        assert rate >= 0
    assert schedule(np.int32(3)) == schedule(3)


def torch_rates(make, learning_rate, steps):
    """Return the rates that a torch scheduler gives to the updates 0, 1, ..., steps - 1."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=learning_rate)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def linear_then_cosine(lr, optimizer):
    warm = lr.LinearLR(optimizer, start_factor=0.1, total_iters=5)
    return lr.SequentialLR(optimizer, [warm, lr.CosineAnnealingLR(optimizer, T_max=20)], milestones=[5])


@pytest.mark.parametrize(
    ("schedule", "make", "learning_rate", "steps"),
    [
        (StepDecay(0.1, every=7, factor=0.5), lambda lr, o: lr.StepLR(o, 7, 0.5), 0.1, 40),
        (ExponentialDecay(0.1, steps=1, factor=0.9), lambda lr, o: lr.ExponentialLR(o, 0.9), 0.1, 40),
        (CosineDecay(0.1, 30, 0.01), lambda lr, o: lr.CosineAnnealingLR(o, 30, 0.01), 0.1, 31),
        (PolynomialDecay(0.1, 30, power=2.0), lambda lr, o: lr.PolynomialLR(o, 30, 2.0), 0.1, 40),
        (LinearDecay(0.1, 30, 0.02), lambda lr, o: lr.LinearLR(o, 1.0, 0.2, 30), 0.1, 40),
        (Piecewise([3, 9], [0.1, 0.01, 0.001]), lambda lr, o: lr.MultiStepLR(o, [3, 9], 0.1), 0.1, 20),
        # PyTorch ends its rise at step pct_start * total - 1 and its fall at total - 1, the last update.
        (
            OneCycle(0.1, steps=29, rise=8 / 29, final_divisor=25e4),
            lambda lr, o: lr.OneCycleLR(o, 0.1, total_steps=30, pct_start=0.3),
            0.1,
            30,
        ),
        (Warmup(CosineDecay(0.1, 20), steps=5, start=0.01), linear_then_cosine, 0.1, 25),
    ],
    ids=lambda value: repr(value) if isinstance(value, schedules.Schedule) else "",
)
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_torch(schedule, make, learning_rate, steps):
    expected = torch_rates(make, learning_rate, steps)
    assert [schedule(step) for step in range(steps)] == pytest.approx(expected, rel=1e-12, abs=1e-17)


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_data_pickle_and_repr_round_trip(schedule):
    copy = schedules.from_data(json.loads(json.dumps(schedule.to_data())))
    assert copy == schedule
    assert [copy(step) for step in range(30)] == [schedule(step) for step in range(30)]
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert eval(repr(schedule), vars(schedules).copy()) == schedule
    assert hash(copy) == hash(schedule)


def test_every_schedule_is_in_the_table():
    assert {type(schedule).__name__ for schedule in EVERY} == set(schedules.TABLE)


def test_repr_and_data():
    warm = Warmup(CosineDecay(1, 100), 5)
    assert repr(warm) == "Warmup(schedule=CosineDecay(initial=1.0, steps=100, final=0.0), steps=5, start=0.0)"
    inner = {"name": "CosineDecay", "initial": 1.0, "steps": 100, "final": 0.0}
    assert warm.to_data() == {"name": "Warmup", "schedule": inner, "steps": 5, "start": 0.0}
    assert CosineDecay(np.float64(1), np.int64(100)) == CosineDecay(1.0, 100)


def halving(step):
    return 0.5**step


def test_get():
    assert schedules.get(0.1) == Constant(0.1)
    assert schedules.get(EVERY[3]) is EVERY[3]
    assert schedules.get(halving)(2) == 0.25
    assert repr(schedules.get(halving)) == "Custom(halving)"
    assert Warmup(halving, steps=2)(1) == 0.5
    for spec in (None, True, "cosine"):
        with pytest.raises(ArgumentError, match="expected a number, a Schedule or a function"):
            schedules.get(spec)


def test_function_is_checked():
    for value in (math.nan, math.inf, -1.0, None, "0.1"):
        with pytest.raises(ArgumentError, match="the rate of step 3 is"):
            Custom(lambda step, value=value: value)(3)
    for fn in (lambda: 0.1, lambda epoch, step: 0.1):
        with pytest.raises(ArgumentError, match="function of the step"):
            Custom(fn)
    for schedule in (Custom(halving), Warmup(halving, 3)):
        with pytest.raises(ArgumentError, match=r"Custom\(halving\).*cannot be saved"):
            schedule.to_data()


@pytest.mark.parametrize("step", [-1, 1.0, True, None, "3", math.nan])
@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_bad_step(schedule, step):
    with pytest.raises(ArgumentError, match="step is"):
        schedule(step)


MAKE = {
    "value": Constant,
    "initial": partial(CosineDecay, steps=10),
    "final": partial(LinearDecay, 0.1, 10),
    "peak": partial(OneCycle, steps=10),
    "start": partial(Warmup, Constant(0.1), 10),
    "power": partial(PolynomialDecay, 0.1, 10, 0.0),
}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1, True, None, "0.1", 1j])
@pytest.mark.parametrize("name", MAKE)
def test_bad_rates(name, bad):
    with pytest.raises(ArgumentError, match=f"{name} is"):
        MAKE[name](**{name: bad})


@pytest.mark.parametrize("bad", [0, -5, 2.5, 10.0, True, None, "10", math.nan])
@pytest.mark.parametrize(
    "make",
    [
        partial(StepDecay, 0.1),
        lambda steps: ExponentialDecay(0.1, steps, 0.5),
        partial(PolynomialDecay, 0.1),
        partial(LinearDecay, 0.1),
        partial(CosineDecay, 0.1),
        partial(OneCycle, 0.1),
        partial(Warmup, Constant(0.1)),
        lambda steps: Piecewise([steps], [0.1, 0.01]),
    ],
)
def test_bad_steps(make, bad):
    with pytest.raises(ArgumentError, match="expected an integer >= 1"):
        make(bad)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (partial(StepDecay, 0.1, 5, factor=0), "0 < factor <= 1"),
        (partial(StepDecay, 0.1, 5, factor=1.5), "0 < factor <= 1"),
        (partial(ExponentialDecay, 0.1, 5, factor=math.nan), "factor is nan"),
        (partial(PolynomialDecay, 0.1, 5, power=0), "power is 0"),
        (partial(OneCycle, 0.1, 5, rise=1.0), "0 < rise < 1"),
        (partial(OneCycle, 0.1, 5, rise=0.0), "0 < rise"),
        (partial(OneCycle, 0.1, 5, start_divisor=0.5), "divisors >= 1"),
        (partial(OneCycle, 0.1, 5, final_divisor=0), "divisors >= 1"),
        (partial(Piecewise, [5], [0.1]), "one value more"),
        (partial(Piecewise, [5, 5], [0.1, 0.2, 0.3]), "rising boundaries"),
        (partial(Piecewise, [5, 3], [0.1, 0.2, 0.3]), "rising boundaries"),
        (partial(Piecewise, [5], [0.1, math.nan]), "values is nan"),
    ],
)
def test_bad_parameters(make, words):
    with pytest.raises(ArgumentError, match=words):
        make()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ({"name": "CosinDecay", "initial": 0.1, "steps": 5, "final": 0.0}, UnknownNameError),
        ({"name": "Custom", "fn": "os.system"}, UnknownNameError),
        ({"name": "CosineDecay", "initial": 0.1, "steps": 5}, FormatError),
        ({"name": "Constant", "value": 0.1, "more": 1}, FormatError),
        ({"value": 0.1}, FormatError),
        (0.1, FormatError),
        ({"name": "Constant", "value": math.nan}, ArgumentError),
        ({"name": "Constant", "value": {"name": "Constant", "value": 1.0}}, ArgumentError),
        ({"name": "Warmup", "schedule": {"name": "Nothing"}, "steps": 5, "start": 0.0}, UnknownNameError),
        ({"name": "Warmup", "schedule": "CosineDecay", "steps": 5, "start": 0.0}, ArgumentError),
    ],
)
def test_bad_data(data, error):
    with pytest.raises(error):
        schedules.from_data(data)
