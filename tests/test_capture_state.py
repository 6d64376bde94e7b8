"""What recording and replaying do to everything around them: errors, threads, memory."""

from __future__ import annotations

import gc
import threading
import tracemalloc
import weakref

import numpy as np
import pytest

import fcdense as fc
from fcdense import tape
from fcdense.backends import recording
from tests.capturing import LABELS, X, adam, network, training
from tests.training import same

# ---- errors leave everything as it was -------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("fails", [2, 3])
def test_errors_while_recording(error, fails):
    model = network(fc.nn.Dropout(0.5))
    model(X[0])
    optimizer = adam(model.parameters())
    calls = 0

    def step(x, y):
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = fc.losses.cross_entropy(model(x), y)
        loss.backward()
        model[0].note = calls
        with fc.no_grad():
            if calls == fails:
                raise error
        optimizer.step()

    captured = fc.capture(step)
    captured(X[0], LABELS[0])
    for parameter in model[0].parameters():
        parameter.zero_grad()
    state = model.state_dict(), optimizer.state_dict(), fc.random.random_state().words.copy(), tape.is_recording()
    flags = [p.has_grad for p in model.parameters()]
    versions = [p.version.number for p in model.parameters()]
    drawn = str(fc.random.random_state().generator.bit_generator.state)
    backends = [device.backend for device in fc.backends.known_devices()]
    with pytest.raises(error):
        captured(X[1], LABELS[1])
    assert same(model.state_dict(), state[0])
    assert optimizer.state_dict()["steps"] == state[1]["steps"]
    assert (fc.random.random_state().words == state[2]).all()
    assert tape.is_recording() is state[3]
    assert [p.has_grad for p in model.parameters()] == flags
    assert [p.version.number for p in model.parameters()] == versions
    assert str(fc.random.random_state().generator.bit_generator.state) == drawn
    assert [device.backend for device in fc.backends.known_devices()] == backends
    assert model[0].note == 1
    del model[0].note
    training(model, optimizer)(fc.tensor(X[1]), fc.tensor(LABELS[1]))


def test_other_threads_compute_while_one_records():
    results, recorded = [], threading.Event()

    def work() -> None:
        for _ in range(20):
            x = fc.tensor(X[0], requires_grad=True)
            loss = (x * 2.0).sum()
            loss.backward()
            results.append((loss.item(), x.grad.numpy()[0, 0]))
        recorded.set()

    def step(x):
        if recording.is_recording() and not recorded.is_set():
            thread = threading.Thread(target=work)
            thread.start()
            assert recorded.wait(10)
            thread.join()
        return x + 1.0

    captured = fc.capture(step)
    for x in X[:3]:
        np.testing.assert_array_equal(captured(x).numpy(), x + 1)
    assert results == [((fc.tensor(X[0]) * 2.0).sum().item(), 2.0)] * 20
    assert len(captured.calls()) == 1


def test_a_graph_of_before_sees_what_replays_wrote():
    w = fc.tensor(np.ones(3), requires_grad=True)
    x = fc.tensor(np.ones(3))

    @fc.capture
    def step():
        x[:] = x * 2.0

    step()
    product = (w * x).sum()
    step()
    with pytest.raises(fc.errors.GraphError, match="changed in place afterwards"):
        product.backward()


# ---- what a replay costs ---------------------------------------------------------------------------------------------


def test_a_steady_state_allocates_nothing():
    model = network(fc.nn.Dense(256, "tanh"), fc.nn.Dense(256, "silu"), fc.nn.LayerNorm())
    x, y = np.tile(X[0], (40, 1)), np.tile(LABELS[0], 40)
    model(x)
    step = fc.capture(training(model, adam(model.parameters(), clip_norm=1.0)))
    for _ in range(5):
        step(x, y)
    gc.collect()
    tracemalloc.start()
    try:
        step(x, y)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(100):
            step(x, y)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 10_000
    assert (
        peak - before < 100_000
    )  # small objects and NumPy's own buffers; an activation of this step has 245,760 bytes


def test_temporary_arrays_share_memory():
    """Ten layers' worth of intermediate results need the memory of two."""

    def step(x):
        for _ in range(10):
            x = x @ x
        return x.sum()

    captured = fc.capture(step)
    square = np.eye(256)
    for _ in range(3):
        assert captured(square).item() == 256.0
    places = {array.__array_interface__["data"][0] for call, _ in captured.calls() for array in call.writes}
    assert len(places) <= 3 + 1


def test_models_and_buffers_go_with_the_capture():
    model = network()
    captured = fc.capture(model)
    captured(X[0])
    captured(X[0])
    gone = weakref.ref(model), weakref.ref(captured.calls()[0][0].writes[0])
    del model, captured
    gc.collect()
    assert gone[0]() is None
    assert gone[1]() is None


def test_an_interrupt_after_the_calls_counts_the_step():
    """Compiled calls do not hear Ctrl-C; the step is made, so that the host has to count it."""
    model = network()
    model(X[0])
    optimizer = adam(model.parameters())
    step = fc.capture(training(model, optimizer))
    for _ in range(3):
        step(X[0], LABELS[0])
    variant, versions = step._variant, [p.version.number for p in model.parameters()]
    run, load = variant.replay.run, variant._load

    def interrupted(*arguments):
        (run if not arguments or load is None else load)(*arguments)
        raise KeyboardInterrupt

    variant._load = interrupted if load is not None else None
    variant.replay.run = interrupted
    with pytest.raises(KeyboardInterrupt):
        step(X[0], LABELS[0])
    variant.replay.run, variant._load = run, load
    assert optimizer.steps == 4
    assert all(p.version.number > before for p, before in zip(model.parameters(), versions, strict=True))
    step(X[0], LABELS[0])
    other = network()
    other(X[0])
    expected = fc.capture(training(other, adam(other.parameters())))
    for _ in range(5):
        expected(X[0], LABELS[0])
    assert same(model.state_dict(), other.state_dict())


def test_half_precision_models():
    model = fc.nn.Sequential(fc.nn.Dense(6, "tanh", dtype="float16"), fc.nn.Dense(3, dtype="float16"))
    x = X[0].astype(np.float16)
    model(x)
    before = model.state_dict()
    outcomes = []
    for captured in (False, True):
        model.load_state_dict(before)
        step = training(model, fc.optim.SGD(model.parameters(), learning_rate=0.1))
        run = fc.capture(step) if captured else lambda x, y, step=step: step(fc.tensor(x), fc.tensor(y))
        losses = [run(x, LABELS[0] % 3).item() for _ in range(4)]
        outcomes.append((losses, model.state_dict()))
    assert outcomes[0][0] == outcomes[1][0]
    assert same(outcomes[0][1], outcomes[1][1])


def test_captured_steps_are_parts_of_the_one_around_them():
    model = network()
    model(X[0])
    inner = fc.capture(lambda x: model(x))
    optimizer = adam(model.parameters())

    def step(x, y):
        optimizer.zero_grad()
        loss = fc.losses.cross_entropy(inner(x), y)
        loss.backward()
        optimizer.step()
        return loss

    alone = network()
    alone(X[0])
    expected = training(alone, adam(alone.parameters()))
    outer = fc.capture(step)
    for x, y in zip(X, LABELS, strict=True):
        assert outer(x, y).item() == expected(fc.tensor(x), fc.tensor(y)).item()
    assert same(model.state_dict(), alone.state_dict())


def test_no_grad_around_a_replay():
    x = fc.tensor(X[0], requires_grad=True)
    step = fc.capture(lambda y: (x * y).sum())
    step(X[1])
    for _ in range(2):
        assert step(X[1]).requires_grad
        with fc.no_grad():
            assert not step(X[1]).requires_grad
