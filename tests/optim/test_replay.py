"""A step that was recorded once and is replayed: the bits of eager steps, and the same numbers on the host."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fcdense import optim
from fcdense.backends import Device, device
from fcdense.errors import CaptureError, GraphError
from fcdense.parameter import Parameter
from fcdense.tensor import Tensor
from tests.optim.recorder import Recorder

CPU = device("numpy")
RULES: dict[str, Any] = {
    "sgd": (optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "plain": (optim.SGD, {}),
    "adam": (optim.Adam, {"weight_decay": 0.1}),
    "adamw": (optim.AdamW, {"clip_norm": 2.0}),
    "rmsprop": (optim.RMSprop, {"momentum": 0.5, "clip_norm": 0.5, "weight_decay": 0.1}),
}


def model(on: Device) -> list[Parameter]:
    return [
        Parameter(np.full((5, 3), 0.5, np.float32), on, name="kernel", decay=True),
        Parameter(np.zeros(3, np.float32), on, name="bias", constraint=lambda b: np.maximum(b, -0.01)),
        Parameter(np.ones(7), on, name="wide"),
    ]


def give(parameters: list[Parameter], gradients: list[Any]) -> None:
    """Write the gradients to where they lie."""
    for p, g in zip(parameters, gradients, strict=True):
        if not p.has_grad:
            (p * np.zeros(p.shape, p.dtype)).sum().backward()
        p.grad.array[...] = g


class Pair:
    """The same training twice: eagerly on the CPU, and replayed on a recorder."""

    def __init__(self, kind: Any, options: dict[str, Any], **step: Any) -> None:
        self.recorder = Recorder()
        self.ours, self.theirs = model(Device("cpu", backend=self.recorder)), model(CPU)
        self.replayed, self.eager = kind(self.ours, **options), kind(self.theirs, **options)
        self.step = step

    def renew(self) -> None:
        """Let another recorder stand in: there is one for each recording."""
        self.recorder = Recorder()
        object.__setattr__(self.ours[0].device, "backend", self.recorder)

    def record(self) -> None:
        with self.recorder.recording():
            assert self.replayed.step(**self.step) is True

    def run(self, gradients: list[Any]) -> None:
        give(self.ours, gradients)
        give(self.theirs, gradients)
        if not self.recorder.calls:
            self.record()
        self.recorder.replay()
        self.eager.step(**self.step)
        self.check()

    def check(self) -> None:
        for p, q in zip(self.ours, self.theirs, strict=True):
            assert p.numpy().tobytes() == q.numpy().tobytes(), p.name
        assert repr(self.replayed.state_dict()) == repr(self.eager.state_dict())
        assert repr(self.replayed.gradient_norm) == repr(self.eager.gradient_norm)
        assert repr(self.replayed) == repr(self.eager)


@pytest.fixture(params=RULES)
def rule(request: pytest.FixtureRequest) -> Any:
    return RULES[request.param]


@pytest.fixture
def gradients(rng: np.random.Generator) -> list[list[Any]]:
    sizes = ((5, 3), (3,), (7,))
    drawn = [[rng.standard_normal(size).astype(np.float32) for size in sizes] for _ in range(8)]
    drawn[3][1][2] = np.nan
    drawn[6][2][0] = np.inf
    return drawn


@pytest.mark.parametrize("step", [{}, {"gradient_scale": 0.25}, {"check_finite": True}], ids=str)
def test_replays_give_the_bits_of_eager_steps(rule: Any, step: dict[str, Any], gradients: list[list[Any]]) -> None:
    kind, options = rule
    rate = optim.schedules.ExponentialDecay(0.1, 3, 0.5)
    pair = Pair(kind, {**options, "learning_rate": rate}, **step)
    finite = "check_finite" in step or "clip_norm" in options
    for some in gradients if finite else [g for g in gradients if all(np.isfinite(a).all() for a in g)]:
        pair.run(some)
    assert pair.replayed.skipped_steps == (2 if finite else 0)
    assert pair.replayed.steps == 6


def test_recording_changes_nothing(rule: Any, gradients: list[list[Any]]) -> None:
    kind, options = rule
    pair = Pair(kind, options)
    give(pair.ours, gradients[0])
    before = [p.numpy().copy() for p in pair.ours], repr(pair.replayed.state_dict()), repr(pair.replayed)
    pair.record()
    pair.renew()
    pair.record()
    after = [p.numpy().copy() for p in pair.ours], repr(pair.replayed.state_dict()), repr(pair.replayed)
    assert repr(before) == repr(after)
    assert pair.replayed.gradient_norm is None
    pair.run(gradients[1])


def test_the_calls_alone_advance_the_number_of_the_update(gradients: list[list[Any]]) -> None:
    """As on a device that replays them without its host; only the learning rate stays as it was written."""
    pair = Pair(optim.Adam, {"learning_rate": 0.1, "clip_norm": 1.0})
    give(pair.ours, gradients[0])
    give(pair.theirs, gradients[0])
    pair.record()
    pair.recorder.participants[0].before_replay()
    for some in gradients:
        give(pair.ours, some)
        give(pair.theirs, some)
        for call in pair.recorder.calls:
            call()
        pair.eager.step()
    for p, q in zip(pair.ours[::2], pair.theirs[::2], strict=True):  # the host applies constraints
        assert p.numpy().tobytes() == q.numpy().tobytes()


def test_eager_steps_between_replays(gradients: list[list[Any]]) -> None:
    pair = Pair(optim.Adam, {"learning_rate": optim.schedules.StepDecay(0.1, 2)}, gradient_scale=0.5)
    pair.run(gradients[0])
    for some in gradients[1:3]:
        for parameters, optimizer in ((pair.ours, pair.replayed), (pair.theirs, pair.eager)):
            give(parameters, some)
            assert optimizer.step(gradient_scale=0.125, check_finite=True)
        pair.check()
    pair.run(gradients[4])
    pair.replayed.learning_rate = pair.eager.learning_rate = 0.7
    pair.run(gradients[5])


def test_the_loss_has_to_be_finite_too(gradients: list[list[Any]]) -> None:
    pair = Pair(optim.Adam, {"clip_norm": 1.0})
    give(pair.ours, gradients[0])
    loss = Tensor(np.zeros((1,), np.float32), pair.ours[0].device)
    with pair.recorder.recording():
        pair.replayed.step(check_finite=loss)
    for value, steps, skipped in ((1.0, 1, 0), (np.nan, 1, 1), (-np.inf, 1, 2), (3e38, 2, 2)):
        loss.array[...] = value
        pair.recorder.replay()
        assert (pair.replayed.steps, pair.replayed.skipped_steps) == (steps, skipped)
        assert math.isfinite(pair.replayed.gradient_norm)


def test_a_graph_from_before_a_recorded_step_is_refused(gradients: list[list[Any]]) -> None:
    pair = Pair(optim.SGD, {})
    give(pair.ours, gradients[0])
    with pair.recorder.recording():
        loss = (pair.ours[0] * pair.ours[0]).sum()
        pair.replayed.step()
        with pytest.raises(GraphError, match="changed in place"):
            loss.backward()
    loss = (pair.ours[0] * pair.ours[0]).sum()
    pair.recorder.replay()
    with pytest.raises(GraphError, match="changed in place"):
        loss.backward()


@pytest.mark.parametrize(
    "change",
    [
        lambda pair: pair.replayed.add_parameters([Parameter(np.ones(2), pair.ours[0].device)]),
        lambda pair: pair.replayed.load_state_dict(pair.replayed.state_dict()),
        lambda pair: setattr(pair.ours[1], "requires_grad", False),
        lambda pair: [p.move(device("reference")) for p in pair.ours],
    ],
    ids=["added", "restored", "frozen", "moved"],
)
def test_a_change_since_the_recording(change: Any, gradients: list[list[Any]]) -> None:
    pair = Pair(optim.Adam, {})
    pair.run(gradients[0])
    change(pair)
    before = [p.numpy().copy() for p in pair.ours]
    with pytest.raises(CaptureError, match=r"Adam: .* since the step was captured\. Capture it again"):
        pair.recorder.replay()
    assert repr(before) == repr([p.numpy().copy() for p in pair.ours])
    assert pair.replayed.steps == 1


def test_one_step_of_an_optimizer_in_a_recording(gradients: list[list[Any]]) -> None:
    pair = Pair(optim.Adam, {})
    give(pair.ours, gradients[0])
    with pair.recorder.recording():
        pair.replayed.step()
        with pytest.raises(CaptureError, match=r"Adam\.step\(\) is called twice"):
            pair.replayed.step()


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_steps_in_a_row(clip_norm: float | None, gradients: list[list[Any]]) -> None:
    rate = optim.schedules.ExponentialDecay(0.1, 3, 0.5)
    pair = Pair(optim.Adam, {"learning_rate": rate, "clip_norm": clip_norm})
    give(pair.ours, gradients[0])
    give(pair.theirs, gradients[0])
    pair.record()
    (update,) = pair.recorder.participants
    for parameter in (*pair.ours, *pair.theirs):
        parameter.constraint = None
    rounds = update.rounds(5)
    assert (rounds.go_on is None) == (clip_norm is None)
    for count in (3, 1, 5):
        assert rounds.before(count) == count
        for number in range(count):
            for source, order, target in rounds.feeds:
                target[...] = source[order[number : number + 1]]
            for call in pair.recorder.calls:
                call()
            for norm, norms in rounds.keeps:
                norms[number] = norm
            pair.eager.step()
        rounds.after(count)
        pair.check()
    assert pair.replayed.steps == 9


def test_steps_in_a_row_where_the_host_is_needed(gradients: list[list[Any]]) -> None:
    pair = Pair(optim.SGD, {"learning_rate": 0.1})
    give(pair.ours, gradients[0])
    pair.record()
    (update,) = pair.recorder.participants
    assert update.rounds(9).before(9) == 1
    pair.ours[1].constraint = None
    rounds = update.rounds(9)
    assert rounds.before(9) == 9
    pair.replayed.learning_rate = lambda step: 0.5
    assert rounds.before(9) == 1
    pair.replayed.add_parameters([Parameter(np.ones(2), pair.ours[0].device)])
    with pytest.raises(CaptureError, match="Capture it again"):
        rounds.before(9)
