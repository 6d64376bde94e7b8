"""Cases: what is measured. A case is one row of a table: a problem, its random data, its work, and how to run it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fcdense import activations
from fcdense.activation import Activation
from fcdense.backends import Device
from fcdense.errors import ArgumentError

from .disturbance import Watch

Arrays = dict[str, NDArray[Any]]

SEED = 20250101


def nothing() -> None:
    """Wait for no device: on the CPU a call has ended when it returns."""


class Lap(NamedTuple):
    """Nanoseconds for some calls, and how many cores other processes used meanwhile."""

    ns: int
    others: float


@dataclass(frozen=True)
class Run:
    """A case made ready on one device.

    Attributes
    ----------
    call : callable
        What is timed.
    outputs : callable
        The results of the first `Case.steps` calls, as NumPy arrays by name; asked for before there are more. Empty
        where there is nothing to compare.
    synchronise : callable
        Returns when the device has finished.
    """

    call: Callable[[], object]
    outputs: Callable[[], Arrays]
    synchronise: Callable[[], None] = nothing

    def time(self, calls: int) -> Lap:
        """Time this many calls. Garbage is collected as always: what a step leaves behind is its cost."""
        watch = Watch()
        start = time.perf_counter_ns()
        for _ in range(calls):
            self.call()
        self.synchronise()
        ns = time.perf_counter_ns() - start
        return Lap(ns, watch.cores())


@dataclass(frozen=True)
class Grid:
    """What the command line asks for; each question makes its cases of the part that concerns it.

    Networks whose case has more than `max_gflop` billions of operations are left out.
    """

    sizes: tuple[tuple[int, int, int], ...] = (
        (1, 784, 512),
        (32, 64, 64),
        (32, 784, 512),
        (256, 784, 512),
        (256, 1024, 1024),
        (1024, 1024, 1024),
    )
    networks: tuple[tuple[int, ...], ...] = ((64, 64, 64, 10), (784, 512, 512, 10), (1024, 1024, 1024, 1024))
    batches: tuple[int, ...] = (1, 32, 256)
    dtype: str = "float32"
    activations: tuple[str, ...] = ("relu",)
    optimizers: tuple[str, ...] = ("adam",)
    max_gflop: float = 100.0


@dataclass(frozen=True)
class Case(ABC):
    """One row of a question's table. Its fields are its parameters; they are written to the results."""

    question: ClassVar[str]
    steps: ClassVar[int] = 1  # calls after which results are compared
    dtype: str
    activation: str

    @property
    @abstractmethod
    def label(self) -> str:
        """The row's name in its table."""

    @property
    def setting(self) -> str:
        """What all rows of one table have in common."""
        return f"{self.activation}, {self.dtype}"

    @property
    @abstractmethod
    def flops(self) -> int:
        """Multiplications and additions of the matrix products; what is done to each element is not counted."""

    @abstractmethod
    def data(self) -> Arrays:
        """Random inputs, the same in every process. (Zeros flatter: chips clock higher on them.)"""

    @abstractmethod
    def prepare(self, device: Device, data: Arrays) -> Run:
        """The case on a device of fcdense, in the dtype that `data` has, as fast as it goes there."""

    def prepare_eager(self, device: Device, data: Arrays) -> Run | None:
        """The same without capture, or None where there is nothing to capture."""
        return None

    @abstractmethod
    def smallest(self) -> Case:
        """The same with next to no data: for what a library loads and compiles at its first use."""

    @property
    def function(self) -> Activation:
        """The activation."""
        found = activations.get(self.activation)
        if not isinstance(found, Activation):
            raise ArgumentError(f"Activation {self.activation!r} works on rows; the benches take elementwise ones.")
        return found


@dataclass(frozen=True)
class Layer(Case):
    """One dense layer."""

    batch: int
    in_features: int
    out_features: int

    @property
    def label(self) -> str:
        return f"{self.batch}x{self.in_features}x{self.out_features}"

    @property
    def product(self) -> int:
        """Operations of one of the layer's matrix products; all three have as many."""
        return 2 * self.batch * self.in_features * self.out_features

    def smallest(self) -> Case:
        return replace(self, batch=1, in_features=3, out_features=3)

    def data(self) -> Arrays:
        """x_bi, w_io, b_o and dy_bo, sized so that the layer's output has unit variance."""
        normal = np.random.default_rng(SEED).standard_normal
        data = {
            "x": normal((self.batch, self.in_features)),
            "w": normal((self.in_features, self.out_features)) / np.sqrt(self.in_features),
            "b": 0.1 * normal(self.out_features),
            "dy": normal((self.batch, self.out_features)),
        }
        return {name: array.astype(self.dtype) for name, array in data.items()}


def upload(device: Device, array: NDArray[Any]) -> Any:
    """A copy of `array` in the device's memory, aligned as the package's own arrays are."""
    out = device.backend.empty(array.shape, array.dtype)
    device.backend.copy(device.backend.from_host(array), out=out)
    return out


def host(device: Device, arrays: dict[str, Any]) -> Arrays:
    """NumPy copies of a device's arrays."""
    return {name: np.array(device.backend.to_host(array)) for name, array in arrays.items()}


def synchroniser(device: Device) -> Callable[[], None]:
    """What waits for the work given to `device`."""
    if device.type != "cuda":
        return nothing
    import cupy

    wait: Callable[[], None] = cupy.cuda.Device(device.index).synchronize
    return wait
