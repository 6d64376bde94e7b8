"""Initializers: what the entries of a new parameter are drawn from.

An initializer is called as ``initializer(shape, dtype, generator)`` and returns a new array; a kernel is ``(in, out)``.
Each is a frozen dataclass under its name in `TABLE`: ``"orthogonal"``, ``orthogonal`` and ``orthogonal(gain=1.0)`` mean
the same to `get`. (PEP 8 gives classes that serve as callables the names of functions.)

Numbers are drawn in float64, block by block, and rounded once, so a float32 and a float64 model of one seed start from
the same numbers.
One seed gives the same bits on one machine; `orthogonal` goes through LAPACK, whose last bits depend on the machine.
"""

from __future__ import annotations

import inspect
import math
import numbers
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import DTypeLike, NDArray

from fcdense.arena import too_large
from fcdense.arguments import real
from fcdense.conversion import read_on_host
from fcdense.errors import ArgumentError, DTypeError, FormatError, ShapeError, unknown_name

Shape = tuple[int, ...]
Array = NDArray[Any]

F64 = np.dtype(np.float64)
LARGEST = np.iinfo(np.intp).max // F64.itemsize
"""Entries of the largest array that NumPy can address."""

BLOCK = 1 << 16
"""Entries that are drawn at a time: 512 kB of float64."""

# What a standard normal variable cut at +-2 keeps of its deviation, 0.8796...: sqrt(1 - 4 pdf(2) / P(|z| <= 2)).
TRUNCATED_STDDEV = math.sqrt(1.0 - 4.0 * math.exp(-2.0) / math.sqrt(2.0 * math.pi) / math.erf(math.sqrt(2.0)))


@dataclass(frozen=True)
class Initializer(ABC):
    """Base of the initializers; parameters are finite floats. One of your own is a function (`custom`).

    A call returns a new C-contiguous array of `dtype` (float16, float32, float64), every entry finite. It raises
    `ShapeError` (a size is not a positive integer; not defined for this number of axes), `DTypeError` (`dtype` is not a
    NumPy floating dtype), `ArgumentError` (a value is beyond the range of `dtype`) or `OutOfMemory`.
    """

    def __post_init__(self) -> None:
        for field in fields(self):
            what, value = f"{type(self).__name__}: {field.name}", getattr(self, field.name)
            if field.name in ("gain", "stddev"):
                number = real(value, what, lambda number: 0.0 <= number < math.inf, "a finite number >= 0")
            else:
                number = real(value, what, math.isfinite, "a finite number")
            object.__setattr__(self, field.name, number)

    def __call__(self, shape: Sequence[int], dtype: DTypeLike, generator: Generator) -> Array:
        sizes, kind = _checked(shape, dtype, generator)
        try:
            entries = np.empty(sizes, kind)
            with np.errstate(over="ignore"):
                self.fill(entries, generator)
        except MemoryError:
            raise too_large(sizes, F64) from None
        if not all(np.isfinite(block).all() for block in _blocks(entries)):
            raise ArgumentError(f"{self!r} gives NaN or infinite entries in {kind}. Keep to its range.")
        return entries

    @abstractmethod
    def fill(self, out: Array, generator: Generator) -> None:
        """Write the entries into `out`, C-contiguous and of the dtype asked for."""

    def to_data(self) -> dict[str, Any]:
        """Return the name and the parameters as JSON-able data, which `from_data` reads."""
        if TABLE.get(type(self).__name__) is not type(self):
            raise ArgumentError(f"{self!r} is code, not data, and cannot be saved. Known: {', '.join(TABLE)}.")
        return {"name": type(self).__name__} | {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class constant(Initializer):
    """Every entry `value`."""

    value: float

    def fill(self, out: Array, generator: Generator) -> None:
        out[...] = self.value


class zeros(Initializer):
    """Every entry 0."""

    def fill(self, out: Array, generator: Generator) -> None:
        out[...] = 0.0


class ones(Initializer):
    """Every entry 1."""

    def fill(self, out: Array, generator: Generator) -> None:
        out[...] = 1.0


@dataclass(frozen=True)
class uniform(Initializer):
    """Uniform on ``[low, high)``."""

    low: float = -0.05
    high: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.low <= self.high and math.isfinite(self.high - self.low)):
            raise ArgumentError(f"uniform: low is {self.low!r} and high is {self.high!r}, expected low <= high.")

    def fill(self, out: Array, generator: Generator) -> None:
        for block in _blocks(out):
            block[...] = generator.uniform(self.low, self.high, block.size)


@dataclass(frozen=True)
class normal(Initializer):
    """Normal with mean `mean` and standard deviation `stddev`."""

    stddev: float = 0.05
    mean: float = 0.0

    def fill(self, out: Array, generator: Generator) -> None:
        for block in _blocks(out):
            block[...] = generator.normal(self.mean, self.stddev, block.size)


@dataclass(frozen=True)
class truncated_normal(Initializer):
    """Normal, where values beyond ``mean +- 2 stddev`` are drawn again.

    `stddev` is that of the normal before the cut (as in Keras, JAX and PyTorch); after it the deviation is
    ``0.87962566 * stddev``. `glorot_normal`, `he_normal` and `lecun_normal` correct for this.
    """

    stddev: float = 0.05
    mean: float = 0.0

    def fill(self, out: Array, generator: Generator) -> None:
        places = []
        for number, block in enumerate(_blocks(out)):
            values = generator.standard_normal(block.size)
            places.append(np.flatnonzero(np.abs(values) > 2.0) + number * BLOCK)
            block[...] = self.mean + self.stddev * values
        flat, outside = out.reshape(-1), np.concatenate(places)
        while outside.size:
            values = generator.standard_normal(outside.size)
            flat[outside] = self.mean + self.stddev * values
            outside = outside[np.abs(values) > 2.0]


@dataclass(frozen=True)
class _Scaled(Initializer):
    gain: float = 1.0

    def uniform(self, variance: float, out: Array, generator: Generator) -> None:
        limit = self.gain * math.sqrt(3.0 * variance)
        uniform(-limit, limit).fill(out, generator)

    def normal(self, variance: float, out: Array, generator: Generator) -> None:
        truncated_normal(self.gain * math.sqrt(variance) / TRUNCATED_STDDEV).fill(out, generator)


class glorot_uniform(_Scaled):
    """Uniform on ``[-a, a)`` with ``a = gain * sqrt(6 / (fan_in + fan_out))`` (Glorot & Bengio 2010, eq. 16)."""

    def fill(self, out: Array, generator: Generator) -> None:
        self.uniform(2.0 / sum(fans(out.shape)), out, generator)


class glorot_normal(_Scaled):
    """Normal of variance ``gain**2 * 2 / (fan_in + fan_out)``, cut at two deviations (Glorot & Bengio 2010, eq. 12)."""

    def fill(self, out: Array, generator: Generator) -> None:
        self.normal(2.0 / sum(fans(out.shape)), out, generator)


class he_uniform(_Scaled):
    """Uniform on ``[-a, a)`` with ``a = gain * sqrt(6 / fan_in)``; meant for ReLU (He et al. 2015, eq. 10)."""

    def fill(self, out: Array, generator: Generator) -> None:
        self.uniform(2.0 / fans(out.shape)[0], out, generator)


class he_normal(_Scaled):
    """Normal of variance ``gain**2 * 2 / fan_in``, cut at two deviations; meant for ReLU (He et al. 2015, eq. 10)."""

    def fill(self, out: Array, generator: Generator) -> None:
        self.normal(2.0 / fans(out.shape)[0], out, generator)


class lecun_uniform(_Scaled):
    """Uniform on ``[-a, a)`` with ``a = gain * sqrt(3 / fan_in)`` (LeCun et al. 1998, section 4.6)."""

    def fill(self, out: Array, generator: Generator) -> None:
        self.uniform(1.0 / fans(out.shape)[0], out, generator)


class lecun_normal(_Scaled):
    """Normal of variance ``gain**2 / fan_in``, cut at two deviations; meant for SELU (LeCun et al. 1998, 4.6)."""

    def fill(self, out: Array, generator: Generator) -> None:
        self.normal(1.0 / fans(out.shape)[0], out, generator)


@dataclass(frozen=True)
class orthogonal(Initializer):
    """``gain * Q``, Q uniformly distributed among matrices of orthonormal columns (rows where in < out); two axes only.

    ``w.T @ w = gain**2 * I`` where in >= out, else ``w @ w.T = gain**2 * I`` (Saxe et al. 2014; signs: Mezzadri 2007).
    """

    gain: float = 1.0

    def fill(self, out: Array, generator: Generator) -> None:
        shape = out.shape
        if len(shape) != 2:
            raise ShapeError(f"{self!r} is defined for a kernel (in, out), given the shape {shape}.")
        q, r = np.linalg.qr(generator.standard_normal((max(shape), min(shape))))
        # Householder QR fixes the signs of R's diagonal; without this Q is not uniformly distributed.
        q *= self.gain * np.where(np.diagonal(r) < 0, -1.0, 1.0)
        out[...] = q if shape[0] >= shape[1] else q.T


@dataclass(frozen=True)
class custom(Initializer):
    """A user's function ``fn(shape, dtype, generator)``; what it returns is checked (shape, finite) and copied."""

    fn: Callable[[Shape, np.dtype[Any], Generator], Any]

    def __post_init__(self) -> None:
        try:
            inspect.signature(self.fn).bind(None, None, None)
        except (TypeError, ValueError) as error:  # ValueError: a compiled function that does not tell its signature
            raise ArgumentError(f"{self!r}: expected a function of (shape, dtype, generator); {error}.") from None

    def __repr__(self) -> str:
        return f"custom({getattr(self.fn, '__name__', repr(self.fn))})"

    def fill(self, out: Array, generator: Generator) -> None:
        values = read_on_host(self.fn(out.shape, out.dtype, generator), f"The result of {self!r}")
        if values.dtype.kind not in "fiub":
            raise DTypeError(f"{self!r} returned dtype {values.dtype}, expected real numbers ({out.dtype}).")
        if values.shape != out.shape:
            raise ShapeError(f"{self!r} returned the shape {values.shape}, expected {out.shape}.")
        out[...] = values


TABLE: Mapping[str, type[Initializer]] = {
    kind.__name__: kind
    for kind in (
        *(zeros, ones, constant, uniform, normal, truncated_normal, orthogonal),
        *(glorot_uniform, glorot_normal, he_uniform, he_normal, lecun_uniform, lecun_normal),
    )
}


def get(spec: str | float | Initializer | type[Initializer] | Callable[..., Any]) -> Initializer:
    """Return the initializer that `spec` means.

    `spec` is a name in `TABLE`, a number (`constant`), an initializer or its class, or a function (`custom`).
    Raises `UnknownNameError` or `ArgumentError`.
    """
    if isinstance(spec, Initializer):
        return spec
    if isinstance(spec, str):
        spec = TABLE[spec] if spec in TABLE else unknown_name("initializer", spec, TABLE)
    if isinstance(spec, type) and issubclass(spec, Initializer):
        if any(field.default is MISSING for field in fields(spec)):
            raise ArgumentError(f"Initializer {spec.__name__!r} needs its value: write fc.init.{spec.__name__}(...).")
        return spec()
    if isinstance(spec, numbers.Real) and not isinstance(spec, bool):
        return constant(float(spec))
    if callable(spec):
        return custom(spec)
    raise ArgumentError(f"Initializer {spec!r}: expected a name, a number or a function of (shape, dtype, generator).")


def from_data(data: Mapping[str, Any]) -> Initializer:
    """Return the initializer that `Initializer.to_data` described; only names in `TABLE` are made."""
    if not (isinstance(data, Mapping) and isinstance(data.get("name"), str)):
        raise FormatError(f"Initializer data {data!r}: expected a mapping with a 'name'.")
    name = data["name"]
    kind = TABLE[name] if name in TABLE else unknown_name("initializer", name, TABLE)
    expected = {"name", *(field.name for field in fields(kind))}
    if data.keys() != expected:
        raise FormatError(f"Initializer data {data!r}: expected the keys {sorted(expected)}.")
    return kind(**{key: value for key, value in data.items() if key != "name"})


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """Return ``(fan_in, fan_out)``: the sizes of a kernel ``(in, out)``; for a vector ``(out,)`` both are `out`.

    Raises `ShapeError` for any other number of axes: draw each ``(in, out)`` matrix of a stack by itself.
    """
    if len(shape) not in (1, 2):
        raise ShapeError(f"Fans are defined for a kernel (in, out) or a vector (out,), given the shape {tuple(shape)}.")
    return shape[0], shape[-1]


def _checked(shape: Sequence[int], dtype: DTypeLike, generator: Generator) -> tuple[Shape, np.dtype[Any]]:
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        sizes = (0,)
    if any(size < 1 for size in sizes):
        raise ShapeError(f"Shape {shape!r}: expected a sequence of positive integers, e.g. (in, out).")
    if math.prod(sizes) > LARGEST:
        raise too_large(sizes, F64)
    kind = np.dtype(dtype)
    if kind.kind != "f":
        raise DTypeError(f"An initializer draws float16, float32 or float64, given the dtype {kind}.")
    if not isinstance(generator, Generator):
        raise ArgumentError(f"Generator {generator!r}: expected numpy.random.default_rng(seed).")
    return sizes, kind


def _blocks(array: Array) -> Iterator[Array]:
    """Views of at most `BLOCK` entries of a contiguous array, in their order."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        yield flat[start : start + BLOCK]
