"""The threads that run compiled programs, and the loop that each of them is in.

A program is a table of units. A unit is some kernels that follow each other, and a number of shares: each share is that
part of the work of all of its kernels which no other share waits for. Units of one phase run side by side, phases one
after another. Whichever thread comes first takes the next share, so that a thread which the system took off its core is
not waited for. The threads are ours alone: they look for work for a short while after a program, since the next one
usually follows, and then sleep.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import types

from fcdense.kernels.numba import compiled
from fcdense.kernels.numba.atomics import acquire, exchange, fetch_add, pause, release
from fcdense.kernels.numba.calls import call_kernel
from fcdense.kernels.numba.compiled import jitted
from fcdense.kernels.numba.denormals import flush_denormals, restore
from fcdense.kernels.numba.memory import load

# Words of a unit: the address of its kernels and their arguments, two words each; their number; the number of its
# shares, and of all shares before it, until the end of its phase, and until the end of the next phase.
STEPS, COUNT, SHARES, FIRST, STOP, NEXT = range(6)
UNIT = 6

# Words of a program.
UNITS, UNIT_COUNT, PROGRAM_THREADS, ROUNDS, GO_ON = range(5)

# Words of the state; those that threads wrestle for lie on cache lines of their own. Shares are counted through all
# programs: whoever is late finds the numbers of its program used up, and touches nothing of the next one.
POSTED, TABLE, BEGIN, END, THREADS = range(5)
TICKET, READY, DONE, SLEEPERS, MUTEX, CONDITION = 16, 32, 48, 64, 80, 96
WORDS = 112

SPINS = 20_000
"""Looks at the state before a thread lies down: about 0.2 ms, longer than the Python between two steps takes."""

PATIENCE = 1_000
"""Looks for the next share before the core is offered to others."""

Number = ctypes.c_int64

_mutex_init = types.ExternalFunction("pthread_mutex_init", types.int32(types.int64, types.int64))
_condition_init = types.ExternalFunction("pthread_cond_init", types.int32(types.int64, types.int64))
_lock = types.ExternalFunction("pthread_mutex_lock", types.int32(types.int64))
_unlock = types.ExternalFunction("pthread_mutex_unlock", types.int32(types.int64))
_wait = types.ExternalFunction("pthread_cond_wait", types.int32(types.int64, types.int64))
_broadcast = types.ExternalFunction("pthread_cond_broadcast", types.int32(types.int64))
_yield = types.ExternalFunction("sched_yield", types.int32())


@jitted()
def initialise(state: int) -> None:
    """Make the mutex and the condition variable."""
    _mutex_init(state + 8 * MUTEX, 0)
    _condition_init(state + 8 * CONDITION, 0)


@jitted()
def compute(unit: int, share: int, shares: int, thread: int) -> None:
    """A share of the unit at an address."""
    steps = load(np.int64, unit, STEPS)
    for i in range(load(np.int64, unit, COUNT)):
        call_kernel(load(np.int64, steps, 2 * i), load(np.int64, steps, 2 * i + 1), share, shares, thread)


@jitted()
def work(state: int, table: int, begin: int, end: int, thread: int) -> None:
    """Take shares until there are none. The table may be read only while a share of it is held."""
    unit, looks = table, 0
    while True:
        ticket = acquire(state, TICKET)
        if ticket >= end:
            return
        if ticket >= acquire(state, READY):
            pause()
            looks += 1
            if looks > PATIENCE:
                _yield()
            continue
        if not exchange(state, TICKET, ticket, ticket + 1):
            continue
        looks = 0
        while load(np.int64, unit, UNIT + FIRST) <= ticket - begin:
            unit += 8 * UNIT
        share, shares = ticket - begin - load(np.int64, unit, FIRST), load(np.int64, unit, SHARES)
        stop, ready = begin + load(np.int64, unit, STOP), begin + load(np.int64, unit, NEXT)
        compute(unit, share, shares, thread)
        if fetch_add(state, DONE, 1) + 1 == stop and stop != end:  # after the last phase READY is the next program's
            release(state, READY, ready)


@jitted()
def run_together(state: int, table: int, count: int, threads: int) -> None:
    """Run a program once, with `threads` - 1 threads of the pool."""
    begin = acquire(state, END)
    end = begin + load(np.int64, table, UNIT * count + FIRST)
    posted = acquire(state, POSTED)
    release(state, POSTED, posted + 1)  # odd: being written
    release(state, TABLE, table)
    release(state, BEGIN, begin)
    release(state, END, end)
    release(state, THREADS, threads)
    release(state, READY, begin + load(np.int64, table, STOP))
    release(state, POSTED, posted + 2)
    if acquire(state, SLEEPERS) > 0:
        _lock(state + 8 * MUTEX)
        _broadcast(state + 8 * CONDITION)
        _unlock(state + 8 * MUTEX)
    work(state, table, begin, end, 0)
    looks = 0
    while acquire(state, DONE) != end:
        pause()
        looks += 1
        if looks > PATIENCE:
            _yield()


@jitted()
def run(state: int, program: int) -> int:
    """Run a program as often as it says; how often it ran."""
    before = flush_denormals()
    table, count = load(np.int64, program, UNITS), load(np.int64, program, UNIT_COUNT)
    threads, go_on = load(np.int64, program, PROGRAM_THREADS), load(np.int64, program, GO_ON)
    done = 0
    while done < load(np.int64, program, ROUNDS):
        if threads == 1:
            for i in range(count):
                compute(table + 8 * UNIT * i, 0, 1, 0)
        else:
            run_together(state, table, count, threads)
        done += 1
        if go_on != 0 and load(np.float64, go_on, 0) == 0.0:
            break
    restore(before)
    return done


@jitted()
def serve(state: int, thread: int, seen: int) -> None:
    """What a thread of the pool does for ever."""
    flush_denormals()
    while True:
        looks = 0
        while acquire(state, POSTED) == seen and looks < SPINS:
            pause()
            looks += 1
        if acquire(state, POSTED) == seen:
            _lock(state + 8 * MUTEX)
            fetch_add(state, SLEEPERS, 1)
            while acquire(state, POSTED) == seen:
                _wait(state + 8 * CONDITION, state + 8 * MUTEX)
            fetch_add(state, SLEEPERS, -1)
            _unlock(state + 8 * MUTEX)
        posted = acquire(state, POSTED)
        if posted % 2 == 0:
            table, begin, end = acquire(state, TABLE), acquire(state, BEGIN), acquire(state, END)
            takes_part = thread < acquire(state, THREADS)
            if acquire(state, POSTED) == posted:  # all of it belongs to one program
                seen = posted
                if takes_part:
                    work(state, table, begin, end, thread)


@cache
def _entry(function: Any) -> Callable[..., int]:
    """A function of this file for Python, which calls it without its lock."""
    kernel = compiled.load(compiled.call_source(__name__, function.__name__))
    count = function.py_func.__code__.co_argcount
    return ctypes.CFUNCTYPE(Number, *[Number] * count)(kernel.address)


class Program:
    """What a pool runs.

    Parameters
    ----------
    units : array of int64, shape (U + 1, 6)
        The words of the units, and a last row that holds the number of all shares as FIRST.
    threads : int
        How many take part at most.
    rounds : int
        How often all units run.
    go_on : array of float64, shape (), optional
        Once it holds 0 after a round, there is no further one.
    """

    def __init__(self, units: Any, threads: int, rounds: int = 1, go_on: Any = None) -> None:
        self.threads = threads
        self._arrays = units, go_on
        words = address(units), len(units) - 1, threads, rounds, 0 if go_on is None else address(go_on)
        self._words = np.array(words, np.int64)
        self.place = Number(address(self._words))


class Pool:
    """Threads of this process, and the scratch memory of each.

    One program runs at a time; others wait for it. Threads start with the first program that wants them.
    """

    def __init__(self) -> None:
        self._words = np.zeros(WORDS, np.int64)
        self.state = int(self._words.ctypes.data)
        self._run, self._state = _entry(run), Number(self.state)
        self.forget()
        self._size = self._owners = 0
        self.space = np.zeros(2, np.int64)
        """Address of the scratch memory of the first thread, and bytes of each thread's. Kernels know its place."""

    def forget(self) -> None:
        """Begin with the calling thread alone; a forked child has no other. What programs know of the pool stays."""
        self.lock = threading.RLock()  # a signal handler that computes runs on a thread that holds it
        self._words[:] = 0
        _entry(initialise)(self.state)
        self._started = 1

    def reserve(self, size: int, threads: int) -> None:
        """Have at least `size` bytes of scratch memory for each of so many threads."""
        if size <= self._size and threads <= self._owners:
            return
        with self.lock:
            size = max(self._size, (size + 4095) // 4096 * 4096)
            owners = max(self._owners, threads)
            space = np.empty(size * owners + 4096, np.uint8)
            self._space, self._size, self._owners = space, size, owners
            self.space[:] = (address(space) + 4095) // 4096 * 4096, size

    def run(self, program: Program) -> int:
        """Run a program as often as it says; how often it ran."""
        with self.lock:
            if program.threads > self._started:
                self._start(program.threads)
            return self._run(self._state, program.place)

    def _start(self, threads: int) -> None:
        # A new thread takes no part in programs of the past; the lock keeps others from posting one meanwhile.
        seen = int(self._words[POSTED])
        while self._started < threads:
            thread = self._started
            self._started += 1  # before it starts: no two threads have one number, whatever is raised meanwhile
            threading.Thread(target=self._serve, args=(thread, seen), name=f"fcdense-{thread}", daemon=True).start()

    def _serve(self, thread: int, seen: int) -> None:
        """Never returns, so that the state lives as long as its threads."""
        _entry(serve)(self.state, thread, seen)


_pools: list[Pool] = []


def pool() -> Pool:
    """The process's pool."""
    if not _pools:
        _pools.append(Pool())
    return _pools[0]


def _forget() -> None:
    for one in _pools:
        one.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@cache
def available_threads() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


_DATA = object.__basicsize__
"""Where NumPy's array object holds the address of its data: after the header of a Python object (ndarraytypes.h)."""


def address(array: Any) -> int:
    """Where an array begins: what ``array.ctypes.data`` says, in a tenth of its 1.2 us."""
    return int(ctypes.c_int64.from_address(id(array) + _DATA).value)
