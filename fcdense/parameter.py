"""Parameters: leaves that a model trains. They move into an arena together and then hold views of its flat buffers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import numpy as np

from fcdense import changes
from fcdense.arena import Arena, Array, Version
from fcdense.backends import Device
from fcdense.backends.base import Mode
from fcdense.conversion import host_array, is_on_gpu
from fcdense.errors import CaptureError, DeviceError, GraphError, ShapeError
from fcdense.layout import Layout
from fcdense.program import trace
from fcdense.shadow import Shadow
from fcdense.tensor import Tensor, as_tensor

ADD = trace(lambda total, part: total + part, 2, name="accumulate")


class Unbuilt:
    """Stands for the array of a parameter whose shape is not known yet; whoever reads it learns what to do."""

    def __getattr__(self, attribute: str) -> NoReturn:
        raise GraphError(
            "This parameter has no shape yet: its layer takes in_features from the first input. "
            "Call the model once, or give in_features."
        )


class Parameter(Tensor):
    """A trained leaf. Layers make theirs; for a module of your own use `fcdense.nn.parameter(data)`.

    Attributes
    ----------
    name : str
        Its path in the model ("layers.0.kernel"), for messages.
    decay : bool
        Whether weight decay applies: to kernels, not to biases and scales.
    regularizer, constraint : callable or None
        kernel -> penalty (a tensor of shape ()), and array -> array, applied after each optimizer step.
    arena, index : Arena or None, int
        Its home once packed, and its slot there.
    """

    __slots__ = (
        "_gradient_array",
        "_shadows",
        "_written",
        "arena",
        "constraint",
        "decay",
        "index",
        "name",
        "regularizer",
    )
    moves = True

    def __init__(
        self,
        array: Array | None,
        on: Device,
        *,
        requires_grad: bool = True,
        name: str = "parameter",
        decay: bool = False,
        regularizer: Callable[[Tensor], Tensor] | None = None,
        constraint: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(Unbuilt() if array is None else array, on)
        self.name = name
        self.decay = decay
        self.regularizer = regularizer
        self.constraint = constraint
        self.arena: Arena | None = None
        self.index = 0
        self._gradient_array: Array | None = None
        self._written = False
        self._shadows: dict[np.dtype[Any], Shadow] = {}
        self.requires_grad = requires_grad

    @property
    def is_built(self) -> bool:
        """Whether the shape is known and there are values."""
        return not isinstance(self.array, Unbuilt)

    def _check_differentiable(self) -> None:
        if self.is_built:
            super()._check_differentiable()

    def build(self, array: np.ndarray[Any, Any]) -> None:
        """Give an unbuilt parameter its shape, dtype and first values.

        Raises
        ------
        GraphError
            It has values already.
        """
        if self.is_built:
            raise GraphError(f"Parameter '{self.name}' has values already, of shape {self.shape}; use assign().")
        self.array = self.device.backend.from_host(array)
        changes.settings.bump()

    def assign(self, values: Any) -> None:
        """Copy `values` in, cast to this parameter's dtype.

        Raises
        ------
        ShapeError, DTypeError, DeviceError
            The shapes differ, the values are not real numbers or lie elsewhere; nothing was copied.
        """
        on_host = not (isinstance(values, Tensor) or is_on_gpu(values))
        source: Any = host_array(values, "the new values") if on_host else as_tensor(values, like=self)
        if source.shape != self.shape:
            raise ShapeError(f"Parameter '{self.name}' has shape {self.shape}; the new values have {source.shape}.")
        if on_host:
            self.device.backend.write(source.astype(self.dtype, copy=False), out=self.array)
        elif source.device != self.device:
            raise DeviceError(f"Parameter '{self.name}' lies on {self.device}; the new values on {source.device}.")
        else:
            self.device.backend.copy(source.array, out=self.array)
        self.version.bump()

    def __repr__(self) -> str:
        if not self.is_built:
            return f"Parameter('{self.name}', not built)"
        return f"Parameter('{self.name}', {super().__repr__()})"

    # gradients: written into a buffer that is kept, so that a step allocates nothing

    @property
    def grad(self) -> Tensor | None:
        """The gradient that `backward` summed up since the last `zero_grad`, or None."""
        if changes.witness is not None:
            changes.witness.reads.add(self)
        return self.derived(self._gradient_array) if self.has_grad else None

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        gradient = None if value is None else self.gradient_like(value)
        self.zero_grad()
        if gradient is not None:
            self.deposit(gradient)

    @property
    def has_grad(self) -> bool:
        """Whether a gradient was written since the last `zero_grad`."""
        if changes.witness is not None:
            changes.witness.leaf(self)
        return self._written

    @property
    def gradient_state(self) -> bool:
        """Whether a gradient was written; setting it tells of one that a replay wrote or forgot."""
        return self._written

    @gradient_state.setter
    def gradient_state(self, state: bool) -> None:
        self._written = state

    def zero_grad(self) -> None:
        """Forget the gradient: the next one overwrites it."""
        if changes.witness is not None:
            changes.witness.leaf(self, forgets=True)
        if self._written:
            changes.gradients.bump()
            self._written = False

    def gradient_buffer(self) -> tuple[Array, Mode]:
        """Where a primitive writes the gradient, and how; it counts as written from here on."""
        if self._gradient_array is None:
            self._gradient_array = self.device.backend.empty(self.shape, self.dtype)
        if changes.witness is not None:
            changes.witness.leaf(self)
        if self._written:
            return self._gradient_array, "accumulate"
        changes.gradients.bump()
        self._written = True
        return self._gradient_array, "overwrite"

    def deposit(self, gradient: Tensor) -> None:
        """Add `gradient` to the buffer."""
        buffer, mode = self.gradient_buffer()
        if mode == "overwrite":
            self.device.backend.copy(gradient.array, out=buffer)
        else:
            self.device.backend.map(ADD, (buffer, gradient.array), out=(buffer,))

    @property
    def gradient_array(self) -> Array | None:
        """The buffer of the gradient, whether it holds one now or not; None before there was any."""
        return self._gradient_array

    # memory

    def rounded(self, dtype: np.dtype[Any]) -> Array:
        """The values in a 16-bit dtype, for products: a part of a copy that is kept, one for each arena."""
        arena = self.arena
        shadows, values = (self._shadows, self.array) if arena is None else (arena.shadows, arena.values)
        shadow = shadows.get(dtype)
        if shadow is None:
            shadow = shadows[dtype] = Shadow(values, self.version, dtype, self.device)
        array = shadow.use()
        return array if arena is None else arena.view(array, self.index)

    def all_arrays(self) -> list[Array]:
        """The values, and the copies of them in other dtypes."""
        arena = self.arena
        if arena is None:
            return [self.array, *(shadow.array for shadow in self._shadows.values())]
        buffers = arena.values, *(shadow.array for shadow in arena.shadows.values())
        return [arena.view(buffer, self.index) for buffer in buffers]

    def adopt(self, arena: Arena, index: int) -> None:
        """Move values and gradient into slot `index` of `arena`."""
        backend = self.device.backend
        changes.settings.bump()
        values, gradient = arena.view(arena.values, index), arena.view(arena.gradients, index)
        backend.copy(self.array, out=values)
        if self._written:
            backend.copy(self._gradient_array, out=gradient)
        self.array, self._gradient_array = values, gradient
        self.version.continue_in(arena.version)
        self.version = arena.version
        self.arena, self.index = arena, index
        self._shadows = {}

    def move(self, on: Device) -> None:
        """Go to another device, out of the arena, which is retired; the gradient is forgotten."""
        if on == self.device:
            return
        changes.settings.bump()
        changes.gradients.bump()
        if self.is_built:
            self.array = on.backend.from_host(np.array(self.device.backend.to_host(self.array)))
        if self.arena is not None:
            self.arena.retired = True
        self.device, self.version = on, Version()
        self.arena, self._gradient_array, self._written, self._shadows = None, None, False, {}

    def __reduce__(self) -> tuple[Any, ...]:
        values = np.array(self.numpy()) if self.is_built else None
        state = (values, self.device, self._requires_grad, self.name, self.decay, self.regularizer, self.constraint)
        return _restored, state


def _restored(
    values: np.ndarray[Any, Any] | None,
    on: Device,
    requires_grad: bool,
    name: str,
    decay: bool,
    regularizer: Any,
    constraint: Any,
) -> Parameter:
    array = None if values is None else on.backend.from_host(values)
    return Parameter(
        array, on, requires_grad=requires_grad, name=name, decay=decay, regularizer=regularizer, constraint=constraint
    )


def pack(parameters: Iterable[Parameter]) -> None:
    """Move built parameters that have no arena yet into new ones, one for each device and dtype.

    Trained ones come first, and among them those that decay, so that an optimizer's passes run over few spans. What an
    arena adopted already stays where it is.
    """
    groups: dict[tuple[Device, np.dtype[Any]], list[Parameter]] = {}
    for parameter in dict.fromkeys(parameters):
        if parameter.is_built and parameter.arena is None:
            groups.setdefault((parameter.device, parameter.dtype), []).append(parameter)
    for (on, dtype), group in groups.items():
        if on.backend.is_recording:
            raise CaptureError(
                f"Parameter '{group[0].name}' would move into the arena while a step is recorded. Make the optimizer, "
                "and call the model once, before you capture."
            )
        group.sort(key=lambda p: (not p.requires_grad, not p.decay))
        layout = Layout.pack([(p.name, p.shape) for p in group], dtype.itemsize)
        arena = Arena(layout, dtype, on.backend)
        for index, parameter in enumerate(group):
            parameter.adopt(arena, index)
