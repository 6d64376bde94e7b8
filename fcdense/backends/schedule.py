"""Which instructions of a program run side by side, and which follow each other on one thread without a meeting.

A unit is a chain of instructions. In a chain of rows each instruction reads, of what those before it wrote, only the
rows that its own share wrote, so that the shares never wait for each other: all layers of a narrow network, forward and
back, are one unit. Units of one phase do not touch what others of it write; threads meet between phases.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, product

from fcdense.arena import Array
from fcdense.backends.instructions import Instruction
from fcdense.backends.spans import span

SMALL = 0.05
"""What costs less than that, 0.1 us, is not worth a unit of its own."""


class Unit:
    """Instructions that follow each other in every share.

    Attributes
    ----------
    instructions : list of Instruction
    """

    def __init__(self, use: _Use) -> None:
        self.instructions = [use.instruction]
        self._uses = [use]
        self._is_serial = _is_small(use.instruction)

    def append(self, use: _Use) -> None:
        """Make one more instruction after the others."""
        self.instructions.append(use.instruction)
        self._uses.append(use)

    @property
    def cost(self) -> float:
        """The sum of the instructions'."""
        return sum(instruction.cost for instruction in self.instructions)

    @property
    def is_shared(self) -> bool:
        """Whether the work is worth sharing and can be."""
        return self.cost >= 1.0 and all(instruction.is_divisible for instruction in self.instructions)

    def takes(self, later: _Use) -> bool:
        """Whether `later`, which uses what this unit does, can be its next instruction."""
        if self._is_serial:
            return _is_small(later.instruction)
        return all(_is_local(later, earlier) for earlier in self._uses)

    def precedes(self, later: _Use) -> bool:
        """Whether `later` reads or writes what this unit writes, or writes what it reads."""
        return any(True for earlier in self._uses for _ in _conflicts(later, earlier))


class _Use:
    """An instruction, and where the arrays lie that it reads and writes."""

    def __init__(self, instruction: Instruction) -> None:
        self.instruction = instruction
        self.reads = [(array, *span(array)) for array in instruction.reads]
        self.writes = [(array, *span(array)) for array in instruction.writes]


def in_order(instructions: Iterable[Instruction]) -> list[list[Unit]]:
    """Each instruction a phase of its own."""
    return [[Unit(_Use(instruction))] for instruction in instructions]


def phases(instructions: Sequence[Instruction]) -> list[list[Unit]]:
    """Every instruction as early as what it uses is there, the dearest units of a phase first."""
    result: list[list[Unit]] = []
    for use in map(_Use, instructions):
        number = len(result) - 1
        before: list[Unit] = []
        while number >= 0 and not (before := [unit for unit in result[number] if unit.precedes(use)]):
            number -= 1
        if len(before) == 1 and before[0].takes(use):
            before[0].append(use)
            continue
        if number + 1 == len(result):
            result.append([])
        phase = result[number + 1]
        beside = [unit for unit in phase if unit.takes(use)] if _is_small(use.instruction) else []
        if beside:
            beside[0].append(use)
        else:
            phase.append(Unit(use))
    return [sorted(phase, key=lambda unit: -unit.cost) for phase in result]


def _is_small(instruction: Instruction) -> bool:
    return instruction.cost < SMALL and not instruction.rows


def _is_local(later: _Use, earlier: _Use) -> bool:
    """Whether a share of `later` uses nothing that another share of `earlier` writes, nor the other way round."""
    mine, theirs = later.instruction, earlier.instruction
    if not mine.rows or mine.rows != theirs.rows:
        return False
    return all(
        _same_rows(a, b) and not _is_in(a, mine.whole) and not _is_in(b, theirs.whole)
        for a, b in _conflicts(later, earlier)
    )


def _conflicts(later: _Use, earlier: _Use) -> Iterator[tuple[Array, Array]]:
    """Arrays of both that share memory which at least one of them writes."""
    pairs = chain(product(chain(later.reads, later.writes), earlier.writes), product(later.writes, earlier.reads))
    return ((a, b) for (a, a0, a1), (b, b0, b1) in pairs if a0 < b1 and b0 < a1)


def _same_rows(a: Array, b: Array) -> bool:
    """Whether row i of one is row i of the other."""
    return a.ndim > 0 and b.ndim > 0 and a.shape == b.shape and a.strides == b.strides and span(a) == span(b)


def _is_in(array: Array, arrays: Sequence[Array]) -> bool:
    return any(array is other for other in arrays)
