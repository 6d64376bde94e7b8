"""Which instructions of a program run side by side, and which follow each other on one thread without a meeting.

A unit is a chain of instructions. In a chain of rows each instruction reads, of what those before it wrote, only the
rows that its own share wrote, so that the shares never wait for each other: all layers of a narrow network, forward and
back, are one unit. Units of one phase do not touch what others of it write; threads meet between phases.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fcdense.arena import Array
from fcdense.backends.instructions import Instruction
from fcdense.backends.spans import overlap, span

SMALL = 0.05
"""What costs less than that, 0.1 us, is not worth a unit of its own."""


class Unit:
    """Instructions that follow each other in every share.

    Attributes
    ----------
    instructions : list of Instruction
    """

    def __init__(self, instruction: Instruction) -> None:
        self.instructions = [instruction]
        self._is_serial = _is_small(instruction)

    @property
    def cost(self) -> float:
        """The sum of the instructions'."""
        return sum(instruction.cost for instruction in self.instructions)

    @property
    def is_shared(self) -> bool:
        """Whether the work is worth sharing and can be."""
        return self.cost >= 1.0 and all(instruction.is_divisible for instruction in self.instructions)

    def takes(self, later: Instruction) -> bool:
        """Whether `later`, which uses what this unit does, can be its next instruction."""
        if self._is_serial:
            return _is_small(later)
        return all(_is_local(later, earlier) for earlier in self.instructions)

    def precedes(self, later: Instruction) -> bool:
        """Whether `later` reads or writes what this unit writes, or writes what it reads."""
        return any(_conflicts(later, earlier) for earlier in self.instructions)


def in_order(instructions: Iterable[Instruction]) -> list[list[Unit]]:
    """Each instruction a phase of its own."""
    return [[Unit(instruction)] for instruction in instructions]


def phases(instructions: Sequence[Instruction]) -> list[list[Unit]]:
    """Every instruction as early as what it uses is there, the dearest units of a phase first."""
    result: list[list[Unit]] = []
    for instruction in instructions:
        number = len(result) - 1
        before: list[Unit] = []
        while number >= 0 and not (before := [unit for unit in result[number] if unit.precedes(instruction)]):
            number -= 1
        if len(before) == 1 and before[0].takes(instruction):
            before[0].instructions.append(instruction)
            continue
        if number + 1 == len(result):
            result.append([])
        phase = result[number + 1]
        beside = [unit for unit in phase if unit.takes(instruction)] if _is_small(instruction) else []
        if beside:
            beside[0].instructions.append(instruction)
        else:
            phase.append(Unit(instruction))
    return [sorted(phase, key=lambda unit: -unit.cost) for phase in result]


def _is_small(instruction: Instruction) -> bool:
    return instruction.cost < SMALL and not instruction.rows


def _is_local(later: Instruction, earlier: Instruction) -> bool:
    """Whether a share of `later` uses nothing that another share of `earlier` writes, nor the other way round."""
    if not later.rows or later.rows != earlier.rows:
        return False
    return all(
        _same_rows(a, b) and not _is_in(a, later.whole) and not _is_in(b, earlier.whole)
        for a, b in _conflicts(later, earlier)
    )


def _conflicts(later: Instruction, earlier: Instruction) -> list[tuple[Array, Array]]:
    """Arrays of both that share memory which at least one of them writes."""
    pairs = [(a, b) for a in (*later.reads, *later.writes) for b in earlier.writes]
    pairs += [(a, b) for a in later.writes for b in earlier.reads]
    return [(a, b) for a, b in pairs if overlap(a, b)]


def _same_rows(a: Array, b: Array) -> bool:
    """Whether row i of one is row i of the other."""
    return a.ndim > 0 and b.ndim > 0 and a.shape == b.shape and a.strides == b.strides and span(a) == span(b)


def _is_in(array: Array, arrays: Sequence[Array]) -> bool:
    return any(array is other for other in arrays)
