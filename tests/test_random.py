"""One seed, every random number."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

from fcdense import random
from fcdense.backends.cpu import CpuBackend
from fcdense.errors import ArgumentError
from fcdense.random import RandomState, drawing_aside, manual_seed, random_state


@pytest.fixture(autouse=True)
def _keep_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "_state", RandomState())


def drawn() -> tuple[Any, ...]:
    state = random_state()
    return (*state.generator.random(4), next_stream(), next_stream())


def next_stream() -> tuple[int, int]:
    """(key, number) of the next dropout call."""
    out = np.empty(2, np.uint64)
    CpuBackend().next_stream(random_state().words, out=out)
    key, number = out.tolist()
    return key, number


def test_the_same_seed_draws_the_same_numbers() -> None:
    manual_seed(7)
    first = drawn()
    assert drawn() != first
    manual_seed(7)
    assert drawn() == first


def test_other_seeds_draw_other_numbers() -> None:
    seen = set()
    for seed in (0, 1, 2, 2**31, 2**32, 2**64, 2**200):
        manual_seed(seed)
        seen.add(drawn())
    assert len(seen) == 7


def test_seeds_have_these_numbers() -> None:
    """A release that changes them breaks the runs of its users."""
    manual_seed(0)
    sequence = np.random.SeedSequence(0)
    np.testing.assert_array_equal(random_state().generator.random(3), np.random.default_rng(0).random(3))
    assert next_stream() == (int(sequence.generate_state(1, np.uint64)[0]), 1)


@pytest.mark.parametrize("seed", [np.int64(7), np.uint8(7), np.array(7)])
def test_whole_numbers_of_numpy_are_seeds(seed: Any) -> None:
    manual_seed(7)
    expected = drawn()
    manual_seed(seed)
    assert drawn() == expected


@pytest.mark.parametrize("seed", [-1, 1.0, "7", None, [7], np.float32(7)])
def test_other_seeds_are_refused_and_change_nothing(seed: Any) -> None:
    before = random_state().words.copy()
    with pytest.raises(ArgumentError, match=r"seed is .*; expected a non-negative integer"):
        manual_seed(seed)
    np.testing.assert_array_equal(random_state().words, before)


@pytest.mark.parametrize("has_words", [False, True])
def test_what_one_thread_draws_aside_others_do_not_notice(has_words: bool) -> None:
    manual_seed(7)
    expected = drawn() + drawn()
    manual_seed(7)
    elsewhere: list[Any] = []
    words = random_state().words
    with drawing_aside(has_words=has_words):
        thread = threading.Thread(target=lambda: elsewhere.extend(drawn()))
        thread.start()
        thread.join()
        assert (random_state().words is words) is not has_words
        with drawing_aside(has_words=has_words):
            random_state().generator.random(9)
        if has_words:
            assert drawn() == expected[:6], "they go on alike from where they were"
        else:
            np.testing.assert_array_equal(random_state().generator.random(4), expected[:4])
    assert (*elsewhere, *drawn()) == expected


def test_unseeded_states_differ() -> None:
    assert RandomState().words[0] != RandomState().words[0]
    assert RandomState().generator.random() != RandomState().generator.random()


def test_processes_without_a_seed_differ() -> None:
    command = [sys.executable, "-c", "from fcdense.random import random_state; print(random_state().words[0])"]
    keys = {subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(2)}
    assert len(keys) == 2


def test_a_seed_is_written_in_place() -> None:
    """A recorded step reads these words, whatever seed comes later."""
    words = random_state().words
    manual_seed(3)
    assert random_state().words is words
    assert words.tolist() == [int(np.random.SeedSequence(3).generate_state(1, np.uint64)[0]), 1]
