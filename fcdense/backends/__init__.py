"""Devices and the dispatcher: from a device string to the backend that serves it."""

from __future__ import annotations

import os
import re
import threading
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from weakref import WeakValueDictionary

from fcdense.backends.base import Backend
from fcdense.backends.cpu import CpuBackend
from fcdense.backends.native import NativeBackend
from fcdense.backends.probe import Probe, cuda_probes, failed_probe, gpu_count
from fcdense.backends.reference import ReferenceBackend
from fcdense.errors import DeviceError
from fcdense.log import logger
from fcdense.scope import Scope

__all__ = [
    "Backend",
    "Device",
    "Probe",
    "available_devices",
    "cuda_probes",
    "current_device",
    "device",
    "known_devices",
    "use_device",
]


_known: WeakValueDictionary[int, Device] = WeakValueDictionary()


@dataclass(frozen=True)
class Device:
    """A place where arrays live and primitives run. Two devices are equal when their names are."""

    type: str
    index: int | None = None
    backend: Backend = field(compare=False, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        _known[id(self)] = self

    @property
    def name(self) -> str:
        """The string that `fc.device` takes: "cpu", "cuda:0"."""
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"device('{self.name}')"

    def __deepcopy__(self, memo: object) -> Device:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return device, (self.name,)

    def put(self, backend: Backend) -> None:
        """Let `backend` serve this device, for everything that lies on it."""
        object.__setattr__(self, "backend", backend)


_CPU = Device("cpu", backend=CpuBackend() if find_spec("numba") is None else NativeBackend())
_NUMPY = Device("numpy", backend=CpuBackend())
_REFERENCE = Device("reference", backend=ReferenceBackend())
_starting = threading.RLock()
"""Held while a GPU is probed and started: once per process, whichever threads ask first."""


@cache
def _cuda(index: int) -> Device:
    failed = failed_probe()
    if failed is not None:
        raise DeviceError(f'Device "cuda" cannot be used: {failed}')
    if index >= gpu_count():
        raise DeviceError(f'Device "cuda:{index}" is not there: the driver shows {gpu_count()} GPU(s), from 0 on.')
    driver = import_module("fcdense.cuda.cupy_driver").CupyDriver(index)
    backend: Backend = import_module("fcdense.backends.cuda").CudaBackend(driver)
    return Device("cuda", index, backend=backend)


@cache
def _auto() -> Device:
    failed = failed_probe()
    if failed is None:
        return _cuda(0)
    logger.info("device 'auto' is the CPU: %s", failed)
    return _CPU


def device(spec: str | Device = "auto") -> Device:
    """The device named "auto", "cpu", "cuda" or "cuda:N".

    "auto" takes the GPU when every probe passes, else the CPU, and logs the reason once. "cuda" is the GPU or an
    error, never something else. ("numpy" is the CPU without compiled kernels, as it is where Numba is not installed;
    "reference" computes in float64 whatever the dtype and is the tests' oracle.)

    Raises
    ------
    DeviceError
        The string is none of these, or a probe of the GPU failed; the message names it and the cure.
    """
    if isinstance(spec, Device):
        return spec
    if hasattr(spec, "__array__"):
        raise DeviceError(
            f'A device is given as {type(spec).__name__}. Use "auto", "cpu", "cuda" or "cuda:N", or the device of a '
            "tensor: x.device."
        )
    if spec == "cpu":
        return _CPU
    if spec == "numpy":
        return _NUMPY
    if spec == "reference":
        return _REFERENCE
    if spec == "auto":
        with _starting:
            return _auto()
    match = re.fullmatch(r"cuda(?::([0-9]+))?", spec) if isinstance(spec, str) else None
    if match is None:
        raise DeviceError(f'Unknown device {spec!r}. Use "auto", "cpu", "cuda" or "cuda:N".')
    with _starting:
        return _cuda(int(match[1] or 0))


_chosen: ContextVar[Device | None] = ContextVar("fcdense_device", default=None)


def current_device() -> Device:
    """The device that `use_device` chose, else FCDENSE_DEVICE, else "auto"."""
    chosen = _chosen.get()
    if chosen is not None:
        return chosen
    name = os.environ.get("FCDENSE_DEVICE")
    if not name:
        return device("auto")
    try:
        return device(name)
    except DeviceError as error:
        raise DeviceError(f"{error} (The name comes from the environment variable FCDENSE_DEVICE.)") from None


def use_device(spec: str | Device) -> Scope[Device]:
    """Make `spec` the device of tensors and layers created inside the `with` block, in this thread or task."""
    return Scope(_chosen, device(spec))


def known_devices() -> list[Device]:
    """Every device that something may lie on, equal ones with other backends included."""
    return list(_known.values())


def available_devices() -> tuple[str, ...]:
    """Names of the devices that work here, the CPU always among them."""
    gpus = gpu_count() if failed_probe() is None else 0
    return ("cpu", *(f"cuda:{index}" for index in range(gpus)))
