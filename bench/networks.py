"""Networks: the cases that are a whole model, and what runs a captured step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, pairwise, repeat
from typing import Any

import numpy as np

from fcdense import nn
from fcdense.backends import Device, use_device
from fcdense.capture import capture
from fcdense.precision import use_precision

from .cases import MIXED, SEED, Activated, Arrays, Case, array_dtype

LARGE, REPEATED = 4096, 256
"""Batches above the first have so many different rows, again and again: the mean over them is that of these alone, so
that the float64 reference, which runs on the CPU, needs no more."""


@dataclass(frozen=True)
class Network(Activated):
    """Dense layers one after another, the last one linear, that tell classes apart.

    A dtype of 16 bits means mixed precision: parameters, batch and optimizer state are float32.
    """

    batch: int
    widths: tuple[int, ...]

    @property
    def label(self) -> str:
        return f"{'-'.join(map(str, self.widths))}, batch {self.batch}"

    @property
    def products(self) -> list[int]:
        """Operations of each layer's matrix product, forward; both of its gradients have as many each."""
        return [2 * self.batch * inner * outer for inner, outer in pairwise(self.widths)]

    @property
    def is_mixed(self) -> bool:
        """Whether precision is mixed."""
        return self.dtype in MIXED

    @property
    def itemsize(self) -> int:
        """Bytes of what is multiplied."""
        return array_dtype(self.dtype).itemsize

    @property
    def rows(self) -> int:
        """How many rows of the batch differ; the results of these are compared."""
        return REPEATED if self.batch > LARGE and self.batch % REPEATED == 0 else self.batch

    def exact(self) -> Arrays:
        return super().exact() if self.rows == self.batch else replace(self, batch=self.rows).exact()

    def precision(self) -> AbstractContextManager[None]:
        """In which numbers the layers multiply."""
        return use_precision(self.dtype if self.is_mixed else "float32")

    def smallest(self) -> Case:
        return replace(self, batch=1, widths=(3,) * len(self.widths))

    def data(self) -> Arrays:
        """x_bi, the class numbers `target`, and w0, b0, w1, b1, ... for the layers."""
        generator = np.random.default_rng(SEED)

        def normal(shape: tuple[int, ...]) -> Any:
            return generator.standard_normal(shape, np.float32)  # in float64 it would take twice as long

        data = {"x": normal((self.rows, self.widths[0]))}
        for index, (inner, outer) in enumerate(pairwise(self.widths)):
            data[f"w{index}"] = normal((inner, outer)) * float(np.sqrt(2.0 / inner))
            data[f"b{index}"] = 0.1 * normal((outer,))
        typed = {name: array.astype("float32" if self.is_mixed else self.dtype) for name, array in data.items()}
        typed["target"] = generator.integers(self.widths[-1], size=self.rows)
        return typed | {name: np.resize(typed[name], (self.batch, *typed[name].shape[1:])) for name in ("x", "target")}

    def model(self, device: Device, data: Arrays) -> nn.Sequential:
        """The network with the weights of `data`."""
        dtype = data["x"].dtype
        *hidden, (inner, outer) = pairwise(self.widths)
        with use_device(device):
            model = nn.Sequential(
                *(nn.Dense(o, activation=self.function, in_features=i, dtype=dtype) for i, o in hidden),
                nn.Dense(outer, in_features=inner, dtype=dtype),
            )
        for name, parameter in zip(weights(data), model.parameters(), strict=True):
            parameter.assign(data[name])
        return model


def weights(data: Arrays) -> list[str]:
    """Names of kernels and biases, in the order of the layers."""
    return [name for name in data if name[0] in "wb"]


def replayed(device: Device, step: Callable[..., Any], *inputs: Any) -> Callable[[], Any]:
    """`step` captured: the first call runs it with `inputs`, the next one records it, and all are replays then."""
    captured = capture(step)

    def first() -> Any:
        with use_device(device):  # where buffers for arrays of the host are made
            return captured(*inputs)

    calls = chain([first], repeat(captured.replay))
    return lambda: next(calls)()


def eager(device: Device, step: Callable[..., Any], *inputs: Any) -> Callable[[], Any]:
    """`step` with `inputs`, as it stands."""
    return partial(step, *inputs)
