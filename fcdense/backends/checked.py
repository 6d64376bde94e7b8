"""A backend that holds every call of another one to the contract: what the caller passes, and what the backend does.

For tests, and for whoever writes a backend or a primitive: `Device("cpu", backend=CheckedBackend(CpuBackend()))`.
"""

from __future__ import annotations

import abc
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fcdense.activation import Activation
from fcdense.arena import Array
from fcdense.backends.base import ADDED_TO, Backend
from fcdense.backends.spans import same_memory, share_memory
from fcdense.errors import ContractError
from fcdense.precision import FLOAT32, FLOAT_KINDS

Sizes = dict[str, tuple[int, ...]]

# The shape of each array, in this order. A letter is one axis, *S any number of them; every name has one size (or
# tuple of sizes) in a call; a digit is one axis of that size. <S broadcasts to *S. Of two rules, the one that has the
# array's number of axes holds.
SHAPES: dict[str, dict[str, str]] = {
    "dense": {"x_bi": "B I", "w_io": "I O", "b_o": "O", "out": "B O", "aux": "B O"},
    "dense_grad_input": {"dz_bo": "B O", "w_io": "I O", "aux_bi": "B I", "out": "B I", "db": "I"},
    "dense_grad_weight": {"x_bi": "B I", "dz_bo": "B O", "out": "I O"},
    "act_grad": {"dy_bo": "B O", "aux_bo": "B O", "out": "B O", "db": "O"},
    "softmax": {"z_bk": "B K", "out": "B K"},
    "softmax_xent": {"z_bk": "B K", "target": "B | B K", "weight_b": "B", "loss": "", "dz": "B K"},
    "elementwise_loss": {"prediction": "*S", "target": "*S", "weight": "<S", "loss": "", "dz": "*S"},
    "map": {"out": "*S", "inputs": "<S", "scalars": "N", "when": ""},
    "next_stream": {"state": "2", "out": "2"},
    "dropout": {"x": "*S", "stream": "2", "out": "*S"},
    "reduce": {"x": "*S", "out": "*R"},
    "matmul": {"out": "*L M N", "a": "<L M K", "b": "<L K N"},
    "copy": {"out": "*S", "x": "<S"},
    "fill": {"out": "*S"},
    "gather_rows": {"x": "N *R", "index": "*K", "out": "*K *R"},
    "scatter_add_rows": {"out": "N *R", "index": "*K", "x": "*K *R"},
    "norm2": {"x": "*S", "out": ""},
}

INT64 = np.dtype(np.int64)
UINT64 = np.dtype(np.uint64)
FLOAT64 = np.dtype(np.float64)
DTYPES = {
    ("gather_rows", "index"): INT64,
    ("scatter_add_rows", "index"): INT64,
    ("norm2", "out"): FLOAT64,
    ("map", "scalars"): FLOAT64,
    ("map", "when"): FLOAT64,
    ("next_stream", "state"): UINT64,
    ("next_stream", "out"): UINT64,
    ("dropout", "stream"): UINT64,
}
NOT_ONLY_FLOATS = {"map", "fill"}
MAY_BE_WIDER = {("dense", "b_o"), ("dense_grad_input", "db"), ("act_grad", "db"), ("dense_grad_weight", "out")}
"""Operands that may be float32 where the others are of 16 bits: mixed precision."""
MAY_BE_STRIDED = {"map", "copy", "fill"}

# Row numbers, and the array whose rows they count.
NUMBERS = {"gather_rows": ("index", "x"), "scatter_add_rows": ("index", "out")}

IN_PLACE = {"act_grad": "dy_bo", "softmax_xent": "z_bk", "dropout": "x", "map": "inputs"}
"""Inputs that an output may be, element for element."""

# Bit patterns that no arithmetic gives: NaNs with a payload. Where one is still there after a call, nobody wrote.
UNWRITTEN = {1: 0x5A, 2: 0x7FDA, 4: 0x7FC5A5A5, 8: 0x7FF8A5A5A5A5A5A5}


def fits(rule: str, shape: tuple[int, ...], sizes: Sizes) -> bool:
    """Whether `shape` follows `rule`; sizes that were not known are noted in `sizes`."""
    rules = rule.split("|")
    axes = next((r for r in rules if len(r.split()) == len(shape)), rules[0]).split()
    counts = [len(sizes[name]) if name in sizes else 0 if name[0] in "*<" else 1 for name in axes]
    free = len(shape) - sum(counts)
    for name, count in zip(axes, counts, strict=True):
        size = free if name[0] in "*<" and name not in sizes else count
        part, shape = shape[:size], shape[size:]
        if size < 0 or len(part) != size:
            return False
        if name[0] == "<":
            whole = sizes["*" + name[1:]]
            if size > len(whole) or any(n not in (1, m) for n, m in zip(part[::-1], whole[::-1], strict=False)):
                return False
        elif sizes.setdefault(name, part) != part:
            return False
    return not shape


class Call:
    """One call of one primitive. `inputs` and `outputs` hold (argument, its name in messages, array)."""

    def __init__(self, primitive: str, inner: Backend, given: dict[str, Any], outputs: frozenset[str]) -> None:
        self.primitive = primitive
        self.inner = inner
        self.given = given
        self.inputs = [entry for name in SHAPES[primitive] if name not in outputs for entry in self._arrays(name)]
        self.outputs = [entry for name in SHAPES[primitive] if name in outputs for entry in self._arrays(name)]

    def _arrays(self, argument: str) -> Iterator[tuple[str, str, Array]]:
        value = self.given[argument]
        if argument == "scalars" and isinstance(value, (list, tuple)):
            return  # numbers of the host
        if isinstance(value, (list, tuple)):
            yield from ((argument, f"{argument}[{i}]", array) for i, array in enumerate(value))
        elif value is not None:
            yield argument, argument, value

    def wrong(self, argument: str, what: str) -> ContractError:
        """The error, to be raised."""
        return ContractError(f"{self.primitive} on {self.inner.name}: {argument} {what}")

    def check_arguments(self) -> None:
        """What the caller owes."""
        kind = type(self.inner.empty((), np.dtype(np.float32)))
        for _, label, array in self.inputs + self.outputs:
            if not isinstance(array, kind):
                raise self.wrong(label, f"is a {type(array).__name__}, not an array of this device ({kind.__name__}).")
        self._check_shapes()
        self._check_dtypes()
        self._check_values()
        self._check_memory()

    def _check_shapes(self) -> None:
        sizes: Sizes = {"2": (2,)}
        if self.primitive == "map":
            sizes["N"] = (self.given["program"].n_scalars,)
        if self.primitive == "reduce":
            sizes["*R"] = tuple(n for axis, n in enumerate(self.given["x"].shape) if axis not in self.given["axes"])
        for argument, rule in SHAPES[self.primitive].items():
            for _, label, array in self._arrays(argument):
                if not fits(rule, array.shape, sizes):
                    known = ", ".join(f"{axes} = {size}" for axes, size in sizes.items() if axes != "2")
                    raise self.wrong(label, f"has shape {array.shape}; expected '{rule}' where {known}.")

    def _check_dtypes(self) -> None:
        common: np.dtype[Any] | None = None
        for argument, label, array in self.inputs + self.outputs:
            key = (self.primitive, argument)
            expected = INT64 if key == ("softmax_xent", "target") and array.ndim == 1 else DTYPES.get(key)
            if expected is None and self.primitive != "copy":  # which casts; elsewhere all floats have one dtype
                if array.dtype.kind in FLOAT_KINDS or self.primitive == "gather_rows":
                    common = common or array.dtype
                    expected = array.dtype if self._may_differ(key, array.dtype, common) else common
                elif self.primitive not in NOT_ONLY_FLOATS or array.dtype.kind not in "biu":
                    raise self.wrong(label, f"has dtype {array.dtype}; expected floats.")
            if expected is not None and array.dtype != expected:
                raise self.wrong(label, f"has dtype {array.dtype}; expected {expected}.")

    def _may_differ(self, key: tuple[str, str], dtype: np.dtype[Any], common: np.dtype[Any]) -> bool:
        """Whether an operand may have another dtype than those before it."""
        if not self.inner.mixed_precision:
            return False
        if key in MAY_BE_WIDER:
            return dtype == FLOAT32 and common.itemsize == 2
        return key == ("map", "out") and dtype.itemsize == 2 and common == FLOAT32

    def _check_values(self) -> None:
        if "act" in self.given:
            act: Activation = self.given["act"]
            aux = next(argument for argument in self.given if argument.startswith("aux"))
            given = self.given[aux] is not None
            # A forward pass writes f' or, in inference, no aux at all; a backward pass needs what there is.
            if (given and act.aux != "derivative") if aux == "aux" else given == (act.aux == "none"):
                raise self.wrong(aux, f"is {'given' if given else 'None'}; {act.name} has aux '{act.aux}'.")
            if self.given["out"] is None and not act.is_linear:
                raise self.wrong("out", f"is None; {act.name} is not linear.")
        if self.given.get("mode", "overwrite") not in ("overwrite", "accumulate"):
            raise self.wrong("mode", f"is {self.given['mode']!r}; expected 'overwrite' or 'accumulate'.")
        if self.primitive in NUMBERS:
            name, of = NUMBERS[self.primitive]
            index, stop = self.inner.to_host(self.given[name]), self.given[of].shape[0]
            if index.size and not (index.min() >= 0 and index.max() < stop):
                raise self.wrong(name, f"holds {index.min()} to {index.max()}; expected 0 to {stop - 1}.")

    def _check_memory(self) -> None:
        seen = list(self.inputs)
        for argument, label, array in self.outputs:
            if array.size and any(n > 1 and step == 0 for n, step in zip(array.shape, array.strides, strict=True)):
                raise self.wrong(label, f"has several elements in one place (strides {array.strides}).")
            if self.primitive not in MAY_BE_STRIDED and not array.flags.c_contiguous:
                raise self.wrong(label, f"is not contiguous (shape {array.shape}, strides {array.strides}).")
            for other, other_label, memory in seen if self.primitive != "copy" else ():
                in_place = IN_PLACE.get(self.primitive) == other and same_memory(array, memory)
                if not in_place and share_memory(array, memory):
                    raise self.wrong(label, f"overlaps {other_label}.")
            seen.append((argument, label, array))

    def run(self, method: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The call, and what the backend owes."""
        kept = [(label, a, self._bytes(a)) for _, label, a in self.inputs if not self._overlaps(a, self.outputs)]
        when = self.given.get("when")
        is_idle = when is not None and not self.inner.to_host(when)
        idle = [(label, a, self._bytes(a)) for _, label, a in self.outputs] if is_idle else []
        fresh = []
        for argument, label, array in self.outputs if not is_idle else ():
            adds = (self.primitive, argument) in ADDED_TO and self.given.get("mode", "accumulate") == "accumulate"
            if not adds and not self._overlaps(array, self.inputs):
                bits = array.view(f"u{array.dtype.itemsize}")
                bits[...] = UNWRITTEN[bits.dtype.itemsize]
                fresh.append((label, bits))
        if method(*args, **kwargs) is not None:
            raise self.wrong("the call", "returned something; results are written into arrays.")
        for label, array, before in kept:
            if self._bytes(array) != before:
                raise self.wrong(label, "was changed; it is an input.")
        for label, array, before in idle:
            if self._bytes(array) != before:
                raise self.wrong(label, "was changed, though `when` holds 0.")
        for label, bits in fresh:
            if left := int((self.inner.to_host(bits) == UNWRITTEN[bits.dtype.itemsize]).sum()):
                raise self.wrong(label, f"was not written whole: {left} of {bits.size} elements are as they were.")

    def _bytes(self, array: Array) -> bytes:
        return self.inner.to_host(array).tobytes()

    @staticmethod
    def _overlaps(array: Array, others: list[tuple[str, str, Array]]) -> bool:
        return any(share_memory(array, other) for _, _, other in others)


class CheckedBackend(Backend):
    """`inner`, with every call checked; slow.

    Raises
    ------
    ContractError
        From any primitive: an array of a wrong shape, dtype or device, an output that overlaps another array where
        that is not allowed, an input that was changed, an output that was not written whole.
    """

    def __init__(self, inner: Backend) -> None:
        super().__init__()
        self.inner = inner
        self.name, self.is_host = f"checked {inner.name}", inner.is_host
        self.mixed_precision = inner.mixed_precision

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return self.inner.empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return self.inner.zeros(shape, dtype)

    def broadcast_to(self, x: Array, shape: tuple[int, ...]) -> Array:
        return self.inner.broadcast_to(x, shape)

    def view(
        self, base: Array, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype[Any]
    ) -> Array:
        return self.inner.view(base, offset, shape, strides, dtype)

    def from_host(self, array: np.ndarray[Any, Any]) -> Array:
        return self.inner.from_host(array)

    def to_host(self, array: Array) -> np.ndarray[Any, Any]:
        return self.inner.to_host(array)


def _checked(primitive: str) -> Callable[..., None]:
    declared = getattr(Backend, primitive)
    signature = inspect.signature(declared)
    arrays = {name: p for name, p in signature.parameters.items() if "Array" in str(p.annotation)}
    written = {name for name, p in arrays.items() if p.kind is p.KEYWORD_ONLY and name != "when"}
    outputs = frozenset(written | {name for of, name in ADDED_TO if of == primitive})

    @functools.wraps(declared)
    def method(self: CheckedBackend, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        call = Call(primitive, self.inner, bound.arguments, outputs)
        call.check_arguments()
        call.run(getattr(self.inner, primitive), args, kwargs)

    method.__isabstractmethod__ = False  # type: ignore[attr-defined]
    return method


for _primitive in Backend.primitives():
    setattr(CheckedBackend, _primitive, _checked(_primitive))
_concrete: Any = CheckedBackend
abc.update_abstractmethods(_concrete)
