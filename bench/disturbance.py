"""Disturbance: how much of the processors others took while something was timed."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")


class Watch:
    """Counts the processor time of other processes from its making on.

    Linux keeps a clock of nanoseconds for every process; where there is no /proc, `cores` is 0. Processes that both
    began and ended in between are missed. What the host of a virtual machine withheld ("steal") counts too.
    """

    def __init__(self) -> None:
        self._start = time.perf_counter_ns()
        self._before, self._stolen = clocks(), stolen_ns()

    def cores(self) -> float:
        """How many processor cores others used on average: 0.25 is a quarter of one core."""
        seconds_ns = time.perf_counter_ns() - self._start
        used = stolen_ns() - self._stolen
        for process, clock in clocks().items():
            if process != os.getpid():
                used += clock - self._before.get(process, 0)
        return used / seconds_ns


def clocks() -> dict[int, int]:
    """Nanoseconds of processor time that each process has used since it began."""
    found: dict[int, int] = {}
    if not PROC.is_dir():
        return found
    for name in os.listdir(PROC):
        if name.isdigit():
            with suppress(OSError):  # it has ended
                # The number of a process's clock, as clock_getcpuclockid(3) computes it.
                found[int(name)] = time.clock_gettime_ns(~int(name) << 3 | 2)
    return found


def stolen_ns() -> int:
    """Nanoseconds that the host of this virtual machine gave to others, over all cores."""
    try:
        first = (PROC / "stat").read_text(encoding="ascii").split("\n", 1)[0].split()
    except OSError:
        return 0
    return int(first[8]) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
