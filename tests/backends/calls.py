"""Make a case's arrays, in any layout, and run it: on a backend under full checks, on the reference, as formula."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from fcdense.arena import Array
from fcdense.backends import device
from fcdense.backends.base import Backend
from fcdense.backends.checked import CheckedBackend
from fcdense.backends.cuda import CudaBackend
from fcdense.backends.reference import ReferenceBackend
from fcdense.precision import FLOAT_KINDS
from tests import emulation
from tests.backends import formulas
from tests.backends.cases import Case, Floats, Index, Out, Words

HostArray = np.ndarray[Any, Any]
Values = dict[str, Any]
"""Arguments of a primitive with host arrays, outputs included: as they are before the call."""

FAST = ("cpu", "numpy") if find_spec("numba") else ("cpu",)
"""Devices that large cases do not keep busy for minutes."""
DEVICES = (*FAST, "emu") if emulation.is_available() else FAST
"""Devices under test; every one of them runs the whole contract suite."""

REFERENCE = ReferenceBackend()


@cache
def _emulated() -> Backend:
    return CudaBackend(emulation.EmulatedDriver())


def backend_of(name: str) -> Backend:
    """The backend of a device under test."""
    return _emulated() if name == "emu" else device(name).backend


def _draw(wanted: Any, dtype: np.dtype[Any], rng: np.random.Generator, whole: bool) -> Any:
    if isinstance(wanted, tuple) and wanted and isinstance(wanted[0], Floats | Out):
        return tuple(_draw(w, dtype, rng, whole) for w in wanted)
    if isinstance(wanted, Index):
        return rng.integers(0, wanted.stop, wanted.shape)
    if isinstance(wanted, Words):
        return rng.integers(0, 60_000, wanted.shape, np.uint64)
    if isinstance(wanted, Out):
        found = np.dtype(wanted.dtype or dtype)
        if found.kind == "u":
            return rng.integers(0, 60_000, wanted.shape, found)
        if not wanted.added:
            return np.zeros(wanted.shape, found)
        return np.asarray(rng.integers(-3, 4, wanted.shape) if whole else rng.normal(size=wanted.shape)).astype(found)
    if not isinstance(wanted, Floats):
        return wanted
    if whole:
        values = rng.integers(-3, 4, wanted.shape)
    elif wanted.low is None:
        values = rng.normal(size=wanted.shape)
    else:
        values = rng.uniform(wanted.low, 1.0, wanted.shape) * (rng.random(wanted.shape) > 0.1)
    return np.asarray(values).astype(wanted.dtype or dtype)


def draw(case: Case, dtype: Any, rng: np.random.Generator, *, whole: bool = False) -> Values:
    """Random arguments for a case."""
    return {name: _draw(wanted, np.dtype(dtype), rng, whole) for name, wanted in case.arguments.items()}


# layouts: each makes a device array of the given values, which lies in memory in its own way


def contiguous(values: HostArray, backend: Backend) -> Array:
    array = backend.empty(values.shape, values.dtype)
    array[...] = backend.from_host(values)
    return array


def transposed(values: HostArray, backend: Backend) -> Array:
    return contiguous(values.T.copy(), backend).T


def strided(values: HostArray, backend: Backend) -> Array:
    wide = contiguous(np.repeat(values, 2, axis=-1) if values.ndim else values, backend)
    return wide[..., ::2] if values.ndim else wide


def padded_rows(values: HostArray, backend: Backend) -> Array:
    wide = contiguous(np.concatenate([values, values], axis=-1) if values.ndim else values, backend)
    return wide[..., : values.shape[-1]] if values.ndim else wide


def rows_one_apart(values: HostArray, backend: Backend) -> Array:
    """Rows that begin, where they are whole groups of numbers, at no multiple of the bytes of a group."""
    wide = contiguous(np.concatenate([values, values[..., :1]], axis=-1) if values.ndim else values, backend)
    return wide[..., : values.shape[-1]] if values.ndim else wide


def reversed_(values: HostArray, backend: Backend) -> Array:
    flip = (..., *(slice(None, None, -1),) * values.ndim)
    return contiguous(values[flip].copy(), backend)[flip]


def repeated(values: HostArray, backend: Backend) -> Array:
    """Stride 0: one row stands for all. Use it with values that `equal_rows` made."""
    if not values.ndim:
        return contiguous(values, backend)
    row = contiguous(values[:1], backend)
    if isinstance(row, np.ndarray):
        return np.broadcast_to(row, values.shape)
    return backend.driver.view(row, 0, values.shape, (0, *row.strides[1:]), row.dtype)  # type: ignore[attr-defined]


def shifted(values: HostArray, backend: Backend, by: int = 1) -> Array:
    """In one piece, so many elements behind where memory begins: at no multiple of the bytes of several of them."""
    wide = contiguous(np.concatenate([np.zeros(by, values.dtype), values.reshape(-1)]), backend)
    return wide[by:].reshape(values.shape)


def read_only(values: HostArray, backend: Backend) -> Array:
    array = contiguous(values, backend)
    array.flags.writeable = False
    return array


def misaligned(values: HostArray, backend: Backend) -> Array:
    raw = np.empty(values.nbytes + 1, np.uint8)
    array: HostArray = np.ndarray(values.shape, values.dtype, buffer=raw, offset=1)
    array[...] = values
    return array


LAYOUTS: dict[str, Callable[[HostArray, Backend], Array]] = {
    "transposed": transposed,
    "strided": strided,
    "padded_rows": padded_rows,
    "rows_one_apart": rows_one_apart,
    "reversed": reversed_,
    "repeated": repeated,
    "shifted": shifted,
    "read_only": read_only,
    "misaligned": misaligned,
}
HOST_ONLY = {"read_only", "misaligned"}

GUARD = 64
SENTINEL = 0x5B


def _guarded(values: HostArray, backend: Backend) -> tuple[Array, Callable[[], None]]:
    """An output between two guards, and a function that looks whether they still stand."""
    size = values.size
    flat = contiguous(np.full((size + 2 * GUARD) * values.itemsize, SENTINEL, np.uint8), backend).view(values.dtype)
    array = flat[GUARD : GUARD + size].reshape(values.shape)
    array[...] = backend.from_host(values)

    def look() -> None:
        for side in (flat[:GUARD], flat[GUARD + size :]):
            assert (backend.to_host(side).view(np.uint8) == SENTINEL).all(), (
                "something was written outside of an output"
            )

    return array, look


def run(
    backend: Backend,
    case: Case,
    values: Values,
    *,
    layout: Callable[[HostArray, Backend], Array] = contiguous,
    out_layout: Callable[[HostArray, Backend], Array] | None = None,
    in_place: bool = False,
) -> Values:
    """What one checked call of the case writes, by the names of its arguments."""
    given: dict[str, Any] = {}
    looks: list[Callable[[], None]] = []

    def place(wanted: Any, value: Any) -> Any:
        if isinstance(wanted, Floats | Index | Words):
            return layout(value, backend)
        if not isinstance(wanted, Out):
            return value
        if in_place and wanted.may_be:
            name, _, position = wanted.may_be.rstrip("]").partition("[")
            return given[name][int(position)] if position else given[name]
        if out_layout is not None:
            return out_layout(value, backend)
        array, look = _guarded(value, backend)
        looks.append(look)
        return array

    outputs = {}
    for name, wanted in sorted(case.arguments.items(), key=lambda item: isinstance(first(item[1]), Out)):
        several = isinstance(wanted, tuple) and isinstance(first(wanted), Floats | Out)
        value = values[name]
        given[name] = tuple(map(place, wanted, value)) if several else place(wanted, value)
        if isinstance(first(wanted), Out):
            outputs[name] = given[name]
    getattr(CheckedBackend(backend), case.primitive)(**given)
    for look in looks:
        look()
    return {
        name: tuple(backend.to_host(a).copy() for a in out) if isinstance(out, tuple) else backend.to_host(out).copy()
        for name, out in outputs.items()
    }


def first(wanted: Any) -> Any:
    """The description of an argument, or of the first of several arrays."""
    return wanted[0] if isinstance(wanted, tuple) and wanted else wanted


def _cast(values: Values, dtype: Any) -> Values:
    def one(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(one, value))
        floats = isinstance(value, np.ndarray) and value.dtype.kind in FLOAT_KINDS
        return np.ascontiguousarray(value, dtype).reshape(value.shape) if floats else value

    return {name: one(value) for name, value in values.items()}


def reference(case: Case, values: Values) -> Values:
    """What the reference backend computes, not rounded: its outputs are float64 here (the dtype matters to a copy)."""
    given = values if case.primitive == "copy" else _cast(values, np.float64)
    outputs = {name: _fresh(given[name]) for name, wanted in case.arguments.items() if isinstance(first(wanted), Out)}
    with np.errstate(all="ignore"):
        getattr(REFERENCE, case.primitive)(**given | outputs)
    return outputs


def _fresh(value: Any) -> Any:
    return tuple(a.copy() for a in value) if isinstance(value, tuple) else value.copy()


def formula(case: Case, values: Values, dtype: Any) -> Values:
    """What the plain program of the primitive gives when all floating operands have `dtype`."""
    with np.errstate(all="ignore"):
        given = values if case.primitive in ("copy", "fill") else _cast(values, dtype)
        results: Values = getattr(formulas, case.primitive)(**given)
    return results


def pairs(*results: Values) -> Iterator[tuple[Any, ...]]:
    """(name, then the array of that name from each result), the arrays of several outputs one by one."""
    for name, value in results[0].items():
        if isinstance(value, tuple):
            for k in range(len(value)):
                yield f"{name}[{k}]", *(r[name][k] for r in results)
        else:
            yield name, *(r[name] for r in results)


def assert_same_bits(a: Values, b: Values) -> None:
    """Both results are the same, bit for bit."""
    for name, x, y in pairs(a, b):
        assert x.tobytes() == y.tobytes(), f"{name} differs"
