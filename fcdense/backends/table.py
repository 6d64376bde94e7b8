"""Tables of instructions, as the threads walk through them, and replays made of such tables."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from fcdense.arena import Array
from fcdense.backends import primitives
from fcdense.backends.cpu import CpuBackend
from fcdense.backends.fusion import consume_gradients
from fcdense.backends.instructions import Instruction
from fcdense.backends.replay import Call, Replay
from fcdense.kernels.numba.pool import address, available_threads, pool


class Table:
    """Instructions in the form that `fcdense.kernels.numba.pool` runs."""

    def __init__(self, rows: Sequence[Instruction]) -> None:
        self._rows = rows
        words: list[int] = []
        before = 0
        for row in rows:
            shares = available_threads() if row.is_shared else 1
            words += (row.kernel, address(row.arguments), shares, before)
            before += shares
        words += (0, 0, 0, before) * 2
        self._words = np.array(words, np.int64)
        self._program = address(self._words), len(rows), available_threads() if any(r.is_shared for r in rows) else 1

    def run(self) -> None:
        """Run them, in order."""
        pool().run(*self._program)


def instructions_of(primitive: str, *args: Any, **kwargs: Any) -> Table | None:
    """The table of one eager call; None where NumPy has to serve it."""
    rows = getattr(primitives, primitive)(*args, **kwargs)
    return None if rows is None else Table(rows)


class NativeReplay(Replay):
    """Calls as tables of instructions; where NumPy has to serve one, Python is in between.

    Attributes
    ----------
    consumed : list of Array
        Gradients that the step wrote and the replay does not.
    """

    def __init__(self, backend: CpuBackend, calls: Sequence[Call], kept: Sequence[Array] = ()) -> None:
        served: dict[Call, str] = {}
        rewritten, self.consumed = consume_gradients(calls, kept)
        steps = [self._step(backend, call, served) for call in rewritten]
        self._served = [served.get(call, "Numba: weight gradient and update in one pass") for call in calls]
        self._runs: list[Callable[[], None]] = []
        for is_native, group in groupby(steps, lambda step: isinstance(step, list)):
            if is_native:
                self._runs.append(Table([row for rows in group for row in rows]).run)
            else:
                self._runs += group

    @staticmethod
    def _step(backend: CpuBackend, call: Call, served: dict[Call, str]) -> Any:
        """The instructions of a call, or else the function that makes it."""
        build = getattr(primitives, call.primitive, None)
        rows = None if build is None else build(**call.arguments)
        served[call] = "NumPy: no compiled kernel for these operands" if rows is None else "Numba"
        if rows is not None:
            return rows
        return functools.partial(getattr(CpuBackend, call.primitive), backend, **call.arguments)

    def run(self) -> None:
        for run in self._runs:
            run()

    def describe(self) -> list[str]:
        return self._served
