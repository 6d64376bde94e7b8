"""The threads: in step with each other, asleep when idle, alone with their program, gone in a forked child."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

from numba import cfunc, types
from threadpoolctl import threadpool_info

from fcdense import activations
from fcdense.backends.native import NativeBackend
from fcdense.kernels.numba.atomics import fetch_add
from fcdense.kernels.numba.memory import load
from fcdense.kernels.numba.pool import Pool, Program, address, pool

Array = np.ndarray[Any, Any]

SIGNATURE = types.void(*[types.int64] * 4)


@cfunc(SIGNATURE)
def count(args: int, share: int, shares: int, thread: int) -> None:
    """One more at word 8 + share."""
    fetch_add(args, 8 + share, 1)


@cfunc(SIGNATURE)
def compare(args: int, share: int, shares: int, thread: int) -> None:
    """One more at word 0 for every share of the instruction before that has not been done."""
    for other in range(shares):
        if load(np.int64, args, 8 + other) != load(np.int64, args, 8 + share):
            fetch_add(args, 0, 1)


class Table:
    """Phases of units, each of some kernels with their arguments, and a number of shares."""

    def __init__(self, *phases: tuple[tuple[Any, Array, int], ...]) -> None:
        self._steps = []
        words, first = [], 0
        ends = np.cumsum([sum(shares for *_, shares in phase) for phase in phases]).tolist()
        for number, phase in enumerate(phases):
            for kernels, args, shares in phase:
                steps = np.array([(kernel.address, address(args)) for kernel in kernels])
                self._steps.append(steps)
                words.append((address(steps), len(steps), shares, first, ends[number], [*ends, ends[-1]][number + 1]))
                first += shares
        self._units = np.array([*words, (0, 0, 0, first, 0, 0)])

    def of(self, threads: int, rounds: int = 1, go_on: Array | None = None) -> Program:
        """The program of so many threads."""
        return Program(self._units, threads, rounds, go_on)


def table(*rows: tuple[Any, Array, int]) -> Table:
    """Kernel, arguments and shares of each phase."""
    return Table(*[(((kernel,), args, shares),) for kernel, args, shares in rows])


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_instructions_follow_each_other(threads: int) -> None:
    words = np.zeros(32, np.int64)
    program = table(*[(count, words, threads), (compare, words, threads)] * 200)
    runner = Pool()
    for _ in range(5):
        runner.run(program.of(threads))
    np.testing.assert_array_equal(words[8 : 8 + threads], 1000)
    assert words[0] == 0


def test_an_instruction_of_one_share_runs_once() -> None:
    words = np.zeros(32, np.int64)
    program = table((count, words, 1), (count, words, 3), (count, words, 1))
    Pool().run(program.of(3))
    assert words[8:11].tolist() == [3, 1, 1]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_units_of_a_phase_run_side_by_side_and_kernels_of_a_unit_in_turn(threads: int) -> None:
    all_words = [np.zeros(32, np.int64) for _ in range(4)]
    units = [((count, compare) if i % 2 else (count,), words, 1 + i % threads) for i, words in enumerate(all_words)]
    after = [((compare,), words, 1 + i % threads) for i, words in enumerate(all_words)]
    program = Table(*[tuple(units), tuple(after)] * 100)
    runner = Pool()
    for _ in range(5):
        runner.run(program.of(threads))
    for i, words in enumerate(all_words):
        done = [500] * (1 + i % threads) if threads > 1 else [500]
        np.testing.assert_array_equal(words[8 : 8 + len(done)], done)


def test_rounds_end_where_they_are_told_to() -> None:
    words, go_on = np.zeros(32, np.int64), np.ones(())
    program = table((count, words, 2), (count, words, 2))
    assert Pool().run(program.of(2, 7)) == 7
    assert Pool().run(program.of(2, 7, go_on)) == 7
    go_on[()] = 0.0
    assert Pool().run(program.of(2, 7, go_on)) == 1
    assert words[8:10].tolist() == [30, 30]


def test_wakes_up_after_a_rest() -> None:
    words = np.zeros(32, np.int64)
    program = table((count, words, 2))
    runner = Pool()
    for _ in range(3):
        runner.run(program.of(2))
        time.sleep(0.05)
    assert words[8:10].tolist() == [3, 3]


def test_idle_threads_use_no_processor() -> None:
    words = np.zeros(32, np.int64)
    runner = Pool()
    program = table((count, words, 4))
    runner.run(program.of(4))
    time.sleep(0.1)
    start = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - start < 0.05


def test_programs_of_several_python_threads_take_turns() -> None:
    all_words = [np.zeros(32, np.int64) for _ in range(6)]
    programs = [table(*[(count, words, 2), (compare, words, 2)] * 50) for words in all_words]

    def work(program: Table) -> None:
        for _ in range(100):
            pool().run(program.of(2))

    workers = [threading.Thread(target=work, args=(program,)) for program in programs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for words in all_words:
        assert (words[0], *words[8:10]) == (0, 5000, 5000)


def test_settings_of_other_pools_stay() -> None:
    before = threadpool_info()
    words = np.zeros(32, np.int64)
    program = table((count, words, 2))
    pool().run(program.of(2))
    assert threadpool_info() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_starts_threads_of_its_own() -> None:
    words = np.zeros(32, np.int64)
    program = table((count, words, 2))
    pool().run(program.of(2))
    child = os.fork()
    if child == 0:
        pool().run(program.of(2))
        os._exit(0 if words[8:10].tolist() == [2, 2] else 1)
    deadline = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ended[0] == child
    assert os.waitstatus_to_exitcode(ended[1]) == 0


REPLAY_IN_A_CHILD = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before the first use: no thread but this one
import numpy as np
import fcdense as fc
model = fc.nn.Sequential(fc.nn.Dense(32, "relu", in_features=16), fc.nn.Dense(4, in_features=32))
optimizer = fc.optim.SGD(model.parameters(), learning_rate=0.01)

@fc.capture
def step(x, y):
    optimizer.zero_grad()
    fc.losses.mse(model(x), y).backward()
    optimizer.step()

x, y = np.ones((20, 16), "f"), np.ones((20, 4), "f")
for _ in range(3):
    step(x, y)
child = os.fork()
if child == 0:
    filled = [np.full(1 << 20, 7, np.uint8) for _ in range(8)]  # what was freed is in use again
    step(x, y)
    os._exit(0 if all((a == 7).all() for a in filled) else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_a_forked_child_replays_what_its_parent_recorded() -> None:
    subprocess.run([sys.executable, "-c", REPLAY_IN_A_CHILD], check=True, timeout=120)


def test_memory_that_is_not_there_leaves_the_old() -> None:
    alone = Pool()
    alone.reserve(4096, 2)
    before = alone.space.tolist()
    with pytest.raises((MemoryError, ValueError)):
        alone.reserve(1 << 55, 2)
    assert alone.space.tolist() == before
    alone.reserve(1 << 20, 2)
    assert alone.space[1] >= 1 << 20


def test_no_two_threads_have_one_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the start of one is interrupted."""
    start = threading.Thread.start
    begun = []

    def interrupted(thread: threading.Thread) -> None:
        begun.append(thread.name)
        start(thread)
        if len(begun) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    alone = Pool()
    words = np.zeros(32, np.int64)
    program = table((count, words, 3))
    with pytest.raises(KeyboardInterrupt):
        alone.run(program.of(3))
    alone.run(program.of(3))
    assert len(begun) == len(set(begun)) == 2
    assert words[8:11].tolist() == [1, 1, 1]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
def test_a_signal_handler_may_compute() -> None:
    words, inner = np.zeros(32, np.int64), np.zeros(32, np.int64)
    program, other = table((count, words, 2)), table((count, inner, 2))
    before = signal.signal(signal.SIGALRM, lambda *_: pool().run(other.of(2)))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.001)
        deadline = time.monotonic() + 20
        while inner[8] < 20 and time.monotonic() < deadline:
            pool().run(program.of(2))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert inner[8] >= 20


def test_address_is_that_of_the_data() -> None:
    whole = np.arange(100, dtype=np.float32).reshape(10, 10)
    for array in (whole, whole[3:, 5:], whole.T, whole[:, ::-1], np.zeros(()), np.zeros(0), whole.astype(np.int64)):
        assert address(array) == array.__array_interface__["data"][0]


@pytest.mark.parametrize("threads", [1, 2])
def test_denormal_numbers_are_zero_inside_of_a_program_only(threads: int) -> None:
    x, w = np.full((4, 8), 1e-30, np.float32), np.full((8, 8), 1e-10, np.float32)
    y = np.ones((4, 8), np.float32)
    NativeBackend().dense(x, w, None, activations.get("linear"), out=y)
    if platform.machine() in ("x86_64", "AMD64"):
        np.testing.assert_array_equal(y, 0.0)
    words = np.zeros(32, np.int64)
    program = table((count, words, threads))
    pool().run(program.of(threads))
    assert np.float32(1e-30) * np.float32(1e-10) > 0.0
