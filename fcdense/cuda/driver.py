"""The seam between the backend and the GPU: memory, copies, kernels, recorded launches. Everything else is above it.

The backend speaks to a `Driver` alone. `cupy_driver.py` makes one of CuPy; the tests make one that runs the same
kernels on the processor, so that all of the backend's Python is tested without a GPU.

A driver's arrays have what the backend uses of CuPy's: shape, dtype, strides, size, nbytes, ndim, `reshape`,
`transpose`, `T`, `view` and basic indexing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from fcdense.arena import Array
from fcdense.cuda.source import Kernel


class Driver(ABC):
    """One GPU, and one stream on it in which everything happens in order.

    Attributes
    ----------
    name : str
        The device, for messages: "cuda:0".
    architecture : str
        What kernels are compiled for: "sm_90a".
    """

    name: str
    architecture: str

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
    def record(self, calls: Callable[[], None]) -> Callable[[], None]:
        """What repeats the launches that `calls` makes, over the same memory, without its Python; none is made now."""
