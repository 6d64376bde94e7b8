"""Tables of instructions, as the threads walk through them, and replays made of such tables."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from fcdense.arena import Array
from fcdense.backends import primitives, rounds
from fcdense.backends.arguments import Argument
from fcdense.backends.cpu import CpuBackend
from fcdense.backends.fusion import consume_gradients, join_passes
from fcdense.backends.replay import Call, Feed, Keep, Replay
from fcdense.backends.schedule import Unit, in_order, phases
from fcdense.kernels.numba.pool import Program, address, available_threads, pool

JOINED = ("Numba: weight gradient and update in one pass", "Numba: input gradient and update in one pass")


class Table:
    """Units of instructions in the form that `fcdense.kernels.numba.pool` runs."""

    def __init__(self, phases: Sequence[Sequence[Unit]]) -> None:
        self._phases = phases
        self._steps: list[Array] = []
        words: list[tuple[int, ...]] = []
        shares = [[available_threads() if unit.is_shared else 1 for unit in phase] for phase in phases]
        ends = np.cumsum([sum(phase) for phase in shares]).tolist()
        first = 0
        for number, phase in enumerate(phases):
            for unit, count in zip(phase, shares[number], strict=True):
                steps = np.array([(i.kernel, address(i.arguments)) for i in unit.instructions], np.int64)
                self._steps.append(steps)
                words.append(
                    (address(steps), len(steps), count, first, ends[number], ends[min(number + 1, len(ends) - 1)])
                )
                first += count
        self._units = np.array([*words, (0, 0, 0, first, 0, 0)], np.int64)
        self._threads = max(count for phase in shares for count in phase)
        self._program = Program(self._units, self._threads)

    def run(self) -> None:
        """Run them, in order."""
        pool().run(self._program)

    def run_rounds(self, rounds: int, go_on: Array | None = None) -> int:
        """Run them so often, or until `go_on` holds 0.0; how often it was."""
        return pool().run(Program(self._units, self._threads, rounds, go_on))


def instructions_of(primitive: str, *args: Any, **kwargs: Any) -> Table | None:
    """The table of one eager call; None where NumPy has to serve it."""
    rows = getattr(primitives, primitive)(*args, **kwargs)
    return None if rows is None else Table(in_order(rows))


class NativeReplay(Replay):
    """Calls as tables of instructions; where NumPy has to serve one, Python is in between.

    Attributes
    ----------
    consumed : list of Array
        Gradients that the step wrote and the replay does not.
    """

    def __init__(self, backend: CpuBackend, calls: Sequence[Call], kept: Sequence[Array] = ()) -> None:
        served: dict[Call, str] = {}
        self._kept = kept
        self._arguments: list[Argument] = []
        rewritten, self.consumed = consume_gradients(calls, kept, self._is_served)
        steps = [self._step(backend, call, served) for call in join_passes(rewritten, self._is_served)]
        self._served = [served.get(call) or JOINED[call.primitive == "dense_grad_input"] for call in calls]
        self._number = np.zeros(1, np.int64)
        steps.append(rounds.next_round(self._number))
        self._runs: list[Callable[[], None]] = []
        for native, group in groupby(steps, lambda step: isinstance(step, list)):
            if native:
                self._runs.append(Table(phases([row for rows in group for row in rows])).run)
            else:
                self._runs += group
        is_native = all(isinstance(step, list) for step in steps)
        self._rows = [row for rows in steps for row in rows] if is_native else None

    @property
    def runs(self) -> int:
        return int(self._number[0])

    @staticmethod
    def _is_served(call: Call) -> bool:
        return getattr(primitives, call.primitive)(**call.arguments) is not None

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
        for argument in self._arguments:
            argument.read(None)
        for run in self._runs:
            run()

    def loading(self, targets: Sequence[Array]) -> Callable[[Sequence[Array | None]], None] | None:
        if self._rows is None:
            return None
        self._arguments = [Argument(target, self._rows, self._kept) for target in targets]

        def run(arrays: Sequence[Array | None]) -> None:
            for argument, array in zip(self._arguments, arrays, strict=True):
                argument.read(array)
            self._runs[0]()

        return run

    def rounds(
        self, feeds: Sequence[Feed], keeps: Sequence[Keep], go_on: Array | None = None
    ) -> Callable[[int], int] | None:
        number = np.zeros(1, np.int64)
        before = [rounds.take_rows(feed, number) for feed in feeds]
        after = [rounds.keep(result, number) for result in keeps]
        parts = [*before, self._rows, *after, rounds.next_round(number)]
        if None in parts:
            return super().rounds(feeds, keeps, go_on)
        table = Table(phases([row for part in parts for row in part or ()]))

        def run(count: int) -> int:
            for argument in self._arguments:
                argument.read(None)
            number[0] = 0
            return table.run_rounds(count, go_on)

        return run

    def describe(self) -> list[str]:
        return self._served
