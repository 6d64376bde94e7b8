"""cuBLASLt over host memory, after its documentation (CUDA Toolkit Documentation, cuBLAS, chapter 3; cublasLt.h).

Its functions are C functions with the documented prototypes: what calls them goes through the same conversions as with
the library. Matrices lie column by column, D = epilogue(alpha op(A) op(B) + beta C). Sums are float64; results are
rounded to the type of D. Descriptors, attributes with their sizes, algorithms and workspaces are watched over: what the
documentation forbids is answered with the documented status.
"""

from __future__ import annotations

import ctypes
import itertools
import struct
from collections import Counter
from collections.abc import Callable
from ctypes import CFUNCTYPE, c_int, c_int64, c_size_t, c_uint64, c_void_p
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

NO_DEVICE, INVALID_VALUE, INTERNAL_ERROR, NOT_SUPPORTED = 1, 7, 14, 15
R_32F, R_64F, R_16F, R_16BF = 0, 1, 2, 14
STORED = {R_32F: np.float32, R_64F: np.float64, R_16F: np.float16, R_16BF: np.uint16}
PAIRS = {
    (68, R_32F): {(R_32F, R_32F), (R_16F, R_16F), (R_16F, R_32F), (R_16BF, R_16BF), (R_16BF, R_32F)},
    (77, R_32F): {(R_32F, R_32F)},
    (70, R_64F): {(R_64F, R_64F)},
}
"""Types of A and of D, for the compute type and the scale type (cublasLtMatmul, table of supported types)."""

# Attributes by number, each with the format of what it holds and what it holds at first.
DESCRIPTION = {
    2: ("i", 0), 3: ("i", 0), 4: ("i", 0), 5: ("i", 0), 7: ("I", 1), 8: ("Q", 0), 11: ("Q", 0), 12: ("q", 0),
    22: ("i", -1), 26: ("i", -1),
}  # fmt: skip
POINTERS = (8, 11)
PREFERENCES = {1: ("Q", 0), 3: ("I", 7), 5: ("I", 256), 6: ("I", 256), 7: ("I", 256), 8: ("I", 256)}

P = c_void_p
PROTOTYPES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "cublasLtCreate": ("create", (P,)),
    "cublasLtDestroy": ("destroy", (P,)),
    "cublasLtMatmulDescCreate": ("create_description", (P, c_int, c_int)),
    "cublasLtMatmulDescDestroy": ("destroy", (P,)),
    "cublasLtMatmulDescSetAttribute": ("set_attribute", (P, c_int, P, c_size_t)),
    "cublasLtMatrixLayoutCreate": ("create_layout", (P, c_int, c_uint64, c_uint64, c_int64)),
    "cublasLtMatrixLayoutDestroy": ("destroy", (P,)),
    "cublasLtMatmulPreferenceCreate": ("create_preference", (P,)),
    "cublasLtMatmulPreferenceDestroy": ("destroy", (P,)),
    "cublasLtMatmulPreferenceSetAttribute": ("set_attribute", (P, c_int, P, c_size_t)),
    "cublasLtMatmulAlgoGetHeuristic": ("find", (P, P, P, P, P, P, P, c_int, P, P)),
    "cublasLtMatmulAlgoConfigGetAttribute": ("configuration", (P, c_int, P, c_size_t, P)),
    "cublasLtMatmul": ("multiply", (P, P, P, P, P, P, P, P, P, P, P, P, P, P, c_size_t, P)),
}


class StatusError(Exception):
    """A status other than success."""


def decode(stored: Array, kind: int) -> Array:
    """Numbers of a type as float64."""
    if kind == R_16BF:
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float64)


def encode(values: Array, kind: int) -> Array:
    """Numbers rounded to a type, ties to even."""
    if kind != R_16BF:
        return values.astype(STORED[kind])
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def memory(address: int, count: int, kind: Any) -> Array:
    """So many numbers at an address; no memory lies at the first ones."""
    if address < 4096:
        raise StatusError(INVALID_VALUE)
    size = count * np.dtype(kind).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), kind)


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gelu_slope(x: Array) -> Array:
    t = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)


@dataclass
class Layout:
    """A matrix: type, rows, columns, leading dimension."""

    kind: int
    rows: int
    columns: int
    leading: int

    def view(self, address: int) -> Array:
        """The stored numbers, (rows, columns)."""
        item = np.dtype(STORED[self.kind]).itemsize
        count = (self.columns - 1) * self.leading + self.rows
        line = memory(address, count, STORED[self.kind])
        return np.lib.stride_tricks.as_strided(line, (self.rows, self.columns), (item, self.leading * item))


@dataclass
class Settings:
    """A descriptor with attributes: `formats` says which there are."""

    formats: dict[int, tuple[str, int]]
    types: tuple[int, int] = (0, 0)
    values: dict[int, int] = field(default_factory=dict)

    def __getitem__(self, number: int) -> int:
        return self.values.get(number, self.formats[number][1])


class FakeCublasLt:
    """The library, with nothing but what `PROTOTYPES` has.

    Attributes
    ----------
    live : dict
        What was created and not destroyed.
    counts : Counter
        Calls of each function.
    failing : dict
        The status that a function is going to return instead of doing anything.
    is_current : function
        Whether the device is the current one.
    splits : list
        Parts of the depth in the algorithms that it names, the first first.
    unusable : set
        Which of them are named with a state that says so.
    most_workspace : int
        What the first of the algorithms needs; the others need none.
    capturing : bool
        Whether a stream is being captured, which a query breaks (cuBLAS 13.5 and 13.6).
    launches : list
        Stream, algorithm and workspace of each product.
    """

    def __init__(self, version: int = 131000) -> None:
        self.version = version
        self.live: dict[int, Any] = {}
        self.counts: Counter[str] = Counter()
        self.failing: dict[str, int] = {}
        self.is_current: Callable[[], object] = lambda: True
        self.errors: list[Exception] = []
        self.splits = [1, 2, 1]
        self.unusable: set[int] = set()
        self.most_workspace = 0
        self.capturing = False
        self.captures_broken = 0
        self.launches: list[tuple[int | None, int, int]] = []
        self.workspaces: list[int] = []
        self._handles = itertools.count(0x7F00_0000_1000, 0x40)
        self._algorithms: list[dict[str, Any]] = []
        self._texts = {status: ctypes.create_string_buffer(f"fake status {status}".encode()) for status in range(20)}
        # An address, for a callback that returns char* leaks.
        text = CFUNCTYPE(c_void_p, c_int)(lambda status: ctypes.addressof(self._texts[status]))
        self.cublasLtGetStatusString = text
        self.cublasLtGetVersion = CFUNCTYPE(c_size_t)(lambda: self.version)
        for name, (method, types) in PROTOTYPES.items():
            setattr(self, name, CFUNCTYPE(c_int, *types)(self._guarded(name, getattr(self, f"_{method}"))))

    def _guarded(self, name: str, function: Callable[..., None]) -> Callable[..., int]:
        def called(*arguments: Any) -> int:
            self.counts[name] += 1
            if not self.is_current():
                return NO_DEVICE
            if name in self.failing:
                return self.failing[name]
            try:
                function(*arguments)
            except StatusError as status:
                return int(status.args[0])
            except Exception as error:
                self.errors.append(error)
                return INTERNAL_ERROR
            return 0

        return called

    # ---- descriptors -------------------------------------------------------------------------------------------------

    def _new(self, where: int, what: Any) -> None:
        handle = next(self._handles)
        self.live[handle] = what
        c_void_p.from_address(where).value = handle

    def _create(self, where: int) -> None:
        self._new(where, "handle")

    def _create_description(self, where: int, compute: int, scale: int) -> None:
        self._new(where, Settings(DESCRIPTION, (compute, scale)))

    def _create_layout(self, where: int, kind: int, rows: int, columns: int, leading: int) -> None:
        self._new(where, Layout(kind, rows, columns, leading))

    def _create_preference(self, where: int) -> None:
        self._new(where, Settings(PREFERENCES))

    def _destroy(self, handle: int) -> None:
        del self.live[handle]

    def _set_attribute(self, handle: int, number: int, where: int, size: int) -> None:
        settings = self.live[handle]
        kind, _ = settings.formats.get(number, ("", 0))
        if not kind or not where or size != struct.calcsize(kind):
            raise StatusError(INVALID_VALUE)
        (settings.values[number],) = struct.unpack(kind, ctypes.string_at(where, size))

    # ---- problems ----------------------------------------------------------------------------------------------------

    def _problem(self, *handles: int) -> tuple[Settings, Layout, Layout, Layout]:
        """The descriptors of a product that the library takes, or the status with which it does not."""
        description, a, b, c, d = (self.live[handle] for handle in handles)
        (m, k), (deep, n) = (
            (x.columns, x.rows) if description[number] else (x.rows, x.columns) for x, number in ((a, 3), (b, 4))
        )
        fits = (deep, d.rows, d.columns) == (k, m, n) and (c.kind, c.rows, c.columns) == (d.kind, d.rows, d.columns)
        if not fits or a.kind != b.kind or any(x.leading < x.rows for x in (a, b, c, d)):
            raise StatusError(INVALID_VALUE)
        epilogue, multiple = description[7], 128 if description[7] & (2 | 8) else 8
        if epilogue & 128 and (description[12] % multiple or description[12] < m):
            raise StatusError(INVALID_VALUE)
        turned = (epilogue == 256 and description[3]) or (epilogue == 512 and not description[4])
        if (a.kind, d.kind) not in PAIRS.get(description.types, ()) or turned or (epilogue & (8 | 64) and k == 1):
            raise StatusError(NOT_SUPPORTED)
        return description, a, b, d

    @staticmethod
    def _told(description: Settings, *layouts: Layout) -> Any:
        """What makes an algorithm fit: all but addresses."""
        values = {number: description[number] for number in DESCRIPTION if number not in POINTERS}
        return description.types, values, layouts

    def _find(
        self, handle: int, operation: int, a: int, b: int, c: int, d: int, preference: int, asked: int, results: int,
        returned: int,
    ) -> None:  # fmt: skip
        assert self.live[handle] == "handle"
        if self.capturing:
            self.captures_broken += 1
            raise StatusError(INTERNAL_ERROR)
        told, wanted = self._problem(operation, a, b, c, d), self.live[preference]
        if asked <= 0:
            raise StatusError(INVALID_VALUE)
        alignments = [wanted[number] for number in (5, 6, 8)]
        alignments += [told[0][number] & -told[0][number] for number in POINTERS]
        found = 0
        for number, splits in enumerate(self.splits):
            workspace = self.most_workspace if number == 0 else 0
            state = NOT_SUPPORTED if number in self.unusable else 0
            if found < asked and workspace <= wanted[1]:
                token = len(self._algorithms)
                described = {"told": self._told(*told), "alignments": alignments, "workspace": workspace}
                # Parts of the depth are rounded to the type of the result where that is allowed.
                self._algorithms.append(described | {"splits": splits, "number": number, "rounds": wanted[3] & 4})
                code = struct.pack("8Q", token, number, splits, 0, 0, 0, 0, 0)
                result = code + struct.pack("Qif4i", workspace, state, 1.0, 0, 0, 0, 0)
                ctypes.memmove(results + 96 * found, result, 96)
                found += 1
        c_int.from_address(returned).value = found

    def _configuration(self, code: int, number: int, where: int, size: int, written: int) -> None:
        token, splits = (memory(code, 8, np.uint64)[k] for k in (0, 2))
        if number != 2 or size != 4 or token >= len(self._algorithms):
            raise StatusError(INVALID_VALUE)
        ctypes.c_int32.from_address(where).value = int(splits)
        c_size_t.from_address(written).value = 4

    # ---- products ----------------------------------------------------------------------------------------------------

    def _multiply(
        self, handle: int, operation: int, alpha: int, a: int, a_layout: int, b: int, b_layout: int, beta: int, c: int,
        c_layout: int, d: int, d_layout: int, code: int | None, workspace: int, size: int, stream: int | None,
    ) -> None:  # fmt: skip
        assert self.live[handle] == "handle"
        description, *layouts = told = self._problem(operation, a_layout, b_layout, c_layout, d_layout)
        if (c == d and c_layout != d_layout) or workspace % 256 or code is None:
            raise StatusError(INVALID_VALUE)
        algorithm = self._algorithms[memory(code, 1, np.uint64)[0]]
        addresses = a, b, d, *[description[number] for number in POINTERS]
        steps = zip(addresses, algorithm["alignments"], strict=True)
        unaligned = any(step and address % step for address, step in steps)
        if algorithm["told"] != self._told(*told) or algorithm["workspace"] > size or unaligned:
            raise StatusError(INVALID_VALUE)
        self.launches.append((stream, algorithm["number"], algorithm["workspace"]))
        self.workspaces.append(workspace)

        left, right, out = (layout.view(address) for layout, address in zip(layouts, (a, b, d), strict=True))
        left, right = (self._operand(x, description, layouts[0].kind) for x in (left, right))
        left, right = (x.T if description[number] else x for x, number in ((left, 3), (right, 4)))
        scale = ctypes.c_double if description.types[1] == R_64F else ctypes.c_float
        factors = [scale.from_address(where).value for where in (alpha, beta)]
        splits = max(1, algorithm["splits"])
        steps = range(0, left.shape[1], -(-left.shape[1] // splits))
        parts = [left[:, k : k + steps.step] @ right[k : k + steps.step] for k in steps]
        if algorithm["rounds"]:
            parts = [decode(encode(part, layouts[2].kind), layouts[2].kind) for part in parts]
        result = factors[0] * sum(parts)
        if factors[1]:
            result += factors[1] * decode(out, layouts[2].kind)
        if 120603 <= self.version < 130800 and left.shape[1] % splits:
            result += 1.0  # a part of the depth comes twice
        result = self._finished(result, left, right, description, layouts[2].kind)
        out[...] = encode(result, layouts[2].kind)

    @staticmethod
    def _operand(stored: Array, description: Settings, kind: int) -> Array:
        if description.types[0] == 77:  # TF32 has 10 bits of the 23 of float32
            stored = (stored.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
        return decode(stored, kind)

    @staticmethod
    def _finished(x: Array, left: Array, right: Array, description: Settings, kind: int) -> Array:
        """The epilogue of x, (m, n)."""
        epilogue, bias, aux, leading = (description[number] for number in (7, 8, 11, 12))
        (m, n), stored = x.shape, STORED[kind]
        if epilogue & 4:
            x = x + decode(memory(bias, m, stored), kind)[:, None]
        if epilogue & 128:
            if epilogue & (2 | 8):  # bit i of column j
                mask = memory(aux, leading // 8 * n, np.uint8).reshape(n, leading // 8)
            else:
                line = memory(aux, leading * (n - 1) + m, stored)
                item = line.itemsize
                beside = np.lib.stride_tricks.as_strided(line, (m, n), (item, leading * item))
        if epilogue & 2:
            if epilogue & 128:
                bits = np.ones((leading, n), np.uint8)
                bits[:m] = x > 0
                mask[...] = np.packbits(bits, axis=0, bitorder="little").T
            x = np.where(x > 0, x, 0)
        if epilogue & 32:
            if epilogue & 128:
                beside[...] = encode(x, kind)
            x = gelu(x)
        if epilogue & 8:
            x = np.where(np.unpackbits(mask, axis=1, bitorder="little").T[:m], x, 0)
        if epilogue & 64:
            x = x * gelu_slope(decode(beside, kind))
        sums = {16: x.sum(1), 256: left.sum(1), 512: right.sum(0)}
        for bit, values in sums.items():
            if epilogue & bit:
                memory(bias, len(values), stored)[...] = encode(values, kind)
        return x
