"""`Optimizer`: what all update rules share - weight decay, clipping, skipping, schedules, state."""

from __future__ import annotations

import inspect
import math
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from types import SimpleNamespace
from typing import Any, ClassVar

from fcdense.backends import Backend
from fcdense.errors import ArgumentError, CaptureError, FcdenseError, FormatError, ShapeError, unknown_name
from fcdense.optim import schedules, state
from fcdense.optim.counts import Counts, told
from fcdense.optim.loss_scale import LossScale
from fcdense.optim.ranges import FLAG, LIMIT, NOT_NEGATIVE, Range, checked
from fcdense.optim.slots import Slots
from fcdense.optim.update import Update
from fcdense.parameter import Parameter
from fcdense.program import Program, trace
from fcdense.tensor import Tensor

NEXT = trace(lambda number: number + 1.0, 1, name="next_update")

Rate = float | Callable[[int], float]
Exclude = str | Iterable[str] | Callable[[Parameter], bool] | None


class Optimizer(ABC):
    """Base of the optimizers. An update rule is a class with the names of its slots, its hyperparameters, and `rule`.

    The rule is traced, and becomes one pass over parameters, gradients and slots together, in place, on every backend::

        class Lion(Optimizer):
            slots = ("momentum",)
            hyper = {"beta1": SHARE, "beta2": SHARE}

            def rule(self, w, g, slots, s):
                (m,) = slots
                return w - s.learning_rate * np.sign(s.beta1 * m + (1 - s.beta1) * g), s.beta2 * m + (1 - s.beta2) * g

    Parameters
    ----------
    parameters : iterable of Parameter
        ``model.parameters()``, also of a model whose sizes are not known yet. What occurs twice is taken once.
    learning_rate : float or callable
        Finite and >= 0, or a schedule: step -> rate, the first step being 0.
    weight_decay : float
        λ >= 0. The gradient becomes g + λ w; in `AdamW` the weights are multiplied by 1 - learning_rate λ instead.
    exclude : str, iterable of str, or callable, optional
        Which parameters do not decay. By default those without `Parameter.decay`: biases, and scales of norms. Patterns
        (`fnmatch`) are held against the name and each of its parts ("bias" matches "layers.0.bias"), a callable is
        asked ``exclude(parameter)``. ``exclude=()`` lets all parameters decay, as in PyTorch.
    clip_norm : float, optional
        The gradients are multiplied by min(1, clip_norm / (n + 1e-6)), n the Euclidean norm of all of them together, as
        in PyTorch (Pascanu, Mikolov & Bengio 2013, algorithm 1, without the 1e-6). It costs a pass that reads them.
    **hyper : float
        The rule's own.

    Attributes
    ----------
    steps, skipped_steps : int
        Steps done, and steps left out because of a gradient that is not finite.
    gradient_norm : float or None
        n of the last step, before clipping; None where the step had no need of it.
    checked_loss : float
        The loss that the last step was to look at (``check_finite=loss``).

    Raises
    ------
    ArgumentError
        No parameters, something else than parameters, or a value out of range.
    """

    slots: tuple[str, ...] = ()
    hyper: ClassVar[Mapping[str, Range]] = {}
    decoupled: ClassVar[bool] = False
    """Whether weight decay acts on the weights instead of the gradient."""

    steps: int = told("steps")
    skipped_steps: int = told("skipped_steps")
    gradient_norm: float | None = told("gradient_norm")
    checked_loss: float = told("checked_loss")

    def __init__(
        self,
        parameters: Iterable[Parameter],
        learning_rate: Rate,
        *,
        weight_decay: float = 0.0,
        exclude: Exclude = None,
        clip_norm: float | None = None,
        **hyper: float,
    ) -> None:
        self._refuse_options(key for key in hyper if key not in self.hyper)
        self.learning_rate = learning_rate
        self._hyper = self._checked({**hyper, "weight_decay": weight_decay, "clip_norm": clip_norm})
        if exclude is not None and not callable(exclude):
            exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
        self._exclude = exclude
        self._counts = Counts()
        self._programs: dict[tuple[bool, bool, int], Program] = {}
        self._recorder: weakref.ref[Backend] | None = None
        self._memory = Slots(self.slots)
        self.add_parameters(parameters)

    @classmethod
    def options(cls) -> list[str]:
        """The keywords that the constructor takes."""
        owners: list[Any] = [owner for owner in cls.__mro__[:-1] if "__init__" in vars(owner)]
        found = set(cls.hyper) - set(getattr(owners[0], "hyper", ()))  # of a class that adds them without an __init__
        for owner in owners:
            _, *given = inspect.signature(owner).parameters.values()  # without the parameters to train
            found.update(one.name for one in given if one.kind is not one.VAR_KEYWORD)
            if all(one.kind is not one.VAR_KEYWORD for one in given):
                break
        return sorted(found)

    def _refuse_options(self, keys: Iterable[str]) -> None:
        for key in keys:
            unknown_name(f"option of {type(self).__name__}", key, self.options())

    @abstractmethod
    def rule(self, w: Any, g: Any, slots: Sequence[Any], s: Any) -> tuple[Any, ...]:
        """The new weights and slots, element by element; traced once.

        `g` is the gradient, scaled, clipped and decayed. `s` has `learning_rate`, `step` (1 for the first update of a
        parameter) and the hyperparameters; those that are flags are Python bools. Zeros must stay zeros, since
        gaps between parameters are passed over too.
        """

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """What is trained."""
        return tuple(self._memory.parameters)

    @property
    def hyperparameters(self) -> dict[str, float | None]:
        """Values of the rule's hyperparameters, `weight_decay` and `clip_norm`."""
        return dict(self._hyper)

    @property
    def learning_rate(self) -> float:
        """The rate of the next step. Set it to a number or a schedule at any time."""
        schedule = self._schedule
        return schedule.value if isinstance(schedule, schedules.Constant) else schedule(self.steps)

    @learning_rate.setter
    def learning_rate(self, value: Rate) -> None:
        self._schedule = schedules.get(value)

    def rates(self, count: int) -> list[float]:
        """The rates of the next `count` steps; only the first one where the schedule is a function of your own."""
        schedule, first = self._schedule, self.steps
        if isinstance(schedule, schedules.Constant):
            return [schedule.value] * count
        try:
            schedule.to_data()
        except ArgumentError:  # code, which may look at more than the step
            count = 1
        return [schedule(step) for step in range(first, first + count)]

    def __repr__(self) -> str:
        schedule = self._schedule
        rate = schedule.value if isinstance(schedule, schedules.Constant) else schedule
        values = {"learning_rate": rate} | {key: value for key, value in self._hyper.items() if value is not None}
        listed = ", ".join(f"{key}={value!r}" for key, value in values.items())
        return f"{type(self).__name__}({listed}; {len(self._memory.parameters)} parameters, {self.steps} steps)"

    def add_parameters(self, parameters: Iterable[Parameter]) -> None:
        """Train these too, for instance a layer that was added later; their slots begin at 0, their steps at 1."""
        given = list(parameters) if isinstance(parameters, Iterable) else [parameters]
        for position, parameter in enumerate(given):
            if not isinstance(parameter, Parameter):
                raise ArgumentError(
                    f"{type(self).__name__}: item {position} is {type(parameter).__name__}, expected a Parameter. "
                    "Pass model.parameters(), or a list of parameters."
                )
        if not given:
            raise ArgumentError(
                f"{type(self).__name__} got no parameters. Pass model.parameters() of a model with layers."
            )
        self._memory.add(given)

    def zero_grad(self) -> None:
        """Forget all gradients: the next `backward` overwrites them, else it adds to them."""
        for parameter in self._memory.parameters:
            parameter.zero_grad()

    def step(
        self,
        *,
        gradient_scale: float | None = None,
        check_finite: bool | Tensor = False,
        loss_scale: LossScale | None = None,
    ) -> bool:
        """Update every parameter that has a gradient and `requires_grad`; others stay as they are, decay included.

        Constraints of the updated parameters are applied afterwards.

        Inside of a captured step the update is recorded, not made, and True is returned. Each replay then takes the
        learning rate of its own step, advances `steps` or `skipped_steps`, and sets `gradient_norm`; `gradient_scale`
        stays what it was. An optimizer steps once in a captured step. A GPU is asked what a replay did when you are, or
        when a schedule needs `steps`: who asks after each replay waits for each.

        Parameters
        ----------
        gradient_scale : float, optional
            Multiplies the gradients: 1/n after n calls of `backward` takes their mean instead of their sum.
        check_finite : bool or Tensor
            Look for NaN and infinities in the gradients, at the cost of a pass that reads them. A tensor of one
            element, such as the loss, has to be finite as well. Always done with `clip_norm` or `loss_scale`; otherwise
            they reach the weights.
        loss_scale : LossScale, optional
            By which the gradients are divided, and which learns whether they are finite.

        Returns
        -------
        bool
            False if a gradient (or the loss given) was not finite: nothing was changed but `skipped_steps` and
            `gradient_norm`.

        Raises
        ------
        GraphError
            No parameter has a gradient.
        ShapeError
            `check_finite` is a tensor of several elements.
        """
        if gradient_scale is not None and not math.isfinite(gradient_scale):
            raise ArgumentError(f"gradient_scale is {gradient_scale!r}, expected a finite number.")
        loss = check_finite if isinstance(check_finite, Tensor) else None
        if loss is not None and loss.size != 1:
            raise ShapeError(f"check_finite is a tensor of shape {loss.shape}; expected one element, such as the loss.")
        clips = self._hyper["clip_norm"] is not None
        if loss_scale is not None and not isinstance(loss_scale, LossScale):
            raise ArgumentError(
                f"loss_scale is {loss_scale!r}; expected an fc.LossScale, which keeps the number itself."
            )
        is_gated = clips or loss_scale is not None or loss is not None or bool(check_finite)
        self._counts.settle()
        plan = self._memory.plan(self._decays, self._own_scalars)
        # What is rounded in the pass that updates it need not be copied before the next products.
        shadows = [s for arena in plan.arenas for s in arena.shadows.values() if s.is_worth_updating]
        update = Update(self, plan, is_gated, 1.0 if gradient_scale is None else gradient_scale, shadows)
        backend = plan.passes[0].on.backend
        if backend.is_recording:
            self._join(backend, update)
        else:
            update.prepare(self.learning_rate)
        if is_gated:
            plan.gate.decide(loss, clips, loss_scale)
        is_scaled = clips or gradient_scale is not None or loss_scale is not None
        for part in plan.passes:
            when = plan.gate.flag(part.on) if is_gated else None
            copies = part.copies(shadows)
            program = self._program(is_scaled, part.decays, len(copies))
            part.on.backend.map(program, part.arrays, part.scalars, out=(*part.outputs, *copies), when=when)
        for on, scalars in plan.scalars:
            number = scalars[2:3]
            on.backend.map(NEXT, (number,), out=(number,), when=plan.gate.flag(on) if is_gated else None)
        if not backend.is_recording:
            return update.finish()
        constrained = [parameter for parameter in plan.parameters if parameter.constraint is not None]
        backend.hold_back(
            [array for parameter in constrained for array in parameter.all_arrays()],
            f"The step uses a parameter with a constraint after {type(self).__name__}.step(); in a replay constraints "
            "are applied when all of the step is done. Capture what follows as a step of its own.",
        )
        return True

    def _join(self, recorder: Backend, update: Update) -> None:
        if self._recorder is not None and self._recorder() is recorder:
            raise CaptureError(
                f"{type(self).__name__}.step() is called twice in one captured step, where both would have the same "
                "learning rate. Capture a step that calls it once."
            )
        self._recorder = weakref.ref(recorder)
        update.note_changes()
        recorder.join(update)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later run needs to go on with the same bits.

        Returns
        -------
        dict
            "optimizer", "steps", "skipped_steps", "hyperparameters", "learning_rate" (None for a schedule that is a
            function of your own) and "parameters", {name: {"steps": int, slot: array}}. All but the arrays is JSON.
            `exclude` is not part of it.
        """
        try:
            rate = self._schedule.to_data()
        except ArgumentError:
            rate = None
        return {
            "optimizer": type(self).__name__,
            "steps": self.steps,
            "skipped_steps": self.skipped_steps,
            "hyperparameters": self.hyperparameters,
            "learning_rate": rate,
            "parameters": state.read(self._memory),
        }

    def load_state_dict(self, data: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned, hyperparameters and learning rate included.

        Raises
        ------
        FormatError
            It belongs to another optimizer or to other parameters; the message lists all that does not fit, and nothing
            was changed.
        """
        if not isinstance(data, Mapping) or data.get("optimizer") != type(self).__name__:
            kind = data.get("optimizer") if isinstance(data, Mapping) else type(data).__name__
            raise FormatError(f"The state is of {kind!r}, this optimizer is {type(self).__name__}.")
        readers: dict[str, Callable[[Any], Any]] = {
            "steps": state.count,
            "skipped_steps": state.count,
            "hyperparameters": self._checked,
            "learning_rate": lambda rate: self._schedule if rate is None else schedules.from_data(rate),
            "parameters": lambda entries: state.check(self._memory, entries),
        }
        found, problems = {}, []
        for key, reader in readers.items():
            try:
                found[key] = reader(data[key])
            except KeyError:
                problems.append(f"{key} is missing")
            except (FcdenseError, TypeError) as error:
                problems.append(f"{key}: {error}")
        if problems:
            raise FormatError(f"The state does not fit {self!r}. " + " ".join(problems))
        self.steps, self.skipped_steps = found["steps"], found["skipped_steps"]
        self._hyper, self._schedule = found["hyperparameters"], found["learning_rate"]
        self._programs.clear()
        self._memory.restore(*found["parameters"])

    def __getstate__(self) -> dict[str, Any]:
        self._counts.settle()
        return {**self.__dict__, "_programs": {}, "_recorder": None}

    def _decays(self, parameter: Parameter) -> bool:
        if not self._hyper["weight_decay"]:
            return False
        if self._exclude is None:
            return parameter.decay
        if callable(self._exclude):
            return not self._exclude(parameter)
        parts = (parameter.name, *parameter.name.split("."))
        return not any(fnmatchcase(part, pattern) for pattern in self._exclude for part in parts)

    def _own_scalars(self) -> list[float]:
        return [value for key, value in self._hyper.items() if self._is_scalar(key)]

    def _is_scalar(self, key: str) -> bool:
        return key != "clip_norm" and self.hyper.get(key) is not FLAG

    def _program(self, scaled: bool, decays: bool, copies: int) -> Program:
        """(w, g, slots; learning_rate, gradient_scale, step, hyperparameters) -> (w, slots, w once more for a copy)."""
        found = self._programs.get((scaled, decays, copies))
        if found is not None:
            return found
        names = ["learning_rate", "gradient_scale", "step", *filter(self._is_scalar, self._hyper)]

        def update(w: Any, g: Any, *rest: Any) -> tuple[Any, ...]:
            s = SimpleNamespace(**self._hyper)
            vars(s).update(zip(names, rest[len(self.slots) :], strict=True))
            if scaled:
                g = g * s.gradient_scale
            if decays and self.decoupled:
                w = w * (1.0 - s.learning_rate * s.weight_decay)
            elif decays:
                g = g + s.weight_decay * w
            new = self.rule(w, g, rest[: len(self.slots)], s)
            return (*new, *(new[0],) * copies)

        program = trace(update, 2 + len(self.slots), len(names), name=type(self).__name__.lower())
        self._programs[scaled, decays, copies] = program
        return program

    def _checked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        ranges = {**self.hyper, "weight_decay": NOT_NEGATIVE, "clip_norm": LIMIT}
        return checked(type(self).__name__, ranges, given)
