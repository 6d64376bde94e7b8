"""The seam between the backend and the GPU: memory, copies, kernels, recorded launches. Everything else is above it.

The backend speaks to a `Driver` alone. `cupy_driver.py` makes one of CuPy; the tests make one that runs the same
kernels on the processor, so that all of the backend's Python is tested without a GPU.

A driver's arrays have what the backend uses of CuPy's: shape, dtype, strides, size, nbytes, ndim, flags, `reshape`,
`transpose`, `T`, `view` and basic indexing. Whatever is assigned to a part of one is written in the order of launches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fcdense.arena import Array
from fcdense.cuda.cublaslt import CublasLt
from fcdense.cuda.source import Kernel, next_stream
from fcdense.errors import DeviceError

LANES = 2
"""Sequences of launches that may run side by side in what is recorded."""


class Driver(ABC):
    """One GPU, and one stream on it in which everything happens in order, but for what is recorded on several lanes.

    Attributes
    ----------
    name : str
        The device, for messages: "cuda:0".
    architecture : str
        What kernels are compiled for: "sm_90a".
    gpu : str
        What its maker calls it: "NVIDIA H100 80GB HBM3".
    library : CublasLt or None
        cuBLASLt on this GPU, where it is installed.
    no_library : str
        Why there is none.
    """

    name: str
    architecture: str
    gpu: str
    library: CublasLt | None = None
    no_library: str = ""

    @abstractmethod
    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array of undefined contents at a multiple of 256 bytes.

        Raises
        ------
        OutOfMemory
            The device cannot hold it; the message has the bytes asked for and those free.
        """

    @abstractmethod
    def view(self, base: Array, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any) -> Array:
        """An array in the memory of `base`, from `offset` bytes on."""

    @abstractmethod
    def upload(self, array: np.ndarray[Any, Any]) -> Array:
        """The device's copy of a host array."""

    @abstractmethod
    def download(self, array: Array) -> np.ndarray[Any, Any]:
        """The host's copy of a device array, once all that was launched before is done."""

    @abstractmethod
    def address(self, array: Array) -> int:
        """Where the first element lies in the device's memory."""

    @abstractmethod
    def launch(self, kernel: Kernel, grid: tuple[int, int, int], arguments: np.ndarray[Any, Any]) -> None:
        """Run a kernel after all that was launched before. `arguments` is one element of `kernel.arguments`."""

    @abstractmethod
    def enqueue(self, launch: Callable[[int], object]) -> None:
        """Let `launch(stream)` launch something of its own after all that was launched before, or record it."""

    @abstractmethod
    def timed(self, calls: Callable[[], object]) -> float:
        """Seconds from the first to the last of the launches that `calls` makes, on the device."""

    @abstractmethod
    def record(self, calls: Callable[[], None]) -> Callable[[], None]:
        """What repeats the launches that `calls` makes, over the same memory, without its Python; none is made now.

        Arrays that `calls` makes live as long as the recording; those it was given are the caller's to keep. The
        launches come one after another, unless `calls` begins parts.
        """

    @abstractmethod
    def begin_part(self, lane: int, after: Sequence[int]) -> None:
        """What is recorded from here on is one more part, on one of the lanes.

        It comes after the parts that were begun before on this lane, and after those with the numbers `after`, counted
        from 0 in the order in which they were begun. It may run beside all others.
        """

    def adopt(self, array: Array) -> Array:
        """A caller's array as one of the driver's, in the same memory.

        Launches come after what the caller's current stream was given before, and what that stream is given once the
        adopted array and all views of it are gone comes after the launches.

        Raises
        ------
        DeviceError
            It lies on another device.
        """
        return array

    def hand_over(self, array: Array) -> Array:
        """An array of the driver as one for the caller's current stream, in the same memory: `adopt` turned around."""
        return array

    def check(self) -> None:
        """Compile and launch a kernel of one thread, and read what it wrote.

        Raises
        ------
        DeviceError
            It does not compile or run, or wrote something else.
        """
        state = np.array([2**63 + 7, 41], np.uint64)
        given, taken = self.upload(state), self.empty(state.shape, state.dtype)
        kernel = next_stream()
        arguments = np.zeros(1, kernel.arguments)
        arguments["state"], arguments["out"] = self.address(given), self.address(taken)
        self.launch(kernel, (1, 1, 1), arguments)
        found = [*self.download(taken).tolist(), *self.download(given).tolist()]
        if found != [2**63 + 7, 41, 2**63 + 7, 42]:
            raise DeviceError(f"{self.name} computes wrongly: '{kernel.name}' of {state.tolist()} gave {found}.")
