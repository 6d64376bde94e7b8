"""Kernels on their way to a GPU: compiled side by side in threads, loaded once, and launched in the order of asking."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple
from weakref import WeakSet

import cupy
import numpy as np
from cupy.cuda import driver as cuda
from cupy.cuda import runtime

from fcdense.cuda import compile as compiling
from fcdense.cuda.source import Kernel
from fcdense.errors import DeviceError

FAILURES = (runtime.CUDARuntimeError, cuda.CUDADriverError)
SHARED_BY_DEFAULT = 48 * 1024
"""Bytes of dynamic shared memory from which on a kernel has to ask for it."""


class Function(NamedTuple):
    """A loaded kernel, which keeps its module, and its struct as bytes."""

    call: Any
    struct: np.dtype[Any]


class Launch(NamedTuple):
    """A kernel with its grid, and its arguments as one element of `kernel.arguments`."""

    kernel: Kernel
    grid: tuple[int, int, int]
    arguments: np.ndarray[Any, Any]

    def on(self, stream: Any, function: Function) -> None:
        """Launch it, loaded as `function`."""
        # An array of one element is passed by value: cuda/function.pyx, `_pointer`, asks for no more than size 1 and
        # takes the address from its interface; CUDA knows from the function how many bytes to copy, and copies them
        # before the call returns. As bytes, because the interface of a struct would list all of its fields.
        given = self.arguments.view(function.struct)
        function.call(self.grid, (self.kernel.threads, 1, 1), (given,), self.kernel.shared, stream)


class Modules:
    """The kernels of one GPU."""

    def __init__(self, name: str, architecture: str, device: Any) -> None:
        self._name, self._architecture, self._device = name, architecture, device
        self._compilers = ThreadPoolExecutor(thread_name_prefix="fcdense-nvrtc")
        self._loaded: dict[str, Future[Function]] = {}
        self._lock = threading.Lock()

    def get(self, kernel: Kernel) -> Future[Function]:
        """A kernel, which a thread begins to compile unless it is there."""
        with self._lock:
            found = self._loaded.get(kernel.text)
            if found is None or (found.done() and found.exception() is not None):
                found = self._loaded[kernel.text] = self._compilers.submit(self._load, kernel)
            return found

    def _load(self, kernel: Kernel) -> Function:
        code = compiling.code(kernel, self._architecture)
        module = cupy.cuda.function.Module()
        try:
            with self._device:
                module.load(code)
                function = module.get_function("kernel")
                if kernel.shared > SHARED_BY_DEFAULT:
                    asked = cuda.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                    cuda.funcSetAttribute(function.ptr, asked, kernel.shared)
        except FAILURES as error:
            cure = "Does nvidia-smi name an older CUDA than that of the libraries?"
            if "out of memory" in str(error):
                cure = "Free some of its memory: who else uses it? nvidia-smi shows them."
            raise DeviceError(
                f"{self._name} does not load '{kernel.name}' for {self._architecture}, {kernel.shared} bytes of shared "
                f"memory: {error}. {cure}"
            ) from error
        return Function(function, np.dtype(f"V{kernel.arguments.itemsize}"))


class LaunchQueue:
    """Launches in the order of their coming, each as soon as its kernel is loaded; made with the GPU current.

    The first step of a network asks for tens of kernels, each of which takes a tenth of a second to compile: none
    waits for the one before.

    Attributes
    ----------
    loans : weak set
        What keeps arrays that other streams use as well. While there are any, no launch stays behind.
    """

    def __init__(self) -> None:
        self.loans: WeakSet[Any] = WeakSet()
        self._waiting: deque[tuple[Future[Function], Callable[[Function], object]]] = deque()
        self._lock = threading.RLock()

    def put(self, kernel: Future[Function], launch: Callable[[Function], object]) -> None:
        """Call `launch` with the function of a kernel, after all that was put before."""
        with self._lock:
            self._waiting.append((kernel, launch))
            self._go_on(wait=bool(self.loans))

    def settle(self) -> None:
        """Launch all that waits.

        Raises
        ------
        DeviceError
            A kernel was not compiled, loaded or launched. What came after it would have worked with its results, and
            is dropped.
        """
        with self._lock:
            self._go_on(wait=True)

    def _go_on(self, wait: bool) -> None:
        while self._waiting and (wait or self._waiting[0][0].done()):
            kernel, launch = self._waiting[0]
            try:
                function = kernel.result()  # Ctrl-C while it is compiled: all still waits
                self._waiting.popleft()
                launch(function)
            except Exception:
                self._waiting.clear()
                raise
