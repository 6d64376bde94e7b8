"""What a module is called with: arrays become tensors on the module's device."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from fcdense.backends import Device, current_device
from fcdense.conversion import host_array, in_c_order, is_on_gpu
from fcdense.tape import is_recording
from fcdense.tensor import Tensor, placed

if TYPE_CHECKING:
    from fcdense.nn.module import Module


def as_input(x: Any, module: Module) -> Any:
    """An array or a list of numbers as a tensor; anything else as it is, `forward` may know what to do with it."""
    if not (hasattr(x, "__array__") or (isinstance(x, list) and not any(isinstance(item, Tensor) for item in x))):
        return x
    on = device_of(module)
    if is_on_gpu(x):
        there = placed(x, on, "the input")
        return there.copy() if is_recording() else there
    # The gradient reads the array later, and a write of the caller's in between would go unseen.
    array = in_c_order(host_array(x, "the input"), copy=True if is_recording() else None)
    return Tensor(on.backend.from_host(array), on)


def device_of(module: Module) -> Device:
    """The device of the module's first parameter or buffer; the current device if it has none."""
    tensors = chain(module.parameters(), (buffer for _, buffer in module.named_buffers()))
    return next((tensor.device for tensor in tensors), None) or current_device()
