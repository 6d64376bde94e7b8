"""The driver over CuPy: arrays, one stream, a memory pool of its own, kernels loaded once, steps as CUDA graphs.

What is said here of CuPy was read in the sources of 14.2; the files are named as there.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, NoReturn

import cupy
import numpy as np
from cupy.cuda import driver as cuda
from cupy.cuda import runtime

from fcdense.arena import Array
from fcdense.cuda import compile as compiling
from fcdense.cuda.cublaslt import CublasLt, workspace_size
from fcdense.cuda.driver import Driver
from fcdense.cuda.library import library_path
from fcdense.cuda.source import Kernel
from fcdense.cuda.transfers import Loan, Staging
from fcdense.errors import CaptureError, DeviceError, OutOfMemory

FAILURES = (runtime.CUDARuntimeError, cuda.CUDADriverError)
OLDEST = (7, 5)
SPECIFIC = (9, 10, 11)
"""Generations whose tensor cores are reached by code for one chip alone: "sm_90a"."""
SHARED_BY_DEFAULT = 48 * 1024
"""Bytes of dynamic shared memory from which on a kernel has to ask for it."""


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


class Step(NamedTuple):
    """What is noted of a step: its launches, which are told the stream, its kernels, and the arrays made for it."""

    launches: list[Callable[..., object]]
    kernels: list[Kernel]
    arrays: list[Array]


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
    no_library : str
        Why there is no cuBLASLt.

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
            self.stream: Any = cupy.cuda.Stream(non_blocking=True)
        # A pool gives freed memory to whoever asks next on the same stream (cuda/memory.pyx, `_Arena`), here always
        # this one: what is launched on it later runs later. CUDA's own pool would put allocations into graphs.
        self._pool = cupy.cuda.MemoryPool()
        self._staging = Staging(self.stream)
        self._functions: dict[str, tuple[Any, np.dtype[Any]]] = {}
        self._loading = threading.Lock()
        self._local = threading.local()
        self.gpu = runtime.getDeviceProperties(index)["name"].decode()
        self.no_library = ""
        self.library = self._cublaslt()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=partial(_forget, weakref.ref(self)))

    def _cublaslt(self) -> CublasLt | None:
        """The library with a workspace of its own, or None where it is not there."""
        size = workspace_size(self.architecture)
        try:
            library_path("cublasLt", "cuBLASLt")  # before memory is taken for it
            with self.device:
                self._workspace = self.empty((size,), np.dtype(np.uint8))
                return CublasLt(self.address(self._workspace), size)
        except (DeviceError, OutOfMemory) as error:
            self.no_library = str(error)
            return None

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
        with self.device, self.stream:
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
        with self.device:
            self._staging.send(array, made.data)
        return made

    def write(self, target: Array, value: Any) -> None:
        """Write into an array: another one of the device, or numbers of the host, broadcast and cast as NumPy does."""
        if not isinstance(value, cupy.ndarray):
            values = np.broadcast_to(np.asarray(value, target.dtype), target.shape)
            if target.flags.c_contiguous:
                with self.device:
                    self._staging.send(values, target.data)
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
        if array.data.device_id != self._index:
            raise DeviceError(
                f"The array lies on cuda:{array.data.device_id}, expected {self.name}. Copy it there first."
            )
        loan = Loan(array, self.device, cupy.cuda.get_current_stream(self._index), self.stream)
        return self.wrap(array.shape, array.dtype, self._place(array, 0, loan), array.strides)

    def hand_over(self, array: Array) -> Array:
        loan = Loan(array, self.device, self.stream, cupy.cuda.get_current_stream(self._index))
        return cupy.ndarray(array.shape, array.dtype, self._place(array, 0, loan), array.strides)

    # ---- kernels -----------------------------------------------------------------------------------------------------

    def launch(self, kernel: Kernel, grid: tuple[int, int, int], arguments: np.ndarray[Any, Any]) -> None:
        step = self._step
        if step is not None:
            step.kernels.append(kernel)
            step.launches.append(partial(self._launch, kernel, grid, arguments.copy()))
            return
        with self.device:
            try:
                self._launch(kernel, grid, arguments, self.stream)
            except FAILURES as error:
                raise DeviceError(
                    f"{self.name}: '{kernel.name}' was not launched, or a kernel before it has failed: {error}."
                ) from error

    def _launch(self, kernel: Kernel, grid: tuple[int, int, int], arguments: np.ndarray[Any, Any], stream: Any) -> None:
        function, struct = self._function(kernel)
        # An array of one element is passed by value: cuda/function.pyx, `_pointer`, asks for no more than size 1 and
        # takes the address from its interface; CUDA knows from the function how many bytes to copy, and copies them
        # before the call returns. As bytes, because the interface of a struct would list all of its fields.
        function(grid, (kernel.threads, 1, 1), (arguments.view(struct),), kernel.shared, stream)

    def enqueue(self, launch: Callable[[int], object]) -> None:
        step = self._step
        if step is not None:
            step.launches.append(lambda stream: launch(stream.ptr))
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

    def _load(self, kernels: Iterable[Kernel]) -> None:
        """Make kernels ready, those that are not compiled yet at once."""
        missing = {kernel.text: kernel for kernel in kernels if kernel.text not in self._functions}.values()
        with ThreadPoolExecutor() as pool:
            codes = list(pool.map(partial(compiling.code, architecture=self.architecture), missing))
        with self.device:
            for kernel, code in zip(missing, codes, strict=True):
                self._function(kernel, code)

    def _function(self, kernel: Kernel, code: bytes | None = None) -> tuple[Any, np.dtype[Any]]:
        found = self._functions.get(kernel.text)
        if found is None:
            with self._loading:
                found = self._functions.get(kernel.text)
                if found is None:
                    struct = np.dtype(f"V{kernel.arguments.itemsize}")
                    found = self._functions[kernel.text] = self._loaded(kernel, code), struct
        return found

    def _loaded(self, kernel: Kernel, code: bytes | None) -> Any:
        """The function of a kernel, which keeps its module loaded."""
        code = compiling.code(kernel, self.architecture) if code is None else code
        module = cupy.cuda.function.Module()
        try:
            module.load(code)
            function = module.get_function("kernel")
            if kernel.shared > SHARED_BY_DEFAULT:
                asked = cuda.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                cuda.funcSetAttribute(function.ptr, asked, kernel.shared)
        except FAILURES as error:
            raise DeviceError(
                f"{self.name} does not load '{kernel.name}' for {self.architecture}, {kernel.shared} bytes of shared "
                f"memory: {error}. Does nvidia-smi name an older CUDA than that of the libraries?"
            ) from error
        return function

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
        self._load(step.kernels)
        return partial(self._replay, self._graph(step.launches), step.arrays)

    def _graph(self, launches: list[Callable[..., object]]) -> Any:
        """The launches as a graph.

        All memory is there by now and every kernel loaded: nothing but launches stands between begin and end. The
        stream is one of its own, so that neither another thread nor a finalizer can get anything into the graph, and
        the driver's stays as it was if it fails.
        """
        with self.device:
            stream = cupy.cuda.Stream(non_blocking=True)
            try:
                stream.begin_capture(runtime.streamCaptureModeRelaxed)
                try:
                    for launch in launches:
                        launch(stream=stream)
                except BaseException:
                    with suppress(*FAILURES):
                        stream.end_capture()
                    raise
                return stream.end_capture()
            except FAILURES as error:
                raise CaptureError(
                    f"{self.name}: {len(launches)} launches do not become a CUDA graph: {error}."
                ) from error

    def _replay(self, graph: Any, arrays: list[Array]) -> None:
        """Launch a graph, which works on `arrays`. One that is still running may be dropped (cuGraphExecDestroy)."""
        with self.device:
            graph.launch(self.stream)


def _forget(driver: weakref.ref[CupyDriver]) -> None:
    """Let a driver refuse to work, as this process is a forked one."""
    found = driver()
    if found is not None:
        found.device = ForkedDevice(found.name)
