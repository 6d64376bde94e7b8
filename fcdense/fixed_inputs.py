"""The arguments of a captured step: arrays go into buffers that stay, everything else has to stay as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from fcdense.arena import Array
from fcdense.backends import current_device
from fcdense.conversion import host_array, is_on_gpu
from fcdense.errors import CaptureError
from fcdense.parameter import Parameter
from fcdense.tensor import Tensor, placed

SECOND = "Capture the step a second time for them, or let every batch be full (drop_last=True)."


class Port:
    """An array argument: the buffer that the step reads, as a tensor.

    Host arrays of integers get an int64 buffer, others one of their own dtype, tensors one on their device.
    """

    def __init__(self, name: str, first: Any) -> None:
        self.name = name
        if is_on_gpu(first):
            first = placed(first, current_device())
        if isinstance(first, Tensor):
            self._refuse_graph(first)
            on, shape, dtype = first.device, first.shape, first.dtype
        else:
            array = host_array(first, f"Argument {name}")
            on, shape, dtype = current_device(), array.shape, array.dtype
            if dtype.kind in "iu" and np.can_cast(dtype, np.int64):
                dtype = np.dtype(np.int64)
        self.tensor = Tensor(on.backend.empty(shape, dtype), on, requires_grad=_requires_grad(first))
        self._shape, self._dtype = shape, dtype
        # Host memory is written without the detour over a primitive: half of the cost of a small batch.
        is_host = isinstance(self.tensor.array, np.ndarray)
        self._write = partial(np.copyto, self.tensor.array) if is_host else self._send

    def _refuse_graph(self, given: Tensor) -> None:
        if given.node is not None or isinstance(given, Parameter):
            kind = "a Parameter" if isinstance(given, Parameter) else "part of a graph"
            raise CaptureError(
                f"Argument {self.name} is {kind}; a captured step reads a copy of it, so no gradient would arrive. Use "
                "it inside of the step, or pass .detach()."
            )

    def fits(self, given: Any) -> bool:
        """Whether this is an array of the host that can be copied as it is."""
        return type(given) is np.ndarray and given.dtype is self._dtype and given.shape == self._shape

    def accept(self, given: Any) -> Any:
        """The array to be copied, checked; None for the buffer itself."""
        if self.fits(given):
            return given
        if given is self.tensor:
            return None
        if is_on_gpu(given):
            given = placed(given, self.tensor.device)
        if isinstance(given, Tensor):
            if given.device is not self.tensor.device and given.device != self.tensor.device:
                raise CaptureError(
                    f"Argument {self.name} lies on {given.device}, that of the capture on {self.tensor.device}."
                )
            if given.node is not None:
                self._refuse_graph(given)
            array = given.array
            if isinstance(array, np.ndarray):  # read-only memory is copied: the step itself may write that of a tensor
                array = array.view()
                array.flags.writeable = False
        else:
            array = host_array(given, f"Argument {self.name}")
        if array.shape != self._shape:
            raise CaptureError(
                f"Argument {self.name} has shape {array.shape}, captured was {self._shape}: a recorded step is made of "
                f"fixed shapes. {SECOND}"
            )
        if array.dtype != self._dtype and not self._widens(array.dtype):
            raise CaptureError(
                f"Argument {self.name} has dtype {array.dtype}, captured was {self._dtype}. Convert it, "
                f".astype('{self._dtype}'), or capture the step a second time."
            )
        return array

    def _widens(self, given: np.dtype[Any]) -> bool:
        """Whether integers of another dtype all have a place in the buffer."""
        return given.kind in "iu" and self._dtype.kind in "iu" and np.can_cast(given, self._dtype)

    def write(self, array: Array) -> None:
        """Copy into the buffer."""
        self._write(array)

    def _send(self, array: Array) -> None:
        backend = self.tensor.device.backend
        (backend.write if isinstance(array, np.ndarray) else backend.copy)(array, out=self.tensor.array)
        self.tensor.version.bump()


class FixedInputs:
    """All arguments of a captured step.

    Parameters
    ----------
    args, kwargs
        Those of the first call.

    Raises
    ------
    CaptureError
        An argument is neither an array, a tensor, a number, a text nor None.
    """

    def __init__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._names = tuple(kwargs)
        self._count = len(args)
        named = {str(position): value for position, value in enumerate(args)} | dict(kwargs)
        self._entries = [_entry(name, value) for name, value in named.items()]
        self.ports = [entry for entry in self._entries if isinstance(entry, Port)]
        self._ids = [id(port.tensor) for port in self.ports]
        self._only_arrays = not kwargs and len(self.ports) == self._count
        self.write(self.accept(args, kwargs))

    @property
    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """What the step is called with."""
        values = [entry.tensor if isinstance(entry, Port) else entry for entry in self._entries]
        return values[: self._count], dict(zip(self._names, values[self._count :], strict=True))

    def accept(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Any]:
        """The array for each buffer, checked; None for the buffer itself.

        Raises
        ------
        CaptureError
            One does not fit the first call, or one array is given twice.
        """
        is_plain = self._only_arrays and not kwargs and len(args) == self._count
        if is_plain and len(set(map(id, args))) == self._count and all(map(Port.fits, self.ports, args)):
            return args
        given = args if is_plain else self._arrays(args, kwargs)
        if len(given) > 1:
            ids = set(map(id, given))
            if len(ids) < len(given) or not ids.isdisjoint(self._ids):
                self._refuse_twins(given)
        return [port.accept(value) for port, value in zip(self.ports, given, strict=True)]

    def write(self, arrays: Sequence[Any]) -> None:
        """Copy accepted arrays into the buffers."""
        for port, array in zip(self.ports, arrays, strict=True):
            if array is not None:
                port.write(array)

    def _refuse_twins(self, given: Sequence[Any]) -> None:
        names = [port.name for port in self.ports]
        for position, value in enumerate(given):
            for other, port in enumerate(self.ports):
                if other == position:
                    continue
                if value is port.tensor and value is not given[other]:
                    raise CaptureError(
                        f"Argument {names[position]} is the buffer that argument {names[other]} is copied into. Pass a "
                        "copy of it."
                    )
                if value is given[other]:
                    first, second = sorted((position, other))
                    raise CaptureError(
                        f"Arguments {names[first]} and {names[second]} are one array; each has a buffer of its own. "
                        "Pass it once, and use it twice inside of the step."
                    )

    def _arrays(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The array arguments, once all others are found to be as they were."""
        if len(args) != self._count or set(kwargs) != set(self._names):
            captured = f"{self._count} arguments" + (f" and {', '.join(self._names)}" if self._names else "")
            given = f"{len(args)}" + (f" and {', '.join(kwargs)}" if kwargs else "")
            raise CaptureError(f"The step was captured with {captured}; given are {given}.")
        arrays = []
        values = [*args, *(kwargs[name] for name in self._names)]
        names = [*map(str, range(self._count)), *self._names]
        for name, entry, value in zip(names, self._entries, values, strict=True):
            if isinstance(entry, Port):
                if not _is_array(value):
                    raise CaptureError(f"Argument {name} is {value!r}, captured was an array.")
                arrays.append(value)
            elif type(value) is not type(entry) or value != entry:
                raise CaptureError(
                    f"Argument {name} is {value!r}, captured was {entry!r}, which is part of the recording. Pass an "
                    "array or a tensor for what changes, or capture the step a second time."
                )
        return arrays


def _entry(name: str, value: Any) -> Any:
    if _is_array(value):
        return Port(name, value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise CaptureError(
        f"Argument {name} is {type(value).__name__}; a captured step takes arrays and tensors, and numbers, texts and "
        "None that stay as they are. Use other objects from inside of the function. Among the decorators of a method "
        "fc.capture is the uppermost one."
    )


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") or isinstance(value, list)


def _requires_grad(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad
