"""Between host and device, and between the driver's stream and a caller's: who may read and write what, and when."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import cupy
import numpy as np

from fcdense.arena import Array


def order(first: Any, then: Any) -> None:
    """Let what stream `then` is given from now on come after all that stream `first` was given."""
    then.wait_event(first.record(cupy.cuda.Event(disable_timing=True)))


class Loan:
    """Keeps an array while another stream than its own uses it. At the end its own stream waits for that one.

    So neither reads or writes it before the other is done, and its memory goes to nobody else until then.
    """

    def __init__(self, array: Array, device: Any, own: Any, user: Any) -> None:
        self._array, self._device, self._own, self._user = array, device, own, user
        with device:
            order(own, user)

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not is_finalizing():
            with suppress(RuntimeError), self._device:  # a GPU that has failed orders nothing any more
                order(self._user, self._own)


class Staging:
    """Pinned host memory between the arrays of callers and the device.

    A copy from a caller's own memory would wait for the stream or read it later, as CUDA likes, and later always if it
    is pinned (CUDA Driver API, API synchronization behavior).
    """

    PIECE = 4 << 20
    AHEAD = 64 << 20

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pieces: deque[tuple[Any, Any, int]] = deque()
        self._bytes = 0

    def send(self, values: np.ndarray[Any, Any], target: Any, stream: Any) -> None:
        """Copy an array of the host to a place on the device; waits only with `AHEAD` bytes on the way."""
        source = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        with self._lock:
            for start in range(0, source.size, self.PIECE):
                piece = source[start : start + self.PIECE]
                self._reclaim(piece.size)
                memory = cupy.cuda.alloc_pinned_memory(piece.size)
                np.frombuffer(memory, np.uint8, piece.size)[:] = piece
                (target + start).copy_from_host_async(memory.ptr, piece.size, stream)
                event = stream.record(cupy.cuda.Event(disable_timing=True))
                self._pieces.append((event, memory, piece.size))
                self._bytes += piece.size

    def _reclaim(self, wanted: int) -> None:
        while self._pieces and (self._bytes + wanted > self.AHEAD or self._pieces[0][0].done):
            event, _, size = self._pieces.popleft()
            event.synchronize()
            self._bytes -= size
