"""The CPU backend where Numba is installed: its own kernels for the products and all that is fused with them.

An eager call runs as a program of its own instructions, so that a replay, which runs many of them without returning to
Python in between, gives the same bits. What the kernels do not serve is left to NumPy. Numba is imported with the first
primitive, since that takes as long as importing all of fcdense.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from types import ModuleType
from typing import Any

from fcdense.arena import Array
from fcdense.backends.cpu import CpuBackend
from fcdense.backends.replay import Call, Replay
from fcdense.log import logger

SERVED = (
    "dense",
    "dense_grad_input",
    "dense_grad_weight",
    "act_grad",
    "softmax",
    "softmax_xent",
    "elementwise_loss",
    "map",
    "next_stream",
    "dropout",
    "norm2",
)
"""What the kernels serve eagerly, if the operands suit them. Primitives without rounding have NumPy's bits anyway."""

_importing = threading.Lock()


@functools.cache
def _kernels() -> ModuleType | None:
    # In a thread of its own, which Ctrl-C does not reach: half an import of Numba would stay as it is.
    with _importing, ThreadPoolExecutor(1) as thread:
        try:
            return thread.submit(import_module, "fcdense.backends.table").result()
        except ImportError as error:  # an installation of Numba that does not fit that of NumPy
            logger.warning("the CPU computes with NumPy alone, since Numba cannot be imported: %s", error)
            return None


class NativeBackend(CpuBackend):
    """Compiled kernels over host memory."""

    @property
    def implementation(self) -> str:
        """What serves the primitives."""
        return "NumPy" if _kernels() is None else "Numba"

    def replay(self, calls: Sequence[Call], kept: Sequence[Array] = ()) -> Replay:
        table = _kernels()
        return super().replay(calls, kept) if table is None else table.NativeReplay(self, calls, kept)


def _served(primitive: str) -> Callable[..., None]:
    with_numpy = getattr(CpuBackend, primitive)

    @functools.wraps(with_numpy)
    def method(self: NativeBackend, *args: Any, **kwargs: Any) -> None:
        table = _kernels()
        rows = None if table is None else table.instructions_of(primitive, *args, **kwargs)
        if rows is None:
            with_numpy(self, *args, **kwargs)
        else:
            rows.run()

    return method


for _primitive in SERVED:
    setattr(NativeBackend, _primitive, _served(_primitive))
