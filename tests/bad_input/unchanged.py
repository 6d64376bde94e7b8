"""What an error must leave as it was: parameters, gradients, buffers, modes, the optimizer's memory, random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import fcdense as fc
from fcdense.errors import FcdenseError
from fcdense.random import random_state

Thing = fc.nn.Module | fc.optim.Optimizer | fc.Trainer


def facts(*things: Thing) -> list[Any]:
    """Everything that a failed call might have touched, by value."""
    state = random_state()
    return [id(state), str(state.generator.bit_generator.state), *state.words.tolist(), *state_of(*things)]


def state_of(*things: Thing) -> list[Any]:
    """Everything but the random numbers."""
    found: list[Any] = []
    for thing in things:
        if isinstance(thing, fc.Trainer):
            found += [len(thing.history), *state_of(thing.model, thing.optimizer)]
        elif isinstance(thing, fc.optim.Optimizer):
            found.append(_plain({**thing.state_dict(), "skipped_steps": "counts failures"}))
        else:
            found += [(name, _of(parameter)) for name, parameter in thing.named_parameters()]
            found += [(name, buffer.numpy().tobytes()) for name, buffer in thing.named_buffers()]
    return found


def _of(parameter: fc.Parameter) -> tuple[Any, ...]:
    if not parameter.is_built:
        return ("not built",)
    gradient = parameter.grad.numpy().tobytes() if parameter.has_grad else None
    return parameter.numpy().tobytes(), parameter.dtype, gradient, parameter.requires_grad


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return (value.dtype, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value


@contextmanager
def refused(kind: type[Exception], *words: str, keeps: tuple[Thing, ...] = ()) -> Iterator[Any]:
    """The block raises `kind`, says each of `words`, and nothing of `keeps` nor the random numbers changed."""
    before = facts(*keeps)
    with pytest.raises(kind) as caught:
        yield caught
    message = str(caught.value)
    assert isinstance(caught.value, FcdenseError), f"{type(caught.value)} is no exception of fcdense: {message}"
    missing = [word for word in words if word not in message]
    assert not missing, f"{message!r} does not say {missing}"
    assert facts(*keeps) == before, f"something changed before {message!r}"


def settled(
    *layers: fc.nn.Module, loss: Any = "cross_entropy", rows: int = 12, features: int = 3, **options: Any
) -> Any:
    """A trainer that has made two steps with Adam, so that every kind of state is there to be damaged."""
    fc.manual_seed(0)
    model = fc.nn.Sequential(*(layers or (fc.nn.Dense(4, "tanh"), fc.nn.BatchNorm(), fc.nn.Dense(3))))
    trainer = fc.Trainer(model, loss, "adam", **options)
    x, y = table(rows, features)
    outputs = model.eval()(x).shape[-1]
    trainer.fit(x, y % outputs if outputs > 1 else x[:, :1], batch_size=rows // 2, verbose=False)
    return trainer


def table(rows: int = 12, features: int = 3, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Features and class numbers; every class occurs."""
    generator = np.random.default_rng(5)
    x = generator.normal(size=(rows, features)).astype(np.float32)
    return x, generator.permutation(np.arange(rows) % classes)
