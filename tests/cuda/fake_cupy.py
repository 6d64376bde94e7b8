"""CuPy as far as the driver uses it, over the machine of fake_cuda.py, with arrays as the emulation has them."""

from __future__ import annotations

import ctypes
import functools
import importlib
import math
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fcdense.cuda import compile as compiling
from fcdense.errors import DeviceError
from tests.cuda import fake_cuda, fake_streams
from tests.cuda.fake_cuda import Device, Machine, MemoryPointer
from tests.cuda.fake_streams import Stream
from tests.emulation import EmulatedArray


class ndarray(EmulatedArray):  # noqa: N801
    """CuPy's array. What it does with its contents goes to the current stream of the current GPU, whose kernels read no
    other GPU's memory; a copy alone may come from there."""

    machine: Machine
    _plain: Any

    def __init__(self, shape: Any, dtype: Any, memptr: MemoryPointer, strides: Any = None) -> None:
        super().__init__(_at(memptr.ptr, shape, np.dtype(dtype), strides))
        self._made(memptr, None)

    def _made(self, memptr: MemoryPointer, source: Any) -> None:
        self.data = memptr
        if "__array_finalize__" in vars(type(self)):
            self.__array_finalize__(source)

    def __array_finalize__(self, source: Any) -> None:
        """For classes that derive from this one."""

    @property
    def device(self) -> Device:
        return Device(self.machine, self.data.device_id)

    def _part(self, host: np.ndarray[Any, Any]) -> ndarray:
        made = object.__new__(type(self))
        EmulatedArray.__init__(made, host, self if self.base is None else self.base)
        shift = host.__array_interface__["data"][0] - self.data.mem.ptr if host.size else 0
        made._made(MemoryPointer(self.data.mem, shift), self)
        return made

    def reshape(self, *shape: Any) -> Any:
        host = self.host.reshape(*shape)
        if not self.size or np.shares_memory(host, self.host):
            return self._part(host)
        made = self._plain(host.shape, host.dtype, self.machine.default_pool.malloc(host.nbytes))
        target, source = made.host.reshape(self.shape), self.host
        self.machine.stream().give(lambda: np.copyto(target, source))
        return made

    def _need_the_current_device(self) -> None:
        if self.data.device_id != self.machine.devices[-1]:
            raise ValueError("The device where the array resides is different from the current device.")

    def _computed(self, values: Callable[[], np.ndarray[Any, Any]], shape: Any, dtype: Any) -> Any:
        self._need_the_current_device()
        return self._made_here(values, shape, dtype)

    def _made_here(self, values: Callable[[], np.ndarray[Any, Any]], shape: Any, dtype: Any) -> Any:
        made = self._plain(shape, np.dtype(dtype), self.machine.default_pool.malloc(math.prod(shape) * dtype.itemsize))
        self.machine.stream().give(lambda: np.copyto(made.host, values()))
        return made

    def take(self, rows: np.ndarray[Any, Any], axis: int) -> Any:
        order = np.array(rows)
        return self._computed(lambda: self.host.take(order, axis), (*order.shape, *self.shape[1:]), self.dtype)

    def astype(self, dtype: Any) -> Any:
        return self._computed(lambda: self.host.astype(dtype), self.shape, np.dtype(dtype))

    def copy(self) -> Any:
        return self._made_here(lambda: self.host, self.shape, self.dtype)

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(value, np.ndarray) and value.shape:
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        self._need_the_current_device()
        target = self[key].host
        source = value.host if isinstance(value, ndarray) else np.array(value, self.dtype)
        np.broadcast_to(source, target.shape)
        self.machine.stream().give(lambda: np.copyto(target, source, casting="unsafe"))

    def get(self, stream: Stream, out: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        assert (out.shape, out.dtype) == (self.shape, self.dtype)
        self.machine.called("memcpyAsync", stream.index)
        stream.give(lambda: np.copyto(out, self.host))
        stream.synchronize()
        return out


def _at(address: int, shape: Any, dtype: np.dtype[Any], strides: Any) -> np.ndarray[Any, Any]:
    """The numbers that lie at an address."""
    if not math.prod(shape):
        return np.empty(shape, dtype)
    steps = strides or tuple(dtype.itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    reach = [(n - 1) * step for n, step in zip(shape, steps, strict=True)]
    low, high = sum(min(r, 0) for r in reach), sum(max(r, 0) for r in reach) + dtype.itemsize
    return np.ndarray(shape, dtype, (ctypes.c_ubyte * (high - low)).from_address(address + low), -low, steps)


def _asarray(kind: type[ndarray], array: Any) -> ndarray:
    """An array of any library, on the current GPU: copied there from another one."""
    if not isinstance(array, ndarray):
        shown = array.__cuda_array_interface__
        memory = fake_cuda.UnownedMemory(kind.machine, shown["data"][0], array.nbytes, array)
        array = kind(shown["shape"], shown["typestr"], MemoryPointer(memory, 0), shown.get("strides"))
    return array if array.data.device_id == kind.machine.devices[-1] else array.copy()  # type: ignore[no-any-return]


def _no_library(name: str, title: str) -> str:
    raise DeviceError(f"{title} is not there.")


def install(monkeypatch: pytest.MonkeyPatch, capability: str = "90", capacity: int = 1 << 30) -> Machine:
    """Make this module what `import cupy` finds, with two GPUs; the driver is imported anew."""
    machine = Machine(capability, capacity)

    def set_attribute(function: int, attribute: int, value: int) -> None:
        assert attribute == 8
        if value > 227 * 1024:
            raise fake_cuda.CUDADriverError("CUDA_ERROR_INVALID_VALUE: invalid argument")
        machine.functions[function].most_shared = value

    def of_the_machine(kind: Any) -> Any:
        return functools.partial(kind, machine)

    cuda = types.ModuleType("cupy.cuda")
    cuda.__dict__.update(
        Device=of_the_machine(fake_cuda.Device),
        Event=of_the_machine(fake_streams.Event),
        Memory=of_the_machine(fake_cuda.Memory),
        MemoryPointer=MemoryPointer,
        MemoryPool=of_the_machine(fake_cuda.MemoryPool),
        Stream=of_the_machine(fake_streams.Stream),
        UnownedMemory=of_the_machine(fake_cuda.UnownedMemory),
        alloc_pinned_memory=of_the_machine(fake_cuda.alloc_pinned_memory),
        driver=types.SimpleNamespace(
            CUDADriverError=fake_cuda.CUDADriverError,
            CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8,
            funcSetAttribute=set_attribute,
        ),
        function=types.SimpleNamespace(Module=of_the_machine(fake_cuda.Module)),
        get_current_stream=machine.stream,
        get_elapsed_time=fake_streams.get_elapsed_time,
        memory=types.SimpleNamespace(OutOfMemoryError=fake_cuda.OutOfMemoryError),
        runtime=types.SimpleNamespace(
            CUDARuntimeError=fake_streams.CUDARuntimeError,
            getDeviceCount=lambda: 2,
            getDeviceProperties=lambda index: {"name": b"Fake GPU"},
            memGetInfo=lambda: (machine.free[machine.devices[-1]], 0),
            streamCaptureModeRelaxed=2,
        ),
    )
    cupy = types.ModuleType("cupy")
    own: Any = type("ndarray", (ndarray,), {"machine": machine})
    own._plain = own
    cupy.__dict__.update(
        __version__="14.2.0",
        cuda=cuda,
        ndarray=own,
        get_default_memory_pool=lambda: machine.default_pool,
        asarray=functools.partial(_asarray, own),
    )
    for module in (cupy, cuda):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    names = [f"fcdense.cuda.{name}" for name in ("modules", "transfers", "cupy_graph", "cupy_driver")]
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)  # so that what was there before comes back afterwards
        del sys.modules[name]
    for name in names:
        monkeypatch.setattr(name, importlib.import_module(name), raising=False)
    monkeypatch.setattr("fcdense.cuda.cupy_driver.library_path", _no_library)
    monkeypatch.setattr(compiling, "code", lambda kernel, architecture: kernel.text.encode())
    return machine
