"""Two threads, a forked process, copies: each has its own state, and computes the bits that it would have alone."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fcdense as fc
from tests.bad_input.unchanged import facts, settled, state_of, table

X, Y = table(40, features=7)


def train(trainer: fc.Trainer, seed: int) -> list[bytes]:
    """Some epochs without dropout, whose stream all threads of a process share."""
    generator = np.random.default_rng(seed)
    for _ in range(4):
        rows = generator.permutation(40)[:32]
        trainer.fit(X[rows], Y[rows], batch_size=8, verbose=False)
    return [array.tobytes() for array in trainer.model.state_dict().values()]


def fresh(width: int = 65) -> fc.Trainer:
    layers = fc.nn.Dense(width, "gelu"), fc.nn.BatchNorm(), fc.nn.Dense(width, "silu"), fc.nn.Dense(3)
    return settled(*layers, features=7)


def in_threads(functions: list[Callable[[], Any]]) -> list[Any]:
    results: list[Any] = [None] * len(functions)
    gate = threading.Barrier(len(functions))

    def run(number: int) -> None:
        gate.wait()
        try:
            results[number] = functions[number]()
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_threads_that_train_have_the_bits_of_one_alone():
    alone = [train(fresh(width), seed) for seed, width in enumerate((65, 65, 130, 33))]
    trainers = [fresh(width) for width in (65, 65, 130, 33)]
    together = in_threads([lambda t=t, s=s: train(t, s) for s, t in enumerate(trainers)])
    assert together == alone


def test_threads_that_predict_with_one_model():
    trainer = fresh()
    expected = trainer.predict(X)
    found = in_threads([lambda: [trainer.predict(X) for _ in range(30)] for _ in range(4)])
    assert all(np.array_equal(y, expected) for several in found for y in several)


def test_modes_and_devices_belong_to_their_thread():
    """`no_grad` and `use_device` in one thread are nothing to another."""
    gate = threading.Barrier(2)

    def inside() -> tuple[bool, str]:
        with fc.no_grad(), fc.use_device("reference"):
            gate.wait()
            gate.wait()
            return (fc.tensor([1.0], requires_grad=True) * 2).requires_grad, str(fc.current_device())

    def outside() -> tuple[bool, str]:
        gate.wait()
        found = (fc.tensor([1.0], requires_grad=True) * 2).requires_grad, str(fc.current_device())
        gate.wait()
        return found

    assert in_threads([inside, outside]) == [(False, "reference"), (True, str(fc.current_device()))]


def child(trainer: fc.Trainer, queue: Any) -> None:
    fc.manual_seed(3)
    queue.put(train(trainer, seed=1))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_goes_on_with_the_same_bits():
    trainer = fresh()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=child, args=(trainer, queue))
    before = facts(trainer)
    process.start()
    found = queue.get()
    process.join()
    assert process.exitcode == 0
    assert facts(trainer) == before
    fc.manual_seed(3)
    assert found == train(trainer, seed=1)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))], ids=["deepcopy", "pickle"])
def test_a_copy_of_a_trainer_goes_on_alone(copied):
    """Model, optimizer, history and the order of the rows; the copy's optimizer trains the copy's model."""
    trainer = settled(fc.nn.Dense(4, "tanh"), fc.nn.BatchNorm(), fc.nn.Dropout(0.3), fc.nn.Dense(3), features=7)
    twin = copied(trainer)
    before = state_of(trainer)
    fc.manual_seed(5)
    twin.fit(X, Y, epochs=2, batch_size=8, validation_split=0.2, verbose=False)
    assert state_of(trainer) == before
    fc.manual_seed(5)
    trainer.fit(X, Y, epochs=2, batch_size=8, validation_split=0.2, verbose=False)
    assert state_of(trainer) == state_of(twin)
    assert trainer.history["loss"] == twin.history["loss"]


def test_a_tensor_inside_a_graph_is_not_copied():
    y = settled().model(table()[0])
    for clone in (copy.deepcopy, pickle.dumps):
        with pytest.raises(fc.errors.GraphError, match=r"part of a graph cannot be copied or pickled; use detach\(\)"):
            clone(y)
    assert copy.deepcopy(y.detach()).numpy().tobytes() == y.numpy().tobytes()
