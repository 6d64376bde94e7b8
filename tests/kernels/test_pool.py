"""The threads: in step with each other, asleep when idle, alone with their program, gone in a forked child."""

from __future__ import annotations

import os
import platform
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
from fcdense.kernels.numba.pool import Pool, address, pool

Array = np.ndarray[Any, Any]

SIGNATURE = types.void(types.int64, types.int64, types.int64)


@cfunc(SIGNATURE)
def count(args: int, share: int, shares: int) -> None:
    """One more at word 8 + share."""
    fetch_add(args, 8 + share, 1)


@cfunc(SIGNATURE)
def compare(args: int, share: int, shares: int) -> None:
    """One more at word 0 for every share of the instruction before that has not been done."""
    for other in range(shares):
        if load(np.int64, args, 8 + other) != load(np.int64, args, 8 + share):
            fetch_add(args, 0, 1)


def table(*rows: tuple[Any, Array, int]) -> Array:
    """Kernel, arguments and shares of each instruction."""
    words = np.zeros((len(rows) + 2, 4), np.int64)
    for i, (kernel, args, shares) in enumerate(rows):
        words[i, :3] = kernel.address, address(args), shares
        words[i + 1 :, 3] += shares
    return words


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_instructions_follow_each_other(threads: int) -> None:
    words = np.zeros(32, np.int64)
    program = table(*[(count, words, threads), (compare, words, threads)] * 200)
    runner = Pool()
    for _ in range(5):
        runner.run(address(program), 400, threads)
    np.testing.assert_array_equal(words[8 : 8 + threads], 1000)
    assert words[0] == 0


def test_an_instruction_of_one_share_runs_once() -> None:
    words = np.zeros(32, np.int64)
    program = table((count, words, 1), (count, words, 3), (count, words, 1))
    Pool().run(address(program), 3, 3)
    assert words[8:11].tolist() == [3, 1, 1]


def test_wakes_up_after_a_rest() -> None:
    words = np.zeros(32, np.int64)
    program = table((count, words, 2))
    runner = Pool()
    for _ in range(3):
        runner.run(address(program), 1, 2)
        time.sleep(0.05)
    assert words[8:10].tolist() == [3, 3]


def test_idle_threads_use_no_processor() -> None:
    words = np.zeros(32, np.int64)
    runner = Pool()
    program = table((count, words, 4))
    runner.run(address(program), 1, 4)
    time.sleep(0.1)
    start = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - start < 0.05


def test_programs_of_several_python_threads_take_turns() -> None:
    all_words = [np.zeros(32, np.int64) for _ in range(6)]
    programs = [table(*[(count, words, 2), (compare, words, 2)] * 50) for words in all_words]

    def work(program: Array) -> None:
        for _ in range(100):
            pool().run(address(program), 100, 2)

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
    pool().run(address(program), 1, 2)
    assert threadpool_info() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_starts_threads_of_its_own() -> None:
    words = np.zeros(32, np.int64)
    program = table((count, words, 2))
    pool().run(address(program), 1, 2)
    child = os.fork()
    if child == 0:
        pool().run(address(program), 1, 2)
        os._exit(0 if words[8:10].tolist() == [2, 2] else 1)
    deadline = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ended[0] == child
    assert os.waitstatus_to_exitcode(ended[1]) == 0


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
    pool().run(address(program), 1, threads)
    assert np.float32(1e-30) * np.float32(1e-10) > 0.0
