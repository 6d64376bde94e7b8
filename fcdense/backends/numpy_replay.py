"""Replays without compiled kernels: the NumPy calls of a step in one list, arguments and temporary arrays fixed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from fcdense import emit
from fcdense.arena import Array
from fcdense.backends.cpu import CpuBackend
from fcdense.backends.replay import Call, Replay
from fcdense.backends.temporaries import Temporaries
from fcdense.program import Program


class Notes(CpuBackend):
    """Notes which calls the CPU backend makes, instead of making them.

    Attributes
    ----------
    calls : list of callable
        They take no arguments, and one thread at a time may make them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], Any]] = []
        self._temporaries = Temporaries(self)
        self._scratch = emit.Scratch()

    @property
    def workspace(self) -> Any:
        return self._temporaries

    def note(self, call: Call) -> None:
        """Note those of one primitive."""
        getattr(self, call.primitive)(**call.arguments)
        self._temporaries.take_back()

    def do(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Note one."""
        self.calls.append(partial(function, *args, **kwargs))

    def _run(
        self,
        program: Program,
        inputs: Sequence[Array],
        scalars: Sequence[float] | Array,
        outs: Sequence[Array],
        when: Array | None = None,
    ) -> None:
        run = emit.bind(program, inputs, outs, self._scratch)
        bound = partial(_with, run, scalars) if isinstance(scalars, np.ndarray) else partial(run, *scalars)
        self.calls.append(bound if when is None else partial(_when, when, bound))


def _with(run: Callable[..., None], scalars: Array) -> None:
    run(*scalars.tolist())


def _when(flag: Array, run: Callable[[], None]) -> None:
    if flag:
        run()


class NumpyReplay(Replay):
    """Recorded primitives as the NumPy calls that they make: no checks, shapes or allocations are left.

    Floating-point warnings are not given.
    """

    def __init__(self, calls: Sequence[Call], implementation: str) -> None:
        notes = Notes()
        for call in calls:
            notes.note(call)
        self._calls = notes.calls
        self._served = [implementation] * len(calls)

    def run(self) -> None:
        with np.errstate(all="ignore"):
            for call in self._calls:
                call()
        self._made += 1

    def describe(self) -> list[str]:
        return self._served
