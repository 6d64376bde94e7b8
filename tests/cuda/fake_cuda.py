"""CUDA as far as CuPy shows it to the driver, on the processor: what may be done late is done as late as it may be.

A stream does nothing before somebody waits for it. So memory that is used again too early, a host array that is read
too late, and work on the wrong stream give wrong numbers here each time, and not now and then. Kernels run through the
emulation.
"""

from __future__ import annotations

import ctypes
import gc
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from fcdense.cuda.source import Kernel
from tests import emulation
from tests.cuda.fake_streams import CUDARuntimeError, Stream
from tests.emulation import EmulatedDriver

UNIT = 512


class CUDADriverError(RuntimeError):
    """What the driver refuses."""


class OutOfMemoryError(MemoryError):
    """What a pool refuses."""


class Machine:
    """GPUs, and the current device and streams of each thread.

    Attributes
    ----------
    free : list of int
        Bytes of each GPU.
    capability : str
        Of all of them.
    launched : list of Kernel, grid and bytes
        What kernels were given, in order; `run` is called with each when its turn comes.
    calls : list of str
        What was asked of CUDA.
    fails : dict
        What is to be raised by the next call of a name.
    """

    def __init__(self, capability: str, capacity: int) -> None:
        self.free = [capacity, capacity]
        self.capability = capability
        self.launched: list[tuple[Kernel, tuple[int, ...], bytes]] = []
        self.calls: list[str] = []
        self.fails: dict[str, Exception] = {}
        self.streams: list[weakref.ref[Stream]] = []
        self.memories: weakref.WeakSet[Memory] = weakref.WeakSet()
        self.pinned: list[Any] = []
        self.released: list[Any] = []
        self.functions: weakref.WeakValueDictionary[int, Function] = weakref.WeakValueDictionary()
        self.local = threading.local()
        self.lock = threading.RLock()
        self.emulated = EmulatedDriver()
        self.run: Callable[[Kernel, Any, Any], None] = self.emulated.launch
        self.null = [self.at(index, lambda: Stream(self)) for index in range(2)]
        self.default_pool = MemoryPool(self)

    def at(self, index: int, make: Callable[[], Any]) -> Any:
        with Device(self, index):
            return make()

    @property
    def devices(self) -> list[int]:
        """Of this thread, the current one last."""
        if not hasattr(self.local, "devices"):
            self.local.devices = [0]
        return self.local.devices  # type: ignore[no-any-return]

    @property
    def current(self) -> list[list[Stream]]:
        """The streams of this thread on each device, the current one last."""
        if not hasattr(self.local, "streams"):
            self.local.streams = [[null] for null in self.null]
        return self.local.streams  # type: ignore[no-any-return]

    def stream(self, index: int = -1) -> Stream:
        return self.current[self.devices[-1] if index < 0 else index][-1]

    def called(self, name: str, index: int | None = None) -> None:
        """Note a call; one for a device has to find it current."""
        self.calls.append(name)
        if index is not None and index != self.devices[-1]:
            raise CUDARuntimeError(f"cudaErrorInvalidResourceHandle: {name} for {index} on device {self.devices[-1]}")
        if name in self.fails:
            raise self.fails.pop(name)

    def synchronize(self) -> None:
        for found in [stream for ref in self.streams if (stream := ref()) is not None]:
            found.finish()


class Device:
    def __init__(self, machine: Machine, index: int) -> None:
        self._machine, self.id = machine, index

    @property
    def compute_capability(self) -> str:
        return self._machine.capability

    def use(self) -> None:
        self._machine.devices[-1] = self.id

    def __enter__(self) -> Device:
        self._machine.devices.append(self.id)
        return self

    def __exit__(self, *_: object) -> None:
        self._machine.devices.pop()


# ---- memory ----------------------------------------------------------------------------------------------------------


class UnownedMemory:
    def __init__(self, machine: Machine, ptr: int, size: int, owner: object, device_id: int = -1) -> None:
        if device_id < 0:
            device_id = next(made.device_id for made in machine.memories if made.ptr <= ptr < made.ptr + made.size)
        self.ptr, self.size, self.owner, self.device_id = ptr, size, owner, device_id


class Memory:
    """Memory of a GPU, which the machine refuses to give where there is no more, and takes back once it is freed."""

    def __init__(self, machine: Machine, size: int) -> None:
        self.machine, self.size, self.device_id = machine, size, machine.devices[-1]
        machine.called("malloc")
        if size > machine.free[self.device_id]:
            raise CUDARuntimeError("cudaErrorMemoryAllocation: out of memory")
        machine.free[self.device_id] -= size
        raw = np.full(size + UNIT, 0xFF, np.uint8)
        self.raw = raw[-raw.ctypes.data % UNIT :][:size]
        self.ptr = self.raw.ctypes.data
        machine.memories.add(self)
        if emulation.is_available():
            machine.emulated.lend(raw, self.ptr - raw.ctypes.data, size)

    def release(self) -> None:
        """What was given before is done first, as cudaFree waits for it; what comes later finds other numbers."""
        self.machine.free[self.device_id] += self.size
        self.raw[:] = 0xEE
        self.machine.released.append(self.raw)


class Block:
    """Memory of a pool, given back to it for the stream that it was made for."""

    def __init__(self, pool: MemoryPool, key: tuple[int, Stream, int], memory: Memory) -> None:
        self.pool, self.key, self.memory = pool, key, memory
        self.ptr, self.size, self.device_id = memory.ptr, key[2], key[0]

    def __del__(self) -> None:
        self.pool.unused.setdefault(self.key, []).append(self.memory)


class MemoryPointer:
    def __init__(self, mem: Any, offset: int) -> None:
        self.mem, self.ptr, self.device_id = mem, mem.ptr + offset, mem.device_id

    def __add__(self, offset: int) -> MemoryPointer:
        return MemoryPointer(self.mem, self.ptr - self.mem.ptr + offset)

    def _copy(self, source: int, size: int, stream: Stream) -> None:
        stream._machine.called("memcpyAsync", stream.index)
        target = self.ptr
        stream.give(lambda: ctypes.memmove(target, source, size) and None)

    def copy_from_host_async(self, source: int, size: int, stream: Stream) -> None:
        self._copy(source, size, stream)

    def copy_from_device_async(self, source: MemoryPointer, size: int, stream: Stream) -> None:
        self._copy(source.ptr, size, stream)


class MemoryPool:
    def __init__(self, machine: Machine, allocator: Callable[[int], MemoryPointer] | None = None) -> None:
        self._machine = machine
        self._allocate = allocator or (lambda size: MemoryPointer(Memory(machine, size), 0))
        self.unused: dict[tuple[int, Stream, int], list[Memory]] = {}
        self.limit = 0

    def get_limit(self) -> int:
        return self.limit

    def malloc(self, size: int) -> MemoryPointer:
        if size >= 2**63:
            raise OverflowError("Python int too large to convert to C size_t")
        machine = self._machine
        key = machine.devices[-1], machine.stream(), -(-size // UNIT) * UNIT
        if not size:
            return MemoryPointer(UnownedMemory(machine, 0, 0, None, key[0]), 0)
        found = self.unused.get(key)
        return MemoryPointer(Block(self, key, found.pop() if found else self._made(key[2])), 0)

    def _made(self, size: int) -> Any:
        if self.limit:  # and if that were reached
            self.free_all_blocks()
        for _ in range(2):
            try:
                return self._allocate(size).mem
            except CUDARuntimeError:
                gc.collect()
                self.free_all_blocks()
        raise OutOfMemoryError(f"Out of memory allocating {size:,} bytes")

    def free_bytes(self) -> int:
        return sum(key[2] * len(found) for key, found in self.unused.items() if key[0] == self._machine.devices[-1])

    def free_all_blocks(self) -> None:
        self._machine.synchronize()
        for key in [key for key in self.unused if key[0] == self._machine.devices[-1]]:
            for memory in self.unused.pop(key):
                memory.release()


def alloc_pinned_memory(machine: Machine, size: int) -> Any:
    """Memory that holds other numbers once it was given back."""
    raw = (ctypes.c_ubyte * size)()
    machine.pinned.append(raw)
    made = type("Pinned", (ctypes.c_ubyte * size,), {"ptr": ctypes.addressof(raw)}).from_buffer(raw)
    weakref.finalize(made, ctypes.memset, made.ptr, 0xAA, size)
    return made


# ---- kernels ---------------------------------------------------------------------------------------------------------


class Module:
    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def load(self, code: bytes) -> None:
        self._machine.called("moduleLoadData")
        time.sleep(0.005)  # other threads have their turn
        self._text, self._index = code.decode(), self._machine.devices[-1]

    def get_function(self, name: str) -> Function:
        assert name == "kernel"
        return Function(self._machine, self._text, self._index)


class Function:
    def __init__(self, machine: Machine, text: str, index: int) -> None:
        self._machine, self._text, self._index = machine, text, index
        self.ptr = id(self)
        self.most_shared = 48 * 1024
        machine.functions[self.ptr] = self

    def __call__(self, grid: Any, block: Any, args: Any, shared_mem: int = 0, stream: Any = None) -> None:
        self._machine.called("launchKernel", stream.index)
        (given,) = args
        assert stream.index == self._index, "the function is another device's"
        assert isinstance(given, np.ndarray)
        assert given.size == 1
        assert block[1:] == (1, 1)
        if shared_mem > self.most_shared:
            raise CUDADriverError("CUDA_ERROR_INVALID_VALUE: invalid argument")
        kernel = Kernel("kernel", self._text, given.dtype, block[0], shared_mem)
        address = given.__array_interface__["data"][0]
        copied = np.frombuffer(ctypes.string_at(address, given.dtype.itemsize), given.dtype)
        self._machine.launched.append((kernel, grid, copied.tobytes()))
        stream.give(lambda: self._machine.run(kernel, grid, copied))
