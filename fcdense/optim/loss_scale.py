"""`LossScale`: the factor that brings small gradients into the range of float16, and finds its own size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fcdense import backends as devices
from fcdense.arena import Array
from fcdense.backends import Device, current_device
from fcdense.errors import ArgumentError, DTypeError, FormatError
from fcdense.optim.gate import carried, words
from fcdense.optim.ranges import Range, checked
from fcdense.program import trace
from fcdense.tensor import Tensor

SMALLEST = 1.0
"""Where every gradient is NaN no scale helps; without a bound it would become 0, and its inverse infinite."""
LARGEST = 2.0**127

RANGES = {
    "initial": Range("a number from 1 to 2**127", lambda s: SMALLEST <= s <= LARGEST),
    "growth_factor": Range("a number > 1", lambda value: 1.0 < value <= LARGEST),
    "backoff_factor": Range("a number > 0 and < 1", lambda value: 0.0 < value < 1.0),
    "growth_interval": Range("a whole number > 0", lambda value: 1.0 <= value < 2.0**53 and value == int(value)),
}

STATE = {"scale": RANGES["initial"], "finite_steps": Range("a whole number >= 0", lambda n: 0.0 <= n == n // 1)}


def _following(scale: Any, finite_steps: Any, is_finite: Any, growth: Any, backoff: Any, interval: Any) -> Any:
    done = np.where(is_finite > 0.0, finite_steps + 1.0, 0.0)
    grown, shrunk = np.minimum(scale * growth, LARGEST), np.maximum(scale * backoff, SMALLEST)
    grows = done >= interval
    return np.where(is_finite > 0.0, np.where(grows, grown, scale), shrunk), np.where(grows, 0.0, done)


FOLLOWING = trace(_following, 3, 3, name="following_loss_scale")


class LossScale:
    """The loss is multiplied by a scale before the backward pass, and the gradients divided by it in the update.

    Gradients below 6e-8 are 0 in float16. The scale makes them larger: as large as they can be without becoming
    infinite, since it doubles after many finite steps, and halves when a step finds a gradient that is not. That step
    changes nothing else. The scale lies on the device, so that captured steps follow it::

        loss_scale = fc.LossScale()
        for x, y in batches:
            optimizer.zero_grad()
            with fc.use_precision("float16"):
                loss = fc.losses.cross_entropy(model(x), y)
            loss_scale.backward(loss)
            optimizer.step(loss_scale=loss_scale)

    `Trainer` does so by itself where its precision is "float16". bfloat16 has the range of float32 and needs no scale.

    Parameters
    ----------
    initial : float
        The first scale, at least 1.
    growth_factor, backoff_factor : float
        What the scale is multiplied by, after `growth_interval` finite steps in a row and after one that is not.
    growth_interval : int
    device : str or Device, optional
        Where the loss is; `current_device()` unless given.

    Raises
    ------
    ArgumentError
        A value out of range.

    Notes
    -----
    The scale stays between 1 and 2**127. The rule and its values are those of PyTorch's GradScaler, but for the lower
    bound, which TensorFlow's LossScaleOptimizer has too.

    Source: P. Micikevicius et al. (2018), Mixed precision training, ICLR, section 3.2.
    """

    def __init__(
        self,
        initial: float = 2.0**16,
        *,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        device: str | Device | None = None,
    ) -> None:
        given = {"growth_factor": growth_factor, "backoff_factor": backoff_factor, "growth_interval": growth_interval}
        self._options = checked("LossScale", RANGES, {"initial": initial, **given})
        self.device = current_device() if device is None else devices.device(device)
        self._state = words(self.device.backend.unrecorded, [self._options.pop("initial"), 0.0])
        self.array, self._finite_steps = self._state[0, ...], self._state[1, ...]

    @property
    def scale(self) -> float:
        """The scale of the next step."""
        return float(self.device.backend.to_host(self._state)[0])

    @property
    def finite_steps(self) -> int:
        """Finite steps in a row since the scale has changed."""
        return int(self.device.backend.to_host(self._state)[1])

    def __repr__(self) -> str:
        options = ", ".join(f"{key}={value:g}" for key, value in self._options.items())
        return f"LossScale({self.scale:g}; {options}; {self.finite_steps} finite steps)"

    def backward(self, loss: Tensor, weight: float = 1.0) -> None:
        """`loss.backward()` of the loss times the scale, and times `weight`.

        Raises
        ------
        ArgumentError
            The loss is no tensor, or lies on another device.
        DTypeError
            The loss has 16 bits, in which the scale has no place.
        """
        if not isinstance(loss, Tensor) or loss.device != self.device:
            given = f"a tensor on {loss.device}" if isinstance(loss, Tensor) else repr(loss)
            raise ArgumentError(
                f"LossScale on {self.device}: the loss is {given}; expected a tensor there. "
                "LossScale(device=...) makes one for another device."
            )
        if loss.dtype.itemsize == 2:
            raise DTypeError(
                f"LossScale: the loss is {loss.dtype}; expected float32. Compute it inside of fc.use_precision, where "
                "losses are float32, or from prediction.astype('float32')."
            )
        seed = Tensor(self.array, self.device)
        loss.backward(seed if weight == 1.0 else seed * weight)

    def follow(self, is_finite: Array, on: Device) -> None:
        """Take the result of a step: a number on `on` that is 0 where a gradient was not finite."""
        backend = self.device.backend
        state = self.array, self._finite_steps
        inputs = (*state, carried(is_finite, on, self.device))
        options = self._options
        scalars = options["growth_factor"], options["backoff_factor"], options["growth_interval"]
        backend.map(FOLLOWING, inputs, scalars, out=state)

    def state_dict(self) -> dict[str, float]:
        """ "scale" and "finite_steps", which JSON can hold."""
        return {"scale": self.scale, "finite_steps": self.finite_steps}

    def load_state_dict(self, data: Mapping[str, float]) -> None:
        """Take back what `state_dict` returned.

        Raises
        ------
        FormatError
            It is not of that form; nothing was changed.
        """
        try:
            values = float(data["scale"]), float(data["finite_steps"])
            checked("LossScale", STATE, {"scale": values[0], "finite_steps": values[1]})
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"The state does not fit a LossScale: {error}") from None
        self._state[...] = np.array(values)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self._options, self.device, self.state_dict())


def _restored(options: dict[str, Any], on: Device, state: dict[str, float]) -> LossScale:
    made = LossScale(device=on, **options)
    made.load_state_dict(state)
    return made
