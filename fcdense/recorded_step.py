"""Recordings of a captured step, each for one state of the models and gradients that it meets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fcdense import changes, tape
from fcdense.arena import Array
from fcdense.backends import recording
from fcdense.backends.base import Replayed
from fcdense.backends.replay import Call, Replay
from fcdense.backends.spans import share_memory
from fcdense.errors import CaptureError
from fcdense.fixed_inputs import FixedInputs
from fcdense.fixed_results import fixed, tensors_of
from fcdense.nn.module import Module
from fcdense.nn.snapshot import Snapshot
from fcdense.parameter import Parameter
from fcdense.precision import current_precision
from fcdense.random import drawing_aside


def scopes() -> tuple[Any, ...]:
    """What holds around a call: the precision, and whether operations are put on the tape."""
    return current_precision(), tape.is_recording()


class Attempt:
    """A step recorded once: nothing was computed, and leaves, versions and random numbers are as before.

    Attributes of modules are as the step left them; `restore` puts them back.
    """

    def __init__(self, step: Callable[..., Any], inputs: FixedInputs) -> None:
        self.witness = changes.Witness(Snapshot)
        args, kwargs = inputs.arguments
        with recording.recording() as self.recording, drawing_aside(has_words=False):
            changes.observe(self.witness)
            try:
                if isinstance(owner := getattr(step, "__self__", None), Module):  # a method may look at its attributes
                    self.witness.module(owner)
                self.result = fixed(step(*args, **kwargs))
                self.located = [self.recording.operand(tensor.array) for tensor in tensors_of(self.result)]
            except BaseException:
                self.restore()
                raise
            finally:
                changes.observe(None)
                self.gradients = {leaf: leaf.gradient_state for leaf in self.witness.leaves}
                self.witness.undo()
        self.after = [snapshot.again() for snapshot in self.witness.modules.values()]

    def restore(self) -> None:
        """Put the attributes of modules back."""
        for snapshot in self.witness.modules.values():
            snapshot.restore()

    def check_repeated(self, later: Attempt) -> None:
        """Raise `CaptureError` unless `later` recorded the same."""
        difference = self.recording.difference(later.recording)
        if not difference and [one.form for one in self.located] != [one.form for one in later.located]:
            difference = "the result is another tensor each time"
        if difference:
            raise CaptureError(
                f"Two recordings of the step differ: {difference}. A replay would not know: put what changes into a "
                "tensor that is an argument, a parameter or a buffer."
            )
        for before, after in zip(self.after, later.after, strict=False):
            if changed := before.difference(after, plain=True):
                raise CaptureError(
                    f"The step changes {changed} each time; a replay, which runs no Python, would not. Keep what "
                    "changes in a buffer (register_buffer), or do not capture this step."
                )


class Variant:
    """One recording of a step: its calls, and for which state of models and gradients they are right.

    `repeats` tells whether that is the state which the step leaves.
    """

    def __init__(self, step: Callable[..., Any], inputs: FixedInputs) -> None:
        first = Attempt(step, inputs)
        try:
            second = Attempt(step, inputs)
            first.check_repeated(second)
            self._keep(first, second, inputs)
        except BaseException:
            first.restore()
            raise

    def _keep(self, first: Attempt, second: Attempt, inputs: FixedInputs) -> None:
        """Make a replay of what was recorded twice."""
        made, witness = second.recording, second.witness
        if made.backend is None:
            raise CaptureError("The step computes nothing with tensors, so there is nothing to replay.")
        self.calls: list[Call] = made.finished()
        self.result = second.result
        self.participants: Sequence[Replayed] = tuple(made.participants)
        self.versions = tuple(witness.versions.items())
        self.unchecked = witness.unchecked
        self.settings = self.gradients = -1
        self.scopes = scopes()
        # What the first recording changed of the modules is how the second one found them: both gave these calls.
        self._models = [list(attempt.witness.modules.values()) for attempt in (first, second)]
        parameters = [p for snapshot in self._models[0] for p in snapshot.root.parameters()]
        self._uses = [(tensor, tensor.requires_grad) for tensor in witness.uses]
        used = dict.fromkeys([*witness.leaves, *witness.uses, *parameters])
        self._places = [(tensor, tensor.array) for tensor in used]
        self._found = [(leaf, witness.leaves[leaf]) for leaf in witness.depends]
        # Who adds to a gradient at the next call, or has it in hand, reads it; else the update may be its last use.
        readers = {leaf for leaf in witness.depends if second.gradients[leaf] is True} | witness.reads
        kept = [leaf.gradient_array for leaf in readers if isinstance(leaf, Parameter)]
        kept += [tensor.array for tensor in tensors_of(self.result)]
        self.replay: Replay = made.backend.replay(self.calls, [array for array in kept if array is not None])
        made.backend.release()  # the buffers of eager steps: a replay has its own
        self._inputs = inputs
        targets = [port.tensor.array for port in inputs.ports]
        is_host = all(isinstance(array, np.ndarray) for array in targets)
        self._load = self.replay.loading(targets) if is_host else None
        self._left = [
            (leaf, False if state is True and self._consumes(leaf.gradient_array) else state)
            for leaf, state in second.gradients.items()
        ]
        self.repeats = all(second.gradients[leaf] is state for leaf, state in self._found)

    def _consumes(self, gradient: Array) -> bool:
        return any(share_memory(gradient, array) for array in self.replay.consumed)

    def check_places(self) -> None:
        """Raise `CaptureError` where a parameter is not where it was."""
        if self.settings == changes.settings.number:
            return
        for tensor, array in self._places:
            if tensor.array is not array:
                name = f"Parameter '{tensor.name}'" if isinstance(tensor, Parameter) else f"A tensor {tensor.shape}"
                raise CaptureError(
                    f"{name} has moved since the step was recorded: into the arena of an optimizer that was made "
                    "later, or to another device. Capture the step anew: fc.capture(step)."
                )

    def fits(self) -> bool:
        """Whether models, gradients and scopes are as they were found when this was recorded."""
        if self.scopes != scopes():
            return False
        if self.settings != changes.settings.number:
            now = [snapshot.again() for snapshot in self._models[0]]
            if all(
                any(before.difference(after) for before, after in zip(model, now, strict=True))
                for model in self._models
            ):
                return False
            if any(tensor.requires_grad is not needed for tensor, needed in self._uses):
                return False
            self.settings = changes.settings.number
        return all(leaf.gradient_state is state for leaf, state in self._found)

    def run(self, arrays: Sequence[Any] | None) -> None:
        """Make the calls, with these arrays in the buffers if there are any."""
        if arrays is None:
            self.replay.run()
        elif self._load is None:
            self._inputs.write(arrays)
            self.replay.run()
        else:
            self._load(arrays)

    def ran(self, times: int, is_settled: bool) -> None:
        """The calls were made; where it is not settled, gradients of leaves may have come or gone."""
        for version, count in self.versions:
            version.number += count * times
        if is_settled:
            return
        for leaf, state in self._left:
            leaf.gradient_state = state
        changes.gradients.bump()
        self.gradients = changes.gradients.number if self.repeats else -1
