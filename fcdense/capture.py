"""`capture`: record the primitive calls of a step once, and run them again without Python in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import update_wrapper
from typing import Any

import numpy as np

from fcdense import changes
from fcdense.arena import Array
from fcdense.backends import recording
from fcdense.backends.base import Replayed
from fcdense.backends.replay import Call, Replay
from fcdense.backends.spans import share_memory
from fcdense.errors import ArgumentError, CaptureError
from fcdense.fixed_inputs import FixedInputs
from fcdense.fixed_results import fixed, tensors_of
from fcdense.nn.snapshot import Snapshot
from fcdense.parameter import Parameter
from fcdense.precision import current_precision
from fcdense.random import random_state
from fcdense.tensor import Tensor

MAX_VARIANTS = 8
"""Recordings that one captured step keeps: a training and an evaluation mode, a first and a further gradient, ..."""


def capture(step: Callable[..., Any]) -> Captured:
    """Record one step of training or inference, and replay it: the same bits, without the step's Python.

    With compiled kernels no Python runs between two primitives either, where all of them have one.

    Also a decorator, of methods too: each instance then has a step of its own. The first call runs the step as ever.
    The second one records it, twice and without computing anything: the recordings have to be alike, else something of
    the step comes from Python and changes. From then on every call runs the recorded primitives on its arguments: read
    where they lie, or copied into fixed buffers.

    Parameters
    ----------
    step : callable
        Takes arrays, tensors, numbers, texts and None; returns a tensor, None, or tuples, lists and dicts of them. It
        is given tensors over the fixed buffers (class numbers, and other integers from the host, as int64). One that is
        captured already stays as it is.

    Returns
    -------
    Captured

    Raises
    ------
    CaptureError
        At the first call: an argument is none of these, a parameter or part of a graph, or the same array twice. From
        the second call on: values are read on the host (``.item()``, ``if loss < 1:``), a tensor is made from an
        array of the host, a number differs between the recordings, arguments have other shapes than those before, or
        parameters have moved. A call that raises has changed nothing.

    Notes
    -----
    What changes from call to call has to be in an argument, a parameter or a buffer. Optimizers bring along their
    learning rate and counts, dropout its random numbers. Python's own doings (a counter, a print, a list that grows)
    take place when the step is recorded, not when it is replayed. Attributes of layers, the modes of training and
    evaluation, `requires_grad`, the parameters of optimizers, the precision and whether parameters have gradients are
    looked at: the step is recorded again for what is new. A gradient that the optimizer takes up as it comes into being
    may never be written: `grad` of such a parameter is None after a replay, unless the step itself takes it in hand.
    Results lie in fixed buffers as well: the next call overwrites them. A captured step belongs to one thread.

    The two recordings are compared instead of the numbers of a replay and an eager step: that needs no copy of the
    state, and it tells what differs. A number that Python changes only later keeps its old value. The values of targets
    are looked at in the first call only; later, class numbers out of range make the loss NaN, and what is updated from
    it: ``optimizer.step(check_finite=loss)`` leaves everything as it was.

    Examples
    --------
    >>> @fc.capture
    ... def step(x, y):
    ...     optimizer.zero_grad()
    ...     loss = fc.losses.cross_entropy(model(x), y)
    ...     loss.backward()
    ...     optimizer.step()
    ...     return loss
    >>> for x, y in batches:
    ...     print(step(x, y).item())
    """
    if not callable(step):
        raise ArgumentError(f"capture needs a function, given {step!r}.")
    return step if isinstance(step, Captured) else Captured(step)


class Captured:
    """A step that is recorded at its second call; `fcdense.capture` makes it.

    Attributes
    ----------
    inputs : tuple of Tensor
        The buffers of the array arguments, from the first call on. Whoever writes into them (``inputs[0][:] = x``)
        calls `replay`, or passes them as arguments. Other arguments may be read where they lie: the buffers then keep
        what they hold.
    """

    __name__: str

    def __init__(self, step: Callable[..., Any]) -> None:
        update_wrapper(self, step, updated=())
        self._step = step
        self._key = ""  # under which an instance keeps its own step, where this one is a method
        self._inputs: FixedInputs | None = None
        self._variants: list[Variant] = []
        self._variant: Variant | None = None
        self._is_running = False

    def __repr__(self) -> str:
        calls = "not recorded yet" if self._variant is None else f"{len(self._variant.calls)} calls"
        return f"<captured {getattr(self, '__name__', self._step)!s}: {calls}>"

    def __set_name__(self, owner: type, name: str) -> None:
        self._key = f"{owner.__qualname__}.{name}"

    def __get__(self, instance: Any, owner: type | None = None) -> Captured:
        """A captured method: each instance has a step of its own, recorded with its `self`."""
        bind = getattr(self._step, "__get__", None)
        if instance is None or bind is None or not self._key:
            return self
        steps = vars(instance)
        if self._key not in steps:
            steps[self._key] = Captured(bind(instance, owner))
        made: Captured = steps[self._key]
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is not recorded yet: a recording works on the arrays of the original."""
        return capture, (self._step,)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return tuple(port.tensor for port in self._known_inputs().ports)

    @property
    def is_recorded(self) -> bool:
        """Whether there is a recording."""
        return self._variant is not None

    @property
    def unchecked(self) -> bool:
        """Whether the recording has a loss that could not look at the values of its target."""
        return self._variant is not None and self._variant.unchecked

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The step, with new values of its arguments."""
        if self._inputs is None:
            if recording.is_recording():
                raise CaptureError("A captured step was called inside of a step that is being captured.")
            inputs = FixedInputs(args, kwargs)
            values, named = inputs.arguments
            result = self._step(*values, **named)
            self._inputs = inputs
            return result
        return self._run(self._inputs.accept(args, kwargs))

    def replay(self) -> Any:
        """The step with what lies in its buffers."""
        return self._run(None)

    def _run(self, arrays: Sequence[Any] | None) -> Any:
        """The step with these arrays in its buffers."""
        if self._is_running:
            raise CaptureError(
                "The captured step is running in another thread; its buffers belong to one. Capture one for each."
            )
        variant, is_settled = self.current()
        try:
            for participant in variant.participants:
                participant.before_replay()
        except CaptureError:  # an optimizer that was given other parameters, say
            is_settled = False
            variant = self._renewed(variant)
        runs = variant.replay.runs
        self._is_running = True
        try:
            variant.run(arrays)
        except BaseException:  # Ctrl-C is heard after compiled calls
            if variant.replay.runs > runs:
                self._count(variant, is_settled)
            raise
        finally:
            self._is_running = False
        self._count(variant, is_settled)
        return variant.result

    @staticmethod
    def _count(variant: Variant, is_settled: bool) -> None:
        """What the host has to know of a step that was made."""
        variant.ran(1, is_settled)
        for participant in variant.participants:
            participant.after_replay()

    def current(self) -> tuple[Variant, bool]:
        """The recording for this moment, and whether it ran last and nothing was set since."""
        variant = self._variant
        if (
            variant is not None
            and variant.settings == changes.settings.number
            and variant.gradients == changes.gradients.number
            and variant.precision == current_precision()
        ):
            return variant, True
        return self._fitting(), False

    def record(self, *args: Any, **kwargs: Any) -> None:
        """Record the step for such arguments without a call of it, where models and optimizers are built already."""
        if self._inputs is None:
            self._inputs = FixedInputs(args, kwargs)
        self._fitting()

    def look_again(self) -> None:
        """Compare all settings at the next replay, also where none is known to have been changed."""
        for variant in self._variants:
            variant.settings = -1

    def calls(self) -> list[tuple[Call, str]]:
        """Each recorded call, and the implementation that serves it with the reason."""
        variant = self._fitting()
        return list(zip(variant.calls, variant.replay.describe(), strict=True))

    def _known_inputs(self) -> FixedInputs:
        if self._inputs is None:
            raise CaptureError("Call the captured step once with its arguments; that tells it their shapes.")
        return self._inputs

    def _renewed(self, variant: Variant) -> Variant:
        """A new recording in the place of one that no longer fits; its participants are ready."""
        self._variants.remove(variant)
        variant = self._fitting()
        for participant in variant.participants:
            participant.before_replay()
        return variant

    def _fitting(self) -> Variant:
        """The recording for the settings and gradients of this moment, ready to run."""
        if recording.is_recording():
            raise CaptureError("A captured step was replayed inside of a step that is being captured.")
        for variant in self._variants:
            variant.check_places()
        found = next((variant for variant in self._variants if variant.fits()), None)
        if found is None:
            found = Variant(self._step, self._known_inputs())
            self._variants = [found, *self._variants[: MAX_VARIANTS - 1]]
        self._variant = found
        return found


class Attempt:
    """A step recorded once: nothing was computed, and leaves, versions and random numbers are as before.

    Attributes of modules are as the step left them; `restore` puts them back.
    """

    def __init__(self, step: Callable[..., Any], inputs: FixedInputs) -> None:
        self.witness = changes.Witness(Snapshot)
        args, kwargs = inputs.arguments
        generator = random_state().generator.bit_generator
        drawn = generator.state
        with recording.recording() as self.recording:
            changes.observe(self.witness)
            try:
                self.result = fixed(step(*args, **kwargs))
                self.located = [self.recording.operand(tensor.array) for tensor in tensors_of(self.result)]
            except BaseException:
                self.restore()
                raise
            finally:
                changes.observe(None)
                generator.state = drawn
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
            made, witness = second.recording, second.witness
            if made.backend is None:
                raise CaptureError("The step computes nothing with tensors, so there is nothing to replay.")
        except BaseException:
            first.restore()
            raise
        self.calls: list[Call] = made.finished()
        self.result = second.result
        self.participants: Sequence[Replayed] = tuple(made.participants)
        self.versions = tuple(witness.versions.items())
        self.unchecked = witness.unchecked
        self.settings = self.gradients = -1
        self.precision = current_precision()
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
        made.backend.workspace.release()  # the buffers of eager steps: a replay has its own
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
        """Whether models, gradients and precision are as they were found when this was recorded."""
        if self.precision != current_precision():
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
