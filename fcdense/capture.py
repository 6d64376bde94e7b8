"""`capture`: record the primitive calls of a step once, and run them again without Python in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import update_wrapper
from typing import Any

from fcdense import changes
from fcdense.backends import recording
from fcdense.backends.replay import Call
from fcdense.captured_methods import step_of
from fcdense.errors import ArgumentError, CaptureError
from fcdense.fixed_inputs import FixedInputs
from fcdense.recorded_step import Variant, scopes
from fcdense.scope import runs_later
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
        is given tensors over the fixed buffers (class numbers, and other integers from the host, as int64 if that holds
        them). One that is captured already is captured anew.

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
    evaluation, `requires_grad`, the parameters of optimizers, the precision, `no_grad` and whether parameters have
    gradients are looked at: the step is recorded again for what is new. A gradient that the optimizer takes up as it
    comes into being may never be written: `grad` of such a parameter is None after a replay, unless the step itself
    takes it in hand.
    Results lie in fixed buffers as well: the next call overwrites them. No gradient goes through them from outside:
    `backward` belongs into the step. A captured step that is called by another one is a part of that. It belongs to one
    thread.

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
    if not callable(step) or runs_later(step):
        raise ArgumentError(f"capture needs a function whose code runs when it is called, given {step!r}.")
    return Captured(step._step if isinstance(step, Captured) else step)


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
        self._inputs: FixedInputs | None = None
        self._variants: list[Variant] = []
        self._variant: Variant | None = None
        self._is_running = False

    def __repr__(self) -> str:
        calls = "not recorded yet" if self._variant is None else f"{len(self._variant.calls)} calls"
        return f"<captured {getattr(self, '__name__', self._step)!s}: {calls}>"

    def __get__(self, instance: Any, owner: type | None = None) -> Captured:
        """A captured method: each instance has a step of its own, recorded with its `self`."""
        bind = getattr(self._step, "__get__", None)
        if instance is None or bind is None:
            return self
        return step_of(instance, self, lambda: Captured(bind(instance, owner)))

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
        """The step, with new values of its arguments. Inside of a step that is being captured it is a part of that."""
        if recording.is_recording():
            return self._step(*args, **kwargs)
        if self._inputs is None:
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
            and variant.scopes == scopes()
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
