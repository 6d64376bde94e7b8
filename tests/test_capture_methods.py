"""Captured methods: a step for each object, whatever class, copy or decorator it comes by."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest

import fcdense as fc
from fcdense.errors import ArgumentError, CaptureError
from tests.capturing import LABELS, X, adam, network, training
from tests.training import same


class Task:
    """A model and its training."""

    def __init__(self, model: fc.nn.Module) -> None:
        self.model = model
        self.model(X[0])
        self.optimizer = adam(model.parameters())

    @fc.capture
    def step(self, x, y):
        return training(self.model, self.optimizer)(x, y)


class Halved(Task):
    """Overrides the step by another one, and uses the first."""

    @fc.capture
    def step(self, x, y):
        return 0.5 * fc.losses.cross_entropy(self.model(x), y)


def test_methods():
    first, second, alone = (Task(network()) for _ in range(3))
    expected = training(alone.model, alone.optimizer)
    for x, y in zip(X[:4], LABELS[:4], strict=True):
        assert first.step(x, y).item() == expected(fc.tensor(x), fc.tensor(y)).item()
    assert first.step.is_recorded
    assert not second.step.is_recorded
    assert not Task.step.is_recorded
    assert second.step(X[0], LABELS[0]).item() != first.step(X[0], LABELS[0]).item()


def test_methods_of_a_subclass():
    task = Halved(network())
    whole = super(Halved, task).step
    half = task.step(X[0], LABELS[0]).item()
    assert half == 0.5 * whole(X[0], LABELS[0]).item()
    assert repr(whole) == "<captured step: not recorded yet>"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda task: pickle.loads(pickle.dumps(task))])
def test_methods_of_a_copy(copied):
    task = Task(network())
    for _ in range(3):
        task.step(X[0], LABELS[0])
    other = copied(task)
    assert not other.step.is_recorded
    for _ in range(3):
        assert other.step(X[1], LABELS[1]).item() == task.step(X[1], LABELS[1]).item()
    assert same(other.model.state_dict(), task.model.state_dict())


def test_an_object_and_its_captured_method_go_together():
    task = Task(network())
    for _ in range(3):
        task.step(X[0], LABELS[0])
    gone = weakref.ref(task)
    del task
    gc.collect()
    assert gone() is None


class Shadowed(Task):
    """Another class of the same name as its base, as in `class Model(other.Model)`."""

    @fc.capture
    def step(self, x, y):
        return -super().step(x, y)


Shadowed.__qualname__ = Task.__qualname__


def test_a_subclass_of_the_same_name():
    task = Shadowed(network())
    below = super(Shadowed, task).step
    for _ in range(3):
        loss = task.step(X[0], LABELS[0]).item()
        assert loss < 0.0 < below(X[0], LABELS[0]).item()


def test_a_shallow_copy_has_steps_of_its_own():
    task = Task(network())
    for _ in range(3):
        task.step(X[0], LABELS[0])
    before, other = task.model.state_dict(), copy.copy(task)
    other.model = network()
    other.model(X[0])
    other.optimizer = adam(other.model.parameters())
    for _ in range(3):
        other.step(X[0], LABELS[0])
    assert same(task.model.state_dict(), before)
    assert other.optimizer.steps == 3


class Renamed(Task):
    """Methods under other names than they were defined with."""

    @fc.capture
    def __private(self, x, y):
        return fc.losses.cross_entropy(self.model(x), y)

    def plain(self, x, y):
        return fc.losses.cross_entropy(self.model(x), y)

    go = fc.capture(plain)

    def run(self, x, y):
        return self.__private(x, y)


@pytest.mark.parametrize("name", ["run", "go"])
def test_methods_of_a_copy_under_other_names(name):
    task = Renamed(network())
    getattr(task, name)(X[0], LABELS[0])
    other = pickle.loads(pickle.dumps(task))
    for _ in range(3):
        assert getattr(other, name)(X[0], LABELS[0]).item() == getattr(task, name)(X[0], LABELS[0]).item()


class Override(Task):
    def step(self, x, y):
        return super().step(x, y)


def test_a_copy_whose_class_overrides_the_captured_method():
    task = Override(network())
    for _ in range(3):
        task.step(X[0], LABELS[0])
    other = pickle.loads(pickle.dumps(task))
    assert other.step(X[0], LABELS[0]).item() == task.step(X[0], LABELS[0]).item()


class Net(fc.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = fc.nn.Dense(3, in_features=5)
        self.scale = 1.0

    def forward(self, x):
        return self.dense(x)

    @fc.capture
    def infer(self, x):
        return self.dense(x) * self.scale


def test_attributes_of_the_module_itself_are_looked_at():
    net = Net()
    whole = [net.infer(X[0]).numpy() for _ in range(3)][-1].copy()
    net.scale = 2.0
    np.testing.assert_array_equal(net.infer(X[0]).numpy(), 2.0 * whole)
    net.dense = fc.nn.Dense(3, in_features=5)
    np.testing.assert_array_equal(net.infer(X[0]).numpy(), 2.0 * net(X[0]).numpy())


def test_a_method_that_is_captured_anew():
    net = Net()
    for _ in range(3):
        net.infer(X[0])
    adam(net.parameters())  # which moves them
    with pytest.raises(CaptureError, match=r"has moved .* fc\.capture\(step\)"):
        net.infer(X[0])
    net.infer = fc.capture(net.infer)
    for _ in range(3):
        np.testing.assert_array_equal(net.infer(X[0]).numpy(), net(X[0]).numpy())


def test_a_method_that_a_class_is_given_later():
    class Later(Task):
        """Without a captured method of its own."""

    Later.loss = fc.capture(lambda self, x: self.model(x))
    tasks = [Later(network()) for _ in range(2)]
    for _ in range(3):
        assert all(same({"": task.loss(X[0]).numpy()}, {"": task.model(X[0]).numpy()}) for task in tasks)


class Slots:
    __slots__ = ("model",)

    @fc.capture
    def step(self, x):
        return x * 2.0


def test_objects_without_a_place_for_a_step():
    with pytest.raises(CaptureError, match=r"needs an object with a __dict__.*__slots__"):
        Slots().step(X[0])


def test_decorators_above_it():
    class Wrong(Task):
        loss = fc.no_grad()(Task.step)

    with pytest.raises(CaptureError, match=r"Argument 0 is Wrong.*fc\.capture is the uppermost one"):
        Wrong(network()).loss(X[0], LABELS[0])


def test_what_runs_after_the_call_is_not_captured():
    def batches():
        yield 1

    async def step(x):
        return x

    for function in (batches, step):
        with pytest.raises(ArgumentError, match="whose code runs when it is called"):
            fc.capture(function)
