"""A driver that runs the CUDA kernels on the processor: `kernels/emulation`, compiled with g++, one thread at a time.

Its arrays are no NumPy arrays and refuse to become some, as CuPy's do, so that code which mixes device and host fails
here as it would on a GPU.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import shutil
import subprocess
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fcdense import kernels
from fcdense.cuda.driver import LANES, Driver
from fcdense.cuda.source import Kernel
from fcdense.errors import OutOfMemory

HostArray = np.ndarray[Any, Any]
SOURCES = Path(kernels.__file__).parent
GUARD = 32 * 1024
FENCE = 0x7F
"""What a guard is filled with: as numbers very large, and other than those which a fresh array is filled with."""
CAPACITY = 1 << 31
ORDERS = ("forward", "reverse", "shuffled", "warp by warp")
LOOKED_AT = (
    "-fsanitize=kernel-address",
    "--param=asan-instrumentation-with-call-threshold=0",
    "--param=asan-globals=0",
    "--param=asan-stack=0",
    "-fsanitize=alignment",
)
"""Options by which kernels call the runtime before each access to memory, and where an address is not aligned."""


def is_available() -> bool:
    """Whether there is a compiler for it."""
    return shutil.which("g++") is not None


class EmulatedArray:
    """What the backend uses of CuPy's arrays, over host memory that belongs to the emulated device."""

    __array_ufunc__ = None

    def __init__(self, host: HostArray, base: EmulatedArray | None = None) -> None:
        self.host = host
        self.base = base

    def _part(self, host: HostArray) -> EmulatedArray:
        return EmulatedArray(host, self if self.base is None else self.base)

    def __array__(self, *args: Any, **kwargs: Any) -> HostArray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __getattr__(self, name: str) -> Any:
        if name in ("shape", "strides", "dtype", "size", "nbytes", "ndim", "itemsize", "flags"):
            return getattr(self.host, name)
        raise AttributeError(f"arrays of a device have no {name!r} here")

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.host.__array_interface__

    @property
    def T(self) -> EmulatedArray:  # noqa: N802
        return self._part(self.host.T)

    def __len__(self) -> int:
        return len(self.host)

    def __getitem__(self, key: Any) -> EmulatedArray:
        key = key if isinstance(key, tuple) else (key,)
        return self._part(self.host[key if Ellipsis in key else (*key, ...)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.host[key] = value.host if isinstance(value, EmulatedArray) else value

    def reshape(self, *shape: Any) -> EmulatedArray:
        return self._part(self.host.reshape(*shape))

    def transpose(self, *axes: Any) -> EmulatedArray:
        return self._part(self.host.transpose(*axes))

    def view(self, dtype: Any) -> EmulatedArray:
        return self._part(self.host.view(dtype))


def cache_folder() -> Path:
    """Where compiled kernels are kept for the next run of the tests."""
    root = os.environ.get("FCDENSE_CACHE")
    return (Path(root) if root else Path(tempfile.gettempdir()) / "fcdense-emulation") / "emulated"


def compiled(name: str, text: str, options: tuple[str, ...]) -> Path:
    """The shared library made from a C++ text, whatever it includes."""
    headers = sorted([*(SOURCES / "cuda").glob("*.cuh"), *(SOURCES / "emulation").glob("*.h")])
    parts = [text, *options, *(header.read_text(encoding="utf-8") for header in headers)]
    place = cache_folder() / f"{name}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:24]}.so"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as folder:
            source, made = Path(folder) / f"{name}.cpp", Path(folder) / "made.so"
            source.write_text(text, encoding="utf-8")
            includes = [f"-I{SOURCES / folder}" for folder in ("emulation", "cuda")]
            command = ["g++", "-std=c++20", "-fPIC", "-shared", "-DFCDENSE_EMULATION", *includes, str(source), *options]
            done = subprocess.run([*command, "-o", str(made)], capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{name}:\n{text}\n{done.stderr[:4000]}")
            os.replace(made, place)
    return place


@cache
def _runtime(options: tuple[str, ...]) -> ctypes.CDLL:
    """What runs kernels that are compiled with the same options, and linked with it."""
    text = (SOURCES / "emulation" / "runtime.cpp").read_text(encoding="utf-8")
    return ctypes.CDLL(str(compiled("runtime", text, ("-O2", *options))))


class EmulatedDriver(Driver):
    """The processor as a GPU.

    Attributes
    ----------
    order : str
        One of ORDERS: in which the threads of a block take their turns.
    copies_early : bool
        Whether asynchronous copies are made at once, instead of as late as they may be.
    """

    name = "emu"
    architecture = "emulated"
    gpu = "emulated GPU"

    def __init__(self, options: tuple[str, ...] = ()) -> None:
        self.order = ORDERS[0]
        self.copies_early = False
        self.launches: list[str] = []
        self._options = options
        self._kernels: dict[str, Any] = {}
        self._recorded: list[Part] | None = None
        self._made: list[EmulatedArray] = []
        self._stream = threading.Lock()
        self._guarded: list[tuple[weakref.ref[HostArray], int, int]] = []

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> EmulatedArray:
        """Filled with what is no number, between guards."""
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes > CAPACITY:
            raise OutOfMemory(f"{self.name} cannot hold an array of {nbytes:,} bytes; {CAPACITY:,} are free.")
        raw = np.full(nbytes + 2 * GUARD, FENCE, np.uint8)
        start = GUARD - raw.ctypes.data % 256
        raw[start : start + nbytes] = 0xFF
        self._guarded.append((weakref.ref(raw), start, start + nbytes))
        self.lend(raw, start, nbytes)
        made = EmulatedArray(np.ndarray(shape, dtype, raw, start))
        if self._recorded is not None:
            self._made.append(made)
        return made

    def lend(self, raw: HostArray, start: int, nbytes: int) -> None:
        """Let kernels read and write the bytes of `raw` from `start` on, as long as it lives."""
        if nbytes:
            array, address = _runtime(self._options).emulated_array, ctypes.c_void_p(raw.ctypes.data + start)
            array(address, ctypes.c_size_t(nbytes))
            weakref.finalize(raw, array, address, ctypes.c_size_t(0)).atexit = False

    def damaged_guards(self) -> int:
        """How many of the arrays that live had something written before or behind them."""
        living = [(raw, start, stop) for ref, start, stop in self._guarded if (raw := ref()) is not None]
        return sum(bool((raw[:start] != FENCE).any() or (raw[stop:] != FENCE).any()) for raw, start, stop in living)

    def view(self, base: EmulatedArray, offset: int, shape: Any, strides: Any, dtype: Any) -> EmulatedArray:
        if offset or base.dtype != dtype:
            host = np.ndarray(shape, dtype, base.host, offset, strides)
        else:
            host = np.lib.stride_tricks.as_strided(base.host, shape, strides)
        return EmulatedArray(host, base if base.base is None else base.base)

    def upload(self, array: HostArray) -> EmulatedArray:
        made = self.empty(array.shape, array.dtype)
        made.host[...] = array
        return made

    def download(self, array: EmulatedArray) -> HostArray:
        return array.host.copy()

    def address(self, array: EmulatedArray) -> int:
        where: int = array.host.__array_interface__["data"][0]
        return where

    def launch(self, kernel: Kernel, grid: tuple[int, int, int], arguments: HostArray) -> None:
        assert min(grid) > 0, f"{kernel.name}: grid {grid}"
        assert max(grid[1:]) <= 65_535, f"{kernel.name}: grid {grid}"
        assert kernel.shared <= 227 * 1024, f"{kernel.name}: {kernel.shared} bytes of shared memory"
        function = self._function(kernel)
        given = arguments.copy()
        if self._recorded is not None:
            self._note(lambda: self._run(kernel, function, grid, given))
        else:
            self._run(kernel, function, grid, given)

    def enqueue(self, launch: Callable[[int], object]) -> None:
        if self._recorded is not None:
            self._note(partial(launch, 0))
        else:
            launch(0)

    def timed(self, calls: Callable[[], object]) -> float:
        start = time.perf_counter()
        calls()
        return time.perf_counter() - start

    def _function(self, kernel: Kernel) -> Any:
        found = self._kernels.get(kernel.text)
        if found is None:
            runtime = _runtime(self._options)._name
            library = ctypes.CDLL(
                str(compiled("kernel", kernel.text, ("-O1", "-w", *LOOKED_AT, *self._options, runtime)))
            )
            size = ctypes.c_ulong.in_dll(library, "emulated_arguments").value
            assert size == kernel.arguments.itemsize, f"{kernel.name}: {size} bytes, not {kernel.arguments.itemsize}"
            found = self._kernels[kernel.text] = library.emulated_kernel
        return found

    def _run(self, kernel: Kernel, function: Any, grid: tuple[int, int, int], arguments: HostArray) -> None:
        triple = ctypes.c_uint * 3
        failed = triple()
        with self._stream:
            status = _runtime(self._options).emulated_launch(
                function,
                triple(*grid),
                triple(kernel.threads, 1, 1),
                ctypes.c_size_t(kernel.shared),
                ctypes.c_void_p(arguments.ctypes.data),
                ctypes.c_size_t(arguments.nbytes),
                ORDERS.index(self.order),
                int(self.copies_early),
                failed,
            )
        self.launches.append(kernel.name)
        if status:
            sentences = {
                1: "threads wait for each other for ever",
                2: "a copy was never waited for",
                3: "an address is no multiple of the bytes that are read or copied at once",
                4: "it reads what is in no array, nor in the shared memory that it asked for",
                5: "it writes what is in no array, nor in the shared memory that it asked for",
                6: "a thread writes to an array although its block was counted as done before it met the others",
            }
            raise RuntimeError(f"{kernel.name}, block {tuple(failed)}: {sentences[status]}")

    def _note(self, launch: Callable[[], None]) -> None:
        assert self._recorded is not None
        if not self._recorded:
            self.begin_part(0, ())
        self._recorded[-1].launches.append(launch)

    def begin_part(self, lane: int, after: Sequence[int]) -> None:
        assert self._recorded is not None
        assert 0 <= lane < LANES
        assert all(number < len(self._recorded) for number in after)
        self._recorded.append(Part(lane, tuple(after), []))

    @contextmanager
    def _recording(self) -> Iterator[list[Part]]:
        self._recorded, self._made = [], []
        try:
            yield self._recorded
        finally:
            self._recorded = None

    def record(self, calls: Callable[[], None]) -> Callable[[], None]:
        with self._recording() as recorded:
            calls()
        return partial(_replay, recorded, cycle(range(LANES)), self._made)


class Part(NamedTuple):
    """A part of what is recorded (`Driver.begin_part`)."""

    lane: int
    after: tuple[int, ...]
    launches: list[Callable[[], None]]


def _replay(recorded: Sequence[Part], turns: Iterator[int], made: Sequence[EmulatedArray]) -> None:
    """Launch what was recorded, which works on arrays that were `made` meanwhile and live as long as this."""
    for part in in_order(recorded, next(turns)):
        for launch in part.launches:
            launch()


def in_order(parts: Sequence[Part], first: int) -> Iterator[Part]:
    """The parts, with lane `first` as far ahead of the others as it may be."""
    waiting = {lane: deque(number for number, part in enumerate(parts) if part.lane == lane) for lane in range(LANES)}
    done: set[int] = set()
    while len(done) < len(parts):
        ready = [queue for queue in waiting.values() if queue and done.issuperset(parts[queue[0]].after)]
        assert ready, "the lanes wait for each other"
        number = next((queue for queue in (waiting[first],) if queue in ready), ready[0]).popleft()
        done.add(number)
        yield parts[number]
