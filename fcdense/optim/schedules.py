"""Learning-rate schedules: the rate of each update.

A schedule is called as ``schedule(step)``, where `step` counts updates from 0 for the first one, and returns a float.
T is the number of steps of a decay; from step T on the final rate holds. Each schedule is a frozen dataclass: rates are
finite and >= 0, numbers of steps are integers >= 1, and anything else raises `ArgumentError` when it is made.
"""

from __future__ import annotations

import inspect
import itertools
import math
import numbers
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from fcdense.errors import ArgumentError, FormatError, unknown_name


@dataclass(frozen=True)
class Schedule(ABC):
    """Base of the schedules. A schedule of your own is a function of the step (`Custom`)."""

    def __call__(self, step: int) -> float:
        """Return the learning rate of the update number `step`; `ArgumentError` unless `step` is an integer >= 0."""
        return self.rate(_integer(self, "step", step, least=0))

    @abstractmethod
    def rate(self, step: int) -> float:
        """Return the learning rate of the update number `step` >= 0."""

    def to_data(self) -> dict[str, Any]:
        """Return the name and the parameters as JSON-able data, which `from_data` reads."""
        if TABLE.get(type(self).__name__) is not type(self):
            raise ArgumentError(f"{self!r} is code, not data, and cannot be saved. Known: {', '.join(TABLE)}.")
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"name": type(self).__name__} | {key: _plain(value) for key, value in values.items()}


@dataclass(frozen=True)
class Constant(Schedule):
    """``rate(t) = value``."""

    value: float

    def __post_init__(self) -> None:
        _check(self, rates=["value"])

    def rate(self, step: int) -> float:
        return self.value


@dataclass(frozen=True)
class Piecewise(Schedule):
    """``rate(t) = values[i]`` with i the number of `boundaries` <= t: one value more than there are boundaries.

    A boundary is the first step of the value after it.
    """

    boundaries: Sequence[int]
    values: Sequence[float]

    def __post_init__(self) -> None:
        for name in ("boundaries", "values"):
            if not isinstance(getattr(self, name), Iterable):
                raise ArgumentError(f"{self!r}: {name} is {getattr(self, name)!r}, expected a list of numbers.")
        boundaries = tuple(_integer(self, "boundaries", step) for step in self.boundaries)
        values = tuple(_number(self, "values", value) for value in self.values)
        if len(values) != len(boundaries) + 1 or any(a >= b for a, b in itertools.pairwise(boundaries)):
            raise ArgumentError(f"{self!r}: expected rising boundaries and one value more than there are boundaries.")
        object.__setattr__(self, "boundaries", boundaries)
        object.__setattr__(self, "values", values)

    def rate(self, step: int) -> float:
        return self.values[bisect_right(self.boundaries, step)]


@dataclass(frozen=True)
class StepDecay(Schedule):
    """``rate(t) = initial * factor**floor(t / every)``, 0 < factor <= 1."""

    initial: float
    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        _check(self, rates=["initial"], steps=["every"], shares=["factor"])

    def rate(self, step: int) -> float:
        return self.initial * self.factor ** (step // self.every)


@dataclass(frozen=True)
class ExponentialDecay(Schedule):
    """``rate(t) = initial * factor**(t / steps)``, 0 < factor <= 1; it goes on falling after `steps`."""

    initial: float
    steps: int
    factor: float

    def __post_init__(self) -> None:
        _check(self, rates=["initial"], steps=["steps"], shares=["factor"])

    def rate(self, step: int) -> float:
        return self.initial * math.pow(self.factor, step / self.steps)


@dataclass(frozen=True)
class PolynomialDecay(Schedule):
    """``rate(t) = final + (initial - final) * (1 - t/T)**power``, power > 0, T = `steps`."""

    initial: float
    steps: int
    final: float = 0.0
    power: float = 1.0

    def __post_init__(self) -> None:
        _check(self, rates=["initial", "final", "power"], steps=["steps"])
        if self.power == 0:
            raise ArgumentError(f"{self!r}: power is 0, expected a number > 0.")

    def rate(self, step: int) -> float:
        return _between(self.final, self.initial, (1.0 - min(step, self.steps) / self.steps) ** self.power)


@dataclass(frozen=True)
class LinearDecay(Schedule):
    """``rate(t) = final + (initial - final) * (1 - t/T)``, T = `steps`."""

    initial: float
    steps: int
    final: float = 0.0

    def __post_init__(self) -> None:
        _check(self, rates=["initial", "final"], steps=["steps"])

    def rate(self, step: int) -> float:
        return _between(self.final, self.initial, 1.0 - min(step, self.steps) / self.steps)


@dataclass(frozen=True)
class CosineDecay(Schedule):
    """``rate(t) = final + (initial - final) * (1 + cos(pi t/T)) / 2``, T = `steps`.

    Source: Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017, eq. 5, without restarts.
    """

    initial: float
    steps: int
    final: float = 0.0

    def __post_init__(self) -> None:
        _check(self, rates=["initial", "final"], steps=["steps"])

    def rate(self, step: int) -> float:
        return _between(self.final, self.initial, _half_cosine(min(step, self.steps) / self.steps))


@dataclass(frozen=True)
class OneCycle(Schedule):
    """A cosine rise from ``peak / start_divisor`` to `peak`, then a cosine fall to ``peak / final_divisor``.

    The rise takes the first ``rise * steps`` steps, ``0 < rise < 1``; both divisors are >= 1.

    Source: Smith & Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates", 2018.
    """

    peak: float
    steps: int
    rise: float = 0.3
    start_divisor: float = 25.0
    final_divisor: float = 2.5e5

    def __post_init__(self) -> None:
        _check(self, rates=["peak", "start_divisor", "final_divisor"], steps=["steps"], shares=["rise"])
        if self.rise == 1 or min(self.start_divisor, self.final_divisor) < 1:
            raise ArgumentError(f"{self!r}: expected 0 < rise < 1 and divisors >= 1.")

    def rate(self, step: int) -> float:
        top = self.rise * self.steps
        if step < top:
            return _between(self.peak, self.peak / self.start_divisor, _half_cosine(step / top))
        fallen = (min(step, self.steps) - top) / (self.steps - top)
        return _between(self.peak / self.final_divisor, self.peak, _half_cosine(fallen))


@dataclass(frozen=True)
class Warmup(Schedule):
    """A linear rise from `start` to the first rate of `schedule` over `steps` updates, then `schedule` from its step 0.

    ``rate(t) = start + (schedule(0) - start) * t/steps`` for t < steps, else ``schedule(t - steps)``. With the default
    ``start=0`` the first update changes nothing.

    Source: Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017, section 2.2.
    """

    schedule: Callable[[int], float]
    steps: int
    start: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", get(self.schedule))
        _check(self, rates=["start"], steps=["steps"])

    def rate(self, step: int) -> float:
        if step >= self.steps:
            return self.schedule(step - self.steps)
        return _between(self.start, self.schedule(0), step / self.steps)


@dataclass(frozen=True)
class Custom(Schedule):
    """A user's function ``fn(step) -> rate``; a rate that is not finite and >= 0 raises `ArgumentError`."""

    fn: Callable[[int], float]

    def __post_init__(self) -> None:
        try:
            inspect.signature(self.fn).bind(0)
        except (TypeError, ValueError) as error:  # ValueError: a compiled function that does not tell its signature
            raise ArgumentError(f"{self!r}: expected a function of the step; {error}.") from None

    def __repr__(self) -> str:
        return f"Custom({getattr(self.fn, '__name__', repr(self.fn))})"

    def rate(self, step: int) -> float:
        return _number(self, f"the rate of step {step}", self.fn(step))


TABLE: Mapping[str, type[Schedule]] = {
    kind.__name__: kind
    for kind in (
        *(Constant, Piecewise, StepDecay, ExponentialDecay, PolynomialDecay, LinearDecay),
        *(CosineDecay, OneCycle, Warmup),
    )
}


def get(spec: float | Schedule | Callable[[int], float]) -> Schedule:
    """Return the schedule that `spec` means: a number (`Constant`), a schedule, a function of the step (`Custom`)."""
    if isinstance(spec, Schedule):
        return spec
    if isinstance(spec, numbers.Real) and not isinstance(spec, bool):
        if not 0 <= spec < math.inf:
            raise ArgumentError(f"learning_rate is {spec!r}, expected a finite number >= 0, a schedule or a function.")
        return Constant(float(spec))
    if callable(spec):
        return Custom(spec)
    raise ArgumentError(f"Learning rate {spec!r}: expected a number, a Schedule or a function of the step.")


def from_data(data: Mapping[str, Any]) -> Schedule:
    """Return the schedule that `Schedule.to_data` described; only names in `TABLE` are made."""
    if not (isinstance(data, Mapping) and isinstance(data.get("name"), str)):
        raise FormatError(f"Schedule data {data!r}: expected a mapping with a 'name'.")
    name = data["name"]
    kind = TABLE[name] if name in TABLE else unknown_name("schedule", name, TABLE)
    expected = {"name", *(field.name for field in fields(kind))}
    if data.keys() != expected:
        raise FormatError(f"Schedule data {data!r}: expected the keys {sorted(expected)}.")
    values = {key: value for key, value in data.items() if key != "name"}
    return kind(**{key: from_data(value) if isinstance(value, Mapping) else value for key, value in values.items()})


def _half_cosine(part: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * part))


def _between(low: float, high: float, part: float) -> float:
    return low * (1.0 - part) + high * part  # exact at both ends, which low + (high - low) * part is not


def _check(
    schedule: Schedule, rates: Sequence[str] = (), steps: Sequence[str] = (), shares: Sequence[str] = ()
) -> None:
    """Convert the named fields to float (`rates`, `shares`) and int (`steps`), or raise `ArgumentError`."""
    for name in (*rates, *shares):
        value = _number(schedule, name, getattr(schedule, name))
        if name in shares and not 0 < value <= 1:
            raise ArgumentError(f"{schedule!r}: {name} is {value!r}, expected 0 < {name} <= 1.")
        object.__setattr__(schedule, name, value)
    for name in steps:
        object.__setattr__(schedule, name, _integer(schedule, name, getattr(schedule, name)))


def _number(schedule: Schedule, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value) or float(value) < 0:
        raise ArgumentError(f"{schedule!r}: {name} is {value!r}, expected a finite number >= 0.")
    return float(value)


def _integer(schedule: Schedule, name: str, value: Any, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ArgumentError(f"{schedule!r}: {name} is {value!r}, expected an integer >= {least}.")
    return int(value)


def _plain(value: Any) -> Any:
    return value.to_data() if isinstance(value, Schedule) else list(value) if isinstance(value, tuple) else value
