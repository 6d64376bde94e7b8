"""Cases: what is measured. A case is one row of a table: a problem, its random data, its work, and how to run it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fcdense import activations, backends
from fcdense.activation import Activation
from fcdense.backends import Device
from fcdense.errors import ArgumentError
from fcdense.precision import FLOAT_KINDS, PRECISIONS, dtype_of

from .disturbance import Watch
from .light import Kernel

Arrays = dict[str, NDArray[Any]]

SEED = 20250101

FLOPS_OF_REFERENCE = 1e10
"""Cases of up to so many are computed by the reference backend; larger ones by plain NumPy in float64, in an eighth of
the time."""

MIXED = ("bfloat16", "float16")
"""The dtypes that mean mixed precision where networks are concerned; layers have arrays of them."""


def tolerance(dtype: str, depth: int) -> float:
    """The largest error, relative to the largest result, that rounding explains in sums of `depth` products.

    A result of 16 bits is rounded by up to half of the space between two numbers, and so may be what it is computed
    from. Sums of float32 lose less, but tensor cores cut off what they should round, each time in the same direction.
    """
    spaces = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-19, "float64": 2.0**-48}
    return spaces[dtype] + depth * 2.0 ** (-57 if dtype == "float64" else -28)


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
    note : str
        What served the case, where there is a choice.
    """

    call: Callable[[], object]
    outputs: Callable[[], Arrays]
    synchronise: Callable[[], None] = nothing
    note: str = ""

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

    @property
    @abstractmethod
    def label(self) -> str:
        """The row's name in its table."""

    @property
    @abstractmethod
    def setting(self) -> str:
        """What all rows of one table have in common."""

    @property
    def flops(self) -> int:
        """Multiplications and additions of the matrix products; what is done to each element is not counted."""
        return 0

    @property
    def work(self) -> Sequence[Kernel]:
        """The least that has to be done, for the speed of light; empty where nobody asks for it."""
        return ()

    @property
    def tolerance(self) -> float | None:
        """The largest error that rounding explains."""
        return None

    @abstractmethod
    def data(self) -> Arrays:
        """Random inputs, the same in every process. (Zeros flatter: chips clock higher on them.)"""

    @abstractmethod
    def prepare(self, device: Device, data: Arrays) -> Run | None:
        """The case on a device of fcdense, in the dtype that `data` has, as fast as it goes there; None if it is none
        for this device."""

    def prepare_eager(self, device: Device, data: Arrays) -> Run | None:
        """The same without capture, or None where there is nothing to capture."""
        return None

    def exact(self) -> Arrays:
        """The results in float64 throughout, from the same data."""
        data = {
            name: array.astype(np.float64) if array.dtype.kind in FLOAT_KINDS else array
            for name, array in self.data().items()
        }
        device = backends.device("numpy" if self.flops > FLOPS_OF_REFERENCE else "reference")
        run = self.prepare_eager(device, data) or self.prepare(device, data)
        assert run is not None
        for _ in range(self.steps):
            run.call()
        return run.outputs()

    @abstractmethod
    def smallest(self) -> Case:
        """The same with next to no data: for what a library loads and compiles at its first use."""


@dataclass(frozen=True)
class Activated(Case):
    """A case with an activation, in numbers of one dtype."""

    dtype: str
    activation: str

    @property
    def setting(self) -> str:
        return f"{self.activation}, {self.dtype}"

    @property
    def function(self) -> Activation:
        """The activation."""
        found = activations.get(self.activation)
        if not isinstance(found, Activation):
            raise ArgumentError(f"Activation {self.activation!r} works on rows; the benches take elementwise ones.")
        return found


@dataclass(frozen=True)
class Layer(Activated):
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

    @property
    def tolerance(self) -> float | None:
        return tolerance(self.dtype, max(self.batch, self.in_features, self.out_features))

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
        return {name: array.astype(array_dtype(self.dtype)) for name, array in data.items()}


def array_dtype(name: str) -> np.dtype[Any]:
    """NumPy's dtype of this name, or bfloat16, which a package of its own adds."""
    return dtype_of(name) if name in PRECISIONS else np.dtype(name)


POOL = 1_000_003
"""A prime number, so that rows begin at other places of the pool."""


def random(number: int, shape: tuple[int, ...], dtype: np.dtype[Any], scale: float = 1.0) -> NDArray[Any]:
    """Normal numbers, a pool of a million over and over: to draw gigabytes takes longer than to measure.

    Another number is another pool.
    """
    count = min(POOL, int(np.prod(shape)))
    return np.resize((scale * np.random.default_rng([SEED, number]).standard_normal(count)).astype(dtype), shape)


def places(length: int, count: int = 64) -> slice:
    """About so many of an axis, at an odd distance, which meets all places within tiles and vectors."""
    return slice(None, None, max(1, length // count) | 1)


def gathered(device: Device, array: Any, *where: slice) -> NDArray[Any]:
    """A part of a device's array as one of NumPy."""
    part = array[where]
    out = device.backend.empty(part.shape, part.dtype)
    device.backend.copy(part, out=out)
    return host(device, {"part": out})["part"]


def upload(device: Device, array: NDArray[Any]) -> Any:
    """A copy of `array` in the device's memory, aligned as the package's own arrays are."""
    out = device.backend.empty(array.shape, array.dtype)
    device.backend.copy(device.backend.from_host(array), out=out)
    return out


def host(device: Device, arrays: dict[str, Any]) -> Arrays:
    """NumPy copies of a device's arrays; numbers of 16 bits as float32, which every process knows."""
    found = {name: np.array(device.backend.to_host(array)) for name, array in arrays.items()}
    return {name: array.astype(np.float32) if array.dtype.name in MIXED else array for name, array in found.items()}


def synchroniser(device: Device) -> Callable[[], None]:
    """What waits for the work given to `device`."""
    if device.type != "cuda":
        return nothing
    import cupy

    wait: Callable[[], None] = cupy.cuda.Device(device.index).synchronize
    return wait
