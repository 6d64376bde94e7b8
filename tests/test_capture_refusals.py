"""What a captured step refuses, and the sentences that say so."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import fcdense as fc
from fcdense import changes
from fcdense.backends import recording
from fcdense.errors import CaptureError, DTypeError, GraphError
from tests.capturing import LABELS, X, adam, network, training
from tests.training import same


def refused(step, message: str, *arguments) -> CaptureError:
    """The error of the second call; nothing has changed."""
    captured = fc.capture(step)
    captured(*arguments)
    backends = [device.backend for device in fc.backends.known_devices()]
    with pytest.raises(CaptureError, match=message) as caught:
        captured(*arguments)
    assert [device.backend for device in fc.backends.known_devices()] == backends
    assert changes.witness is None
    assert not recording.is_recording()
    assert not captured.is_recorded
    return caught.value


READS = {
    "item": lambda x: x.sum().item(),
    "numpy": lambda x: x.numpy(),
    "float": lambda x: float(x.sum()),
    "bool": lambda x: bool(x.sum() > 0),
    "array": lambda x: np.asarray(x),
    "function": lambda x: np.linalg.norm(np.asarray(x)),
    "print": lambda x: f"{x}",
    "to": lambda x: x.to("reference"),
    "dlpack": lambda x: np.from_dlpack(x),
}


@pytest.mark.parametrize("name", READS)
def test_reading_values_on_the_host(name):
    def step(x):
        READS[name](x)
        return x * 2.0

    refused(step, "read on the host while a step was recorded", X[0])


@pytest.mark.parametrize(
    "make",
    [lambda x: fc.tensor(X[1]) + x, lambda x: x + X[1], lambda x: x[np.array([0, 1])]],
    ids=["tensor", "operand", "index"],
)
def test_arrays_of_the_host(make):
    refused(make, "from an array of the host", X[0])


def test_tensors_that_were_there_before_are_no_arrays_of_the_host():
    before = fc.tensor(X[1])
    captured = fc.capture(lambda x: x + before)
    for x in X:
        np.testing.assert_array_equal(captured(x).numpy(), x + X[1])
    before[:] = 0.0
    np.testing.assert_array_equal(captured(X[0]).numpy(), X[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x, n: x * float(n), r"`map` \(call 0\) got scalars 2\.0, then 3\.0\. "),
        (lambda x, n: x * np.float32(n), r"got inputs the number 2\.0, then the number 3\.0"),
        (lambda x, n: (x + 1.0) if n % 2 else (x @ x.T), r"call 0 is `matmul`, then `map`"),
        (lambda x, n: [x * 1.0 for _ in range(n)], r"made 2 calls, then 3"),
        (lambda x, n: x[n % 2 :] + 1.0, "got inputs an array at .* of shape"),
        (lambda x, n: np.exp(x) if n % 2 else np.tanh(x), "got program tanh, then exp"),
    ],
    ids=["number", "array", "primitive", "loop", "slice", "function"],
)
def test_numbers_of_python_that_change(make, message):
    count = 0

    def step(x):
        nonlocal count
        count += 1
        return make(x, count)

    refused(step, message, X[0])


def test_what_a_step_remembers():
    memory = []

    def step(x):
        y = x + memory[-1] if memory else x + 1.0
        memory.append(y)
        return y

    refused(step, "got inputs an array at", X[0])


def test_attributes_that_every_call_changes():
    class Counting(fc.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls, self.seen = 0, []

        def forward(self, x):
            self.calls += 1
            self.seen.append(self.calls)
            return x * 2.0

    model = fc.nn.Sequential(Counting())
    refused(lambda x: model(x), "changes `calls` of layer 'layers.0' each time", X[0])
    assert (model[0].calls, model[0].seen) == (1, [1])  # the first call computed, the recordings were taken back


def test_replays_inside_of_a_captured_step():
    inner = fc.capture(lambda x: x * 2.0)
    inner(X[0])
    refused(lambda x: inner.replay() + x, "inside of a step that is being captured", X[0])


def test_gradients_do_not_go_through_a_replay():
    """A layer whose forward pass is captured would otherwise stop learning at the second batch, in silence."""
    below, above = network(), fc.nn.Dense(3, in_features=3)
    below(X[0])
    forward = fc.capture(lambda x: below(x))
    fc.losses.cross_entropy(above(forward(X[0])), LABELS[0]).backward()
    assert below[0].kernel.has_grad
    for parameter in (*below.parameters(), *above.parameters()):
        parameter.grad = None
    for _ in range(2):
        loss = fc.losses.cross_entropy(above(forward(X[0])), LABELS[0])
        with pytest.raises(GraphError, match=r"outside of the step, and a replay has none\. Call backward\(\) inside"):
            loss.backward()
        assert not any(parameter.has_grad for parameter in above.parameters())
    with fc.no_grad():
        assert not forward(X[0]).requires_grad
    assert forward(X[0]).requires_grad


def test_layers_that_are_not_built():
    model = network()
    step = fc.capture(lambda x: model(x))
    step(X[0])
    step(X[0])
    model[1] = fc.nn.Dense(4)
    with pytest.raises(CaptureError, match=r"Dense 'layers\.1' has no parameters yet.* call it once before"):
        step(X[0])
    refused(lambda x: fc.nn.Dense(3)(x), "has no parameters yet.*Make the model outside of the step", X[0])


def test_steps_that_compute_nothing():
    refused(lambda x: None, "nothing to replay", X[0])
    refused(lambda x: 3.0, "returned an object of type float", X[0])
    refused(lambda x: (x * 2.0, True), "returned an object of type bool", X[0])


def test_two_devices():
    here, there = fc.tensor(X[0]), fc.tensor(X[0], device="reference")
    refused(lambda x: (here + x, there * 2.0), "computes on cpu and on reference", X[0])


def test_options_of_cross_entropy_that_need_the_host():
    for options in ({"label_smoothing": 0.1}, {"ignore_index": 0}, {"class_weight": [1, 2, 3]}):
        refused(
            lambda z, t, options=options: fc.losses.cross_entropy(z, t, **options),
            f"cross_entropy with {next(iter(options))} looks at its target",
            X[0, :, :3],
            LABELS[0],
        )


ARGUMENTS = [
    ((X[0][:4], 2.0), r"Argument 0 has shape \(4, 5\), captured was \(6, 5\).*drop_last=True"),
    ((X[0].astype(np.float64), 2.0), "Argument 0 has dtype float64, captured was float32"),
    ((LABELS[0], 2.0), "Argument 0 has shape"),
    ((X[0], 3.0), r"Argument 1 is 3\.0, captured was 2\.0"),
    ((X[0], 2), "Argument 1 is 2, captured was 2.0"),
    ((X[0], X[0]), "Argument 1 is array"),
    ((None, 2.0), "Argument 0 is None, captured was an array"),
    ((X[0],), "captured with 2 arguments; given are 1"),
    ((X[0], 2.0, 1), "captured with 2 arguments; given are 3"),
]


@pytest.mark.parametrize(("arguments", "message"), ARGUMENTS)
def test_arguments_that_differ(arguments, message):
    captured = fc.capture(lambda x, factor: x * factor)
    for _ in range(3):
        result = captured(X[0], 2.0)
    before = captured.inputs[0].numpy().copy()
    with pytest.raises(CaptureError, match=message):
        captured(*arguments)
    np.testing.assert_array_equal(captured.inputs[0].numpy(), before)
    np.testing.assert_array_equal(captured(X[0], 2.0).numpy(), X[0] * 2)
    assert captured(X[0], 2.0) is result


def test_other_arguments_that_are_refused():
    add = fc.capture(lambda x, y: x + y)
    rows = X[0]
    with pytest.raises(CaptureError, match="Arguments 0 and 1 are one array"):
        add(rows, rows)
    add(X[0], X[1])
    with pytest.raises(CaptureError, match="Argument 1 is the buffer that argument 0 is copied into"):
        add(X[1], add.inputs[0])
    with pytest.raises(CaptureError, match="Argument 1 lies on reference"):
        add(X[0], fc.tensor(X[1], device="reference"))
    parameter = network(in_features=5)[0].kernel
    for given in (parameter, parameter * 2.0):
        with pytest.raises(CaptureError, match="so no gradient would arrive"):
            fc.capture(lambda x: x * 2.0)(given)
    with pytest.raises(CaptureError, match="Argument x is dict"):
        fc.capture(lambda x: x * 2.0)(x={})
    with pytest.raises(CaptureError, match="Call the captured step once"):
        fc.capture(lambda x: x * 2.0).replay()
    with pytest.raises(fc.errors.ArgumentError, match="needs a function"):
        fc.capture(3)


def test_keywords_integers_and_lists():
    captured = fc.capture(lambda x, *, y=None, mode="sum": getattr(x, mode)() + (0.0 if y is None else y.sum()))
    for number in range(4):
        rows = [[float(number), 2.0]]
        assert captured(rows, mode="mean", y=np.ones(3, np.float32)).item() == number / 2 + 1 + 3
    with pytest.raises(CaptureError, match="Argument mode is 'sum', captured was 'mean'"):
        captured([[1.0, 2.0]], mode="sum", y=np.ones(3, np.float32))
    count = fc.capture(lambda n: n.astype("float32") * 2.0)
    for dtype in ("int32", "int64", "int8", "uint8"):
        assert count(np.array([3], dtype)).item() == 6.0
    assert count.inputs[0].dtype == np.int64
    pick = fc.capture(lambda x, y: fc.losses.cross_entropy(x, y))
    for _ in range(3):  # uint64 does not fit int64
        loss = pick(np.zeros((2, 4), np.float32), np.array([3, 1], np.uint64)).item()
        assert loss == pytest.approx(np.log(4.0), rel=1e-6)
    with pytest.raises(DTypeError, match="Argument 0 is complex"):
        count(np.array([1j]))


def test_without_arguments():
    x = fc.tensor(np.zeros(3))

    @fc.capture
    def step():
        x[:] = x + 1.0

    for _ in range(5):
        step()
    assert x.numpy().tolist() == [5.0] * 3


def test_parameters_that_move_afterwards():
    model = network()
    model(X[0])
    captured = fc.capture(lambda x: model(x))
    captured(X[0])
    captured(X[0])
    optimizer = adam(model.parameters())  # which packs them
    with pytest.raises(CaptureError, match=r"Parameter 'layers\.0\.kernel' has moved .*fc\.capture"):
        captured(X[0])
    step = fc.capture(training(model, optimizer))
    step(X[0], LABELS[0])
    step(X[0], LABELS[0])
    model.to("reference")
    with pytest.raises(CaptureError, match="has moved"):
        step(X[0], LABELS[0])


def test_parameters_that_an_optimizer_was_given_since():
    model, extra = network(), fc.nn.Dense(2, in_features=3)
    model(X[0])
    optimizer = adam(model.parameters())
    step = fc.capture(training(model, optimizer))
    step(X[0], LABELS[0])
    step(X[0], LABELS[0])
    before, count = model.state_dict(), len(step.calls())
    optimizer.add_parameters(extra.parameters())
    step(X[0], LABELS[0])
    assert len(step.calls()) == count
    assert optimizer.steps == 3
    assert not same(model.state_dict(), before)


def test_a_call_from_another_thread_while_it_runs():
    inside, go_on = threading.Event(), threading.Event()
    captured = fc.capture(lambda x: x * 2.0)
    captured(X[0])
    captured(X[0])

    class Waiting:
        """What runs while the other thread calls."""

        runs = 0

        def run(self):
            inside.set()
            go_on.wait(10)

    replay, captured._variant.replay = captured._variant.replay, Waiting()
    first = threading.Thread(target=captured.replay)
    first.start()
    inside.wait(10)
    with pytest.raises(CaptureError, match="in another thread"):
        captured(X[1])
    go_on.set()
    first.join()
    captured._variant.replay = replay
    np.testing.assert_array_equal(captured(X[1]).numpy(), X[1] * 2)
