"""Where an optimizer's slots lie: flat buffers beside those of the arenas, and the spans that a step passes over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from fcdense import changes
from fcdense.arena import Allocator, Arena, Array
from fcdense.backends import Device
from fcdense.errors import GraphError
from fcdense.layout import Span
from fcdense.optim.gate import Gate, words
from fcdense.parameter import Parameter, pack
from fcdense.shadow import Shadow

HostArray = np.ndarray[Any, Any]


class Clock:
    """The number of updates that a group of parameters has had; they have always been updated together."""

    __slots__ = ("count",)

    def __init__(self, count: int = 0) -> None:
        self.count = count


class Pass(NamedTuple):
    """One call of the update: a span of an arena in which all parameters decay alike and are of one age.

    `arrays` are the span's parts of the values, the gradients and each slot; `scalars` lie on the device as well.
    """

    on: Device
    arena: Arena
    span: Span
    arrays: tuple[Array, ...]
    decays: bool
    scalars: Array

    @property
    def outputs(self) -> tuple[Array, ...]:
        """What the update writes: all but the gradients."""
        return (self.arrays[0], *self.arrays[2:])

    def copies(self, shadows: Iterable[Shadow]) -> tuple[Array, ...]:
        """The span's part of those of `shadows` that are copies of its arena."""
        return tuple([Arena.cut(s.array, self.span) for s in shadows if s.values is self.arena.values])


@dataclass(frozen=True, eq=False)
class Plan:
    """What a step does when a certain set of parameters has gradients.

    `scalars` are those of the passes, each once: learning rate, scale of the gradients, number of the update (from 1
    on), and the rule's own hyperparameters.
    """

    passes: tuple[Pass, ...]
    gradients: tuple[tuple[Device, Array], ...]
    scalars: tuple[tuple[Device, Array], ...]
    allocators: Mapping[Device, Allocator]
    arenas: tuple[Arena, ...]
    clocks: tuple[Clock, ...]
    parameters: tuple[Parameter, ...]

    @cached_property
    def gate(self) -> Gate:
        """For steps that look at the gradients first."""
        return Gate(self.gradients, self.scalars, self.allocators)

    @property
    def has_constraints(self) -> bool:
        """Whether the host has something to do after a step that was made."""
        return any(parameter.constraint is not None for parameter in self.parameters)

    def updates(self) -> int:
        """How many updates those of the first clock have had, as their device counts them."""
        on, scalars = self.scalars[0]
        return int(on.backend.unrecorded.to_host(scalars)[2]) - 1


class Slots:
    """The slots of some parameters: for each of their arenas, one buffer of the arena's layout per slot.

    Parameters may be built, move to other arenas or get gradients at any time: `settle` brings the slots after them.
    Two optimizers of one parameter have slots of their own. Pickling and deepcopy keep values and ages.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.parameters: list[Parameter] = []
        self.clocks: list[Clock] = []
        self._arenas: list[Arena | None] = []
        self._places: list[tuple[Device, int]] = []
        self._buffers: dict[Arena, tuple[Array, ...]] = {}
        self._plans: dict[bytes, Plan] = {}
        self._scalars: dict[tuple[Clock, Device], Array] = {}

    def add(self, parameters: Iterable[Parameter]) -> None:
        """Take more parameters; those that are known already are left as they are."""
        clock = Clock()
        known = set(self.parameters)
        new = [p for p in dict.fromkeys(parameters) if p not in known]
        self.parameters += new
        self.clocks += [clock] * len(new)
        self._arenas += [None] * len(new)
        self._places += [(p.device, 0) for p in new]
        self._forget_plans()
        if all(p.is_built for p in self.parameters):  # else those still to come would get an arena of their own
            self.settle()

    def settle(self) -> None:
        """Pack parameters that have been built, and bring the slots of those that moved after them."""
        arenas = [p.arena for p in self.parameters]
        if None in arenas:
            pack(self.parameters)
            arenas = [p.arena for p in self.parameters]
        if arenas == self._arenas:
            return
        moved = [i for i, old in enumerate(self._arenas) if old is not None and old is not arenas[i]]
        values = [self.read(i) for i in moved]
        self._buffers = {
            arena: self._buffers.get(arena) or tuple(arena.new_buffer() for _ in self.names)
            for arena in dict.fromkeys(arenas)
            if arena is not None
        }
        self._arenas, self._places = arenas, [(p.device, p.index) for p in self.parameters]
        self._forget_plans()
        for i, arrays in zip(moved, values, strict=True):
            self.write(i, arrays)

    def read(self, i: int) -> list[HostArray]:
        """Copies of the slots of parameter `i`, on the host."""
        return [np.array(self._places[i][0].backend.to_host(view)) for view in self._views(i)]

    def write(self, i: int, arrays: Sequence[HostArray]) -> None:
        """Copy `arrays` into the slots of parameter `i`, cast to its dtype."""
        backend = self._places[i][0].backend
        for view, array in zip(self._views(i), arrays, strict=True):
            backend.write(array, out=view)

    def _views(self, i: int) -> list[Array]:
        arena = self._arenas[i]
        return [] if arena is None else [arena.view(buffer, self._places[i][1]) for buffer in self._buffers[arena]]

    def _forget_plans(self) -> None:
        changes.settings.bump()
        self._plans.clear()
        self._scalars.clear()

    def holds(self, plan: Plan) -> bool:
        """Whether `plan`, made earlier, still speaks of the parameters and slots as they are."""
        self.settle()
        return plan in self._plans.values() and all(p.requires_grad for p in plan.parameters)

    def plan(self, decays: Callable[[Parameter], bool], own: Callable[[], Sequence[float]]) -> Plan:
        """What to pass over now: the spans of all parameters that are trained and have a gradient.

        `decays` and `own` (the rule's hyperparameters) count when the plan is made: at the first step with these
        gradients, and again when parameters were added, have moved, or were restored.

        Raises
        ------
        GraphError
            None has.
        """
        self.settle()
        pattern = bytes([p.has_grad and p.requires_grad for p in self.parameters])
        found = self._plans.get(pattern)
        return self._planned(pattern, decays, own()) if found is None else found

    def _planned(self, pattern: bytes, decays: Callable[[Parameter], bool], own: Sequence[float]) -> Plan:
        chosen = [i for i, has_gradient in enumerate(pattern) if has_gradient]
        if not chosen:
            raise GraphError(
                "step() found no gradient: none of the optimizer's parameters got one since zero_grad(). "
                "Call loss.backward() first; the loss must depend on these parameters, with requires_grad=True."
            )
        self._split_clocks(chosen)
        groups: dict[tuple[Arena, bool, Clock], list[int]] = {}
        in_arena: dict[Arena, list[int]] = {}
        devices: dict[Arena, Device] = {}
        scalars: dict[tuple[Clock, Device], Array] = {}
        for i in chosen:
            arena, (on, index) = self._arenas[i], self._places[i]
            assert arena is not None  # whoever has a gradient is built, and `settle` packed it
            groups.setdefault((arena, decays(self.parameters[i]), self.clocks[i]), []).append(index)
            in_arena.setdefault(arena, []).append(index)
            devices[arena] = on
            scalars[self.clocks[i], on] = self._scalars_of(self.clocks[i], on, arena.allocator, own)
        plan = self._plans[pattern] = Plan(
            passes=tuple(
                Pass(
                    devices[arena],
                    arena,
                    span,
                    tuple(arena.cut(b, span) for b in (arena.values, arena.gradients, *self._buffers[arena])),
                    decayed,
                    scalars[clock, devices[arena]],
                )
                for (arena, decayed, clock), indices in groups.items()
                for span in arena.layout.spans(sorted(indices))
            ),
            gradients=tuple(
                (devices[arena], arena.cut(arena.gradients, span))
                for arena, indices in in_arena.items()
                for span in arena.layout.spans(sorted(indices))
            ),
            scalars=tuple((on, vector) for (_, on), vector in scalars.items()),
            allocators={on: arena.allocator for arena, on in devices.items()},
            arenas=tuple(in_arena),
            clocks=tuple(dict.fromkeys(self.clocks[i] for i in chosen)),
            parameters=tuple(self.parameters[i] for i in chosen),
        )
        return plan

    def _scalars_of(self, clock: Clock, on: Device, allocator: Allocator, own: Sequence[float]) -> Array:
        """Those of the clock's next update on a device: all plans share them, since a step advances the number."""
        found = self._scalars.get((clock, on))
        if found is None:
            # The arena's allocator, and not the device's backend, which may be recording what a step makes anew.
            found = self._scalars[clock, on] = words(allocator, [0.0, 1.0, clock.count + 1.0, *own])
        return found

    def _split_clocks(self, chosen: Sequence[int]) -> None:
        """Give those of a group that are updated without the others a clock of their own, from now on."""
        inside = set(chosen)
        for clock in dict.fromkeys(self.clocks[i] for i in chosen):
            members = {i for i, c in enumerate(self.clocks) if c is clock}
            if members - inside:
                part = Clock(clock.count)
                for i in members & inside:
                    self.clocks[i] = part
                self._forget_plans()

    def restore(self, counts: dict[int, int], slots: dict[int, list[HostArray]]) -> None:
        """Set updates and slots by position of the parameter; what has equal numbers of updates shares a clock."""
        self.settle()
        clocks = {count: Clock(count) for count in counts.values()}
        for i, count in counts.items():
            self.clocks[i] = clocks[count]
            self.write(i, slots[i])
        self._forget_plans()

    def __getstate__(self) -> dict[str, Any]:
        self.settle()
        slots = [self.read(i) for i in range(len(self.parameters))]
        return {"names": self.names, "parameters": self.parameters, "clocks": self.clocks, "slots": slots}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["names"])  # type: ignore[misc]
        self.add(state["parameters"])
        self.clocks = state["clocks"]
        self.settle()
        for i, arrays in enumerate(state["slots"]):
            self.write(i, arrays)
