"""The driver over CuPy: arrays, one stream, a memory pool of its own, kernels loaded once, steps as CUDA graphs.

What is said here of CuPy was read in the sources of 14.2; the files are named as there.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

import cupy
import numpy as np
from cupy.cuda import runtime

from fcdense.arena import Array
from fcdense.cuda.cublaslt import CublasLt, workspace_size
from fcdense.cuda.cupy_graph import Part, Step, graph_of
from fcdense.cuda.driver import LANES, Driver
from fcdense.cuda.library import library_path
from fcdense.cuda.modules import FAILURES, Function, Launch, LaunchQueue, Modules
from fcdense.cuda.source import Kernel
from fcdense.cuda.transfers import Loan, Staging
from fcdense.errors import CaptureError, DeviceError, OutOfMemory

OLDEST = (7, 5)
SPECIFIC = (9, 10, 11)
"""Generations whose tensor cores are reached by code for one chip alone: "sm_90a"."""


def architecture_of(index: int) -> str:
    """What kernels are compiled for on a GPU: "sm_86", "sm_90a".

    Raises
    ------
    DeviceError
        It is too old.
    """
    major, minor = divmod(int(cupy.cuda.Device(index).compute_capability), 10)
    if (major, minor) < OLDEST:
        name = runtime.getDeviceProperties(index)["name"].decode()
        raise DeviceError(
            f"cuda:{index} is a {name} of compute capability {major}.{minor}; fcdense needs {OLDEST[0]}.{OLDEST[1]} "
            '(Turing) or later. Use device "cpu".'
        )
    return f"sm_{major}{minor}{'a' if major in SPECIFIC else ''}"


class DeviceArray(cupy.ndarray):  # type: ignore[misc]
    """An array of a driver. What CuPy itself launches for it goes to the driver's stream, not to the thread's own."""

    __slots__ = ("driver",)

    def __array_finalize__(self, source: Any) -> None:
        self.driver: CupyDriver = getattr(source, "driver", None)  # type: ignore[assignment]

    def __setitem__(self, key: Any, value: Any) -> None:
        self.driver.write(self[key], value)

    def reshape(self, *shape: Any) -> Any:
        """The same numbers in another shape: a view, or a copy where there can be none."""
        if self.flags.c_contiguous:
            return super().reshape(*shape)
        with self.driver.device, self.driver.stream:
            made = super().reshape(*shape)
        return made if type(made) is DeviceArray else self.driver.wrap(made.shape, made.dtype, made.data, made.strides)


class ForkedDevice:
    """Stands for the device in a forked process, where CUDA refuses every call."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> NoReturn:
        raise DeviceError(
            f"{self._name} was in use before this process was forked, and CUDA does not work in a forked process. "
            "Start it anew: multiprocessing.get_context('spawn')."
        )

    def __exit__(self, *_: object) -> None:
        """Never entered."""


class Current:
    """A GPU and its context as the current ones. CuPy's own `Device` leaves a new thread without a context where the
    number of the GPU is the one that the thread has anyway (cuda/device.pyx)."""

    def __init__(self, device: Any) -> None:
        self._device = device

    def __enter__(self) -> None:
        self._device.__enter__()
        self._device.use()

    def __exit__(self, *raised: object) -> None:
        self._device.__exit__(*raised)


class CupyDriver(Driver):
    """One GPU through CuPy.

    Calls may come from any thread, whatever its current device and stream are; both are left as they were.

    Parameters
    ----------
    index : int
        Of the GPU, as the driver counts those that this process sees.

    Attributes
    ----------
    device : cupy.cuda.Device
    stream : cupy.cuda.Stream
        It does not wait for the default stream, nor does that for it.

    Raises
    ------
    DeviceError
        The GPU is too old.
    """

    def __init__(self, index: int) -> None:
        self.name = f"cuda:{index}"
        self.architecture = architecture_of(index)
        self._index = index
        self.device: Any = cupy.cuda.Device(index)
        with self.device:
            self._stream: Any = cupy.cuda.Stream(non_blocking=True)
        self._modules = Modules(self.name, self.architecture, self.device)
        self._queue = LaunchQueue()
        # A pool gives freed memory to whoever asks next on the same stream (cuda/memory.pyx, `_Arena`), here always
        # this one: what is launched on it later runs later. CUDA's own pool would put allocations into graphs.
        self._pool = cupy.cuda.MemoryPool(partial(_allocate, self._queue))
        self._staging = Staging()
        self._local = threading.local()
        self.gpu = runtime.getDeviceProperties(index)["name"].decode()
        self.library = self._cublaslt()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=partial(_forget, weakref.ref(self)))

    def _cublaslt(self) -> CublasLt | None:
        """The library with workspaces of its own, or None where it is not there."""
        size = workspace_size(self.architecture)
        try:
            library_path("cublasLt", "cuBLASLt")  # before memory is taken for it
            self._workspace = self._memory((LANES * size,), np.dtype(np.uint8))  # an array would hold the driver
            return CublasLt(self._workspace.ptr, size, device=Current(self.device))
        except (DeviceError, OutOfMemory) as error:
            self.no_library = str(error)
            return None

    @property
    def stream(self) -> Any:
        """The stream, with all launches so far in it."""
        with self.device:
            self._queue.settle()
        return self._stream

    # ---- arrays ------------------------------------------------------------------------------------------------------

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        array = self.wrap(shape, dtype, self._memory(shape, dtype))
        step = self._step
        if step is not None:
            step.arrays.append(array)
        return array

    def _memory(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """Memory of the pool, whose blocks are multiples of 512 bytes."""
        nbytes = math.prod(shape) * dtype.itemsize
        refused = (cupy.cuda.memory.OutOfMemoryError, OverflowError)
        with self.device, self._stream:
            if self._pool.get_limit():  # there it frees what is unused before it asks for more
                self._queue.settle()
            with suppress(*refused):
                return self._pool.malloc(nbytes)
            # The pool has given back what it held unused (cuda/memory.pyx, `_try_malloc`). CuPy's own may hold more.
            cupy.get_default_memory_pool().free_all_blocks()
            with suppress(*refused):
                return self._pool.malloc(nbytes)
            free = runtime.memGetInfo()[0] + self._pool.free_bytes()
        raise OutOfMemory(
            f"{self.name} cannot hold an array of {nbytes:,} bytes; {free:,} are free"
            f"{', but not in one piece' if free >= nbytes else ''} (shape {shape}, {dtype}). Use a smaller batch or "
            "smaller layers."
        )

    def wrap(self, shape: Any, dtype: Any, memory: Any, strides: Any = None) -> DeviceArray:
        """An array in this memory of the device."""
        array = DeviceArray(shape, dtype, memory, strides)
        array.driver = self
        return array

    def _place(self, array: Array, offset: int, owner: object) -> Any:
        """Memory that belongs to `owner`, from `offset` bytes after the first element of `array`."""
        memory = cupy.cuda.UnownedMemory(array.data.ptr + offset, array.nbytes, owner, self._index)
        return cupy.cuda.MemoryPointer(memory, 0)

    def view(self, base: Array, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any) -> Array:
        # The view refers to the array itself, not to its memory alone: a workspace counts who refers to an array.
        return self.wrap(shape, dtype, self._place(base, offset, base), strides)

    def address(self, array: Array) -> int:
        return int(array.data.ptr)

    def upload(self, array: np.ndarray[Any, Any]) -> Array:
        made = self.empty(array.shape, array.dtype)
        self._send(array, made)
        return made

    def _send(self, values: np.ndarray[Any, Any], target: Array) -> None:
        try:
            with self.device:
                self._staging.send(values, target.data, self.stream)
        except FAILURES as error:
            raise DeviceError(
                f"{self.name}: {values.nbytes:,} bytes were not sent: {error}. A kernel that was launched before has "
                "failed, or the host has no pinned memory left."
            ) from error

    def write(self, target: Array, value: Any) -> None:
        """Write into an array: another one of the device, or numbers of the host, broadcast and cast as NumPy does."""
        if not isinstance(value, cupy.ndarray):
            values = np.broadcast_to(np.asarray(value, target.dtype), target.shape)
            if target.flags.c_contiguous:
                self._send(values, target)
                return
            value = self.upload(values)
        flat = target.flags.c_contiguous and value.flags.c_contiguous
        with self.device, self.stream:
            if flat and (target.shape, target.dtype) == (value.shape, value.dtype):
                target.data.copy_from_device_async(value.data, target.nbytes, self.stream)
            else:  # by a kernel of CuPy's own
                cupy.ndarray.__setitem__(target, ..., value)

    def download(self, array: Array) -> np.ndarray[Any, Any]:
        made = np.empty(array.shape, array.dtype)
        try:
            with self.device:
                array.get(self.stream, out=made)
        except FAILURES as error:
            raise DeviceError(f"{self.name}: a kernel that was launched before has failed: {error}.") from error
        return made

    def adopt(self, array: Array) -> Array:
        if not isinstance(array, cupy.ndarray):
            array = self._in_place(array)
        if array.data.device_id != self._index:
            raise DeviceError(
                f"The array lies on cuda:{array.data.device_id}, expected {self.name}. Copy it there first: "
                f"with cupy.cuda.Device({self._index}): array = cupy.asarray(array)."
            )
        loan = Loan(array, self.device, cupy.cuda.get_current_stream(self._index), self.stream)
        self._queue.loans.add(loan)
        return self.wrap(array.shape, array.dtype, self._place(array, 0, loan), array.strides)

    def _in_place(self, array: Any) -> Any:
        """Another library's array as CuPy's. `asarray` copies what lies on another GPU than the current one."""
        start = array.__cuda_array_interface__["data"][0]  # 0 where there are no elements
        home = cupy.cuda.UnownedMemory(start, 0, array).device_id if start else self._index
        with cupy.cuda.Device(home):
            return cupy.asarray(array)

    def hand_over(self, array: Array) -> Array:
        loan = Loan(array, self.device, self.stream, cupy.cuda.get_current_stream(self._index))
        self._queue.loans.add(loan)
        return cupy.ndarray(array.shape, array.dtype, self._place(array, 0, loan), array.strides)

    # ---- kernels -----------------------------------------------------------------------------------------------------

    def launch(self, kernel: Kernel, grid: tuple[int, int, int], arguments: np.ndarray[Any, Any]) -> None:
        call = Launch(kernel, grid, arguments.copy())
        with self.device:
            loaded = self._modules.get(kernel)
            step = self._step
            if step is None:
                self._queue.put(loaded, partial(self._launch, call))
            else:
                step.kernels.append(loaded)
                step.note(lambda stream: call.on(stream, loaded.result()))

    def _launch(self, call: Launch, function: Function) -> None:
        try:
            call.on(self._stream, function)
        except FAILURES as error:
            raise DeviceError(
                f"{self.name}: '{call.kernel.name}' was not launched, or a kernel before it has failed: {error}."
            ) from error

    def enqueue(self, launch: Callable[[int], object]) -> None:
        step = self._step
        if step is not None:
            step.note(lambda stream: launch(stream.ptr))
            return
        with self.device:
            launch(self.stream.ptr)

    def timed(self, calls: Callable[[], object]) -> float:
        with self.device:
            start, stop = cupy.cuda.Event(), cupy.cuda.Event()
            start.record(self.stream)
            calls()
            stop.record(self.stream)
            stop.synchronize()
            return 1e-3 * float(cupy.cuda.get_elapsed_time(start, stop))

    # ---- recorded steps ----------------------------------------------------------------------------------------------

    @property
    def _step(self) -> Step | None:
        """What this thread is noting."""
        return getattr(self._local, "step", None)

    def record(self, calls: Callable[[], None]) -> Callable[[], None]:
        if self._step is not None:
            raise CaptureError(f"{self.name}: a step cannot be recorded while this thread records another one.")
        step = self._local.step = Step([], [], [])
        try:
            calls()
        finally:
            self._local.step = None
        for kernel in step.kernels:  # which are compiled side by side
            kernel.result()
        with self.device:
            try:
                graph = graph_of(step.parts)
            except FAILURES as error:
                count = sum(len(part.launches) for part in step.parts)
                raise CaptureError(f"{self.name}: {count} launches do not become a CUDA graph: {error}.") from error
        return partial(self._replay, graph, step.arrays)

    def begin_part(self, lane: int, after: Sequence[int]) -> None:
        assert self._step is not None, "a part of what is recorded"
        self._step.parts.append(Part(lane, after, []))

    def _replay(self, graph: Any, arrays: list[Array]) -> None:
        """Launch a graph, which works on `arrays`. One that is still running may be dropped (cuGraphExecDestroy)."""
        with self.device:
            self._queue.settle()
            try:
                graph.launch(self._stream)
            except FAILURES as error:
                raise DeviceError(
                    f"{self.name}: a recorded step was not launched, or a kernel before it has failed: {error}."
                ) from error


def _allocate(queue: LaunchQueue, size: int) -> Any:
    """New memory for the pool. Where there is none it frees what is unused, which launches that wait may still use."""
    try:
        return cupy.cuda.MemoryPointer(cupy.cuda.Memory(size), 0)
    except runtime.CUDARuntimeError:
        queue.settle()
        raise


def _forget(driver: weakref.ref[CupyDriver]) -> None:
    """Let a driver refuse to work, as this process is a forked one."""
    found = driver()
    if found is not None:
        found.device = ForkedDevice(found.name)
        found.library = None
