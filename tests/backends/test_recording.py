"""Recorded calls: what is noted of them, where their arrays lie, and that they do what was recorded."""

from __future__ import annotations

import numpy as np
import pytest

import fcdense as fc
from fcdense import activations
from fcdense.backends import Device, recording
from fcdense.backends.base import Backend
from fcdense.backends.checked import CheckedBackend
from fcdense.backends.cpu import CpuBackend
from fcdense.backends.noted import Operand, alike
from fcdense.backends.recording import Recording
from fcdense.backends.signatures import SIGNATURES
from fcdense.errors import CaptureError
from fcdense.program import trace
from tests.training import same

F32 = np.dtype(np.float32)
ADD = trace(lambda a, b: a + b, 2, name="plus")


def backend() -> Backend:
    return fc.device("cpu").backend


def recorded(*steps) -> list[Recording]:
    made = []
    for step in steps:
        with recording.recording() as one:
            step()
        made.append(one)
    return made


def test_every_primitive_says_what_it_reads_and_writes():
    assert set(SIGNATURES) == set(Backend.primitives())
    written = {name: set(signature.outputs) for name, signature in SIGNATURES.items()}
    assert written["dense"] == {"out", "aux"}
    assert written["act_grad"] == {"out", "db"}
    assert written["softmax_xent"] == written["elementwise_loss"] == {"loss", "dz"}
    assert written["next_stream"] == {"state", "out"}
    assert written["map"] == {"out"}
    assert set(SIGNATURES["map"].inputs) == {"inputs", "scalars", "when"}
    assert all(written.values())


def test_calls_are_noted_and_nothing_is_run():
    x, w, out = np.ones((2, 3), F32), np.ones((3, 4), F32), np.zeros((2, 4), F32)
    total, flag = np.full((4,), 5.0, F32), np.ones(())

    def step() -> None:
        b = backend()
        assert b.is_recording
        b.dense(x, w, None, activations.relu, out=out)
        b.act_grad(out, out, activations.relu, out=out, db=total, mode="accumulate")
        b.map(ADD, (total, total), out=[total], when=flag)

    (made,) = recorded(step)
    assert not backend().is_recording
    assert not out.any()
    dense, act_grad, add = made.finished()
    assert [call.primitive for call in (dense, act_grad, add)] == ["dense", "act_grad", "map"]
    assert dense.arguments.keys() == {"x_bi", "w_io", "b_o", "act", "out", "aux"}
    assert [a is b for a, b in zip(dense.reads, (x, w), strict=True)] == [True, True]
    assert dense.writes[0] is out
    assert any(a is total for a in act_grad.reads)  # it is added to
    assert [a is b for a, b in zip(add.reads, (total, total, flag, total), strict=True)] == [True] * 4
    assert made.backend is backend()
    replay = backend().replay(made.finished())
    replay.run()
    np.testing.assert_array_equal(out, np.full((2, 4), 3.0))
    np.testing.assert_array_equal(total, np.full(4, 2 * (5.0 + 6.0)))
    assert len(replay.describe()) == 3


def test_temporary_arrays_get_places_and_those_that_live_on_keep_theirs():
    x = np.arange(12.0).reshape(3, 4)
    kept = []

    def step() -> None:
        b = backend()
        first = b.workspace.empty((3, 4), x.dtype)
        b.map(ADD, (x, x), out=(first,))
        second = b.workspace.empty((4, 2), x.dtype)
        b.copy(first.T[:, ::-2], out=second)
        third = b.workspace.empty((4, 2), x.dtype)
        b.map(ADD, (second, second[::-1]), out=(third,))
        kept.append(third[1:])

    (made,) = recorded(step)
    calls = made.finished()
    backend().replay(calls).run()
    doubled = (2 * x).T[:, ::-2]
    np.testing.assert_array_equal(kept[0], (doubled + doubled[::-1])[1:])
    assert np.shares_memory(calls[2].writes[0], kept[0])
    strided = calls[1].reads[0]
    assert strided.strides == x.T[:, ::-2].strides
    assert np.shares_memory(strided, calls[0].writes[0])


def test_differences_are_named():
    x, y = np.ones(3), np.ones(3)

    def adds(a=x, scalars=(), count=1, out=None):
        def step() -> None:
            for _ in range(count):
                to = backend().workspace.empty((3,), x.dtype) if out is None else out
                backend().map(ADD, (a, x), scalars, out=(to,))

        return step

    def difference(one, other) -> str:
        first, second = recorded(one, other)
        return first.difference(second)

    assert difference(adds(), adds()) == ""
    assert difference(adds(scalars=(np.nan,)), adds(scalars=(np.nan,))) == ""
    assert difference(adds(), adds(count=3)) == "the step made 1 calls, then 3"
    assert difference(adds(scalars=(1.0, 2.0)), adds(scalars=(1.0, 3.0))) == "`map` (call 0) got scalars 2.0, then 3.0"
    assert difference(adds(scalars=(1.0,)), adds(scalars=())) == "`map` (call 0) got scalars (1.0,), then ()"
    assert "got inputs an array at" in difference(adds(), adds(a=y))
    assert "got out temporary array 0 of shape (3,), float64, then an array at" in difference(adds(), adds(out=y))
    fill = difference(adds(), lambda: backend().fill(0.0, out=x))
    assert fill == "call 0 is `map`, then `fill`"
    assert not alike(1, 1.0)
    assert not alike(Operand(0, (3,), (8,), x.dtype, None, x), 0)


def test_other_devices_and_recordings():
    reference = fc.device("reference").backend
    with pytest.raises(CaptureError, match="on cpu and on reference"), recording.recording():
        backend().fill(0.0, out=np.ones(3))
        fc.device("reference").backend.fill(0.0, out=np.ones(3))
    assert fc.device("reference").backend is reference
    with pytest.raises(CaptureError, match="inside of a step"), recording.recording(), recording.recording():
        pass
    assert not recording.is_recording()
    with recording.recording():
        late = backend()
    out = np.zeros(3)
    late.fill(2.0, out=out)  # who kept it computes as ever
    assert out.tolist() == [2.0] * 3


def test_the_contract_holds_for_every_replayed_call():
    """Overlaps of arrays that share memory one after another would be seen by the checks of a `CheckedBackend`."""
    x = np.random.default_rng(0).normal(size=(6, 5)).astype(F32)
    y = np.array([0, 1, 2, 0, 1, 2])

    def trained(on: Device) -> dict[str, np.ndarray]:
        fc.manual_seed(1)
        with fc.use_device(on):
            layers = fc.nn.Dense(7, "gelu"), fc.nn.LayerNorm(), fc.nn.Dropout(0.3), fc.nn.BatchNorm(), fc.nn.Dense(3)
            model = fc.nn.Sequential(*layers)
            model(x)
            optimizer = fc.optim.Adam(model.parameters(), learning_rate=0.1, clip_norm=1.0)

            @fc.capture
            def step(x, y):
                optimizer.zero_grad()
                loss = fc.losses.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step(check_finite=loss)

            for _ in range(4):
                step(x, y)
            assert step.is_recorded
            return model.state_dict()

    checked = Device("cpu", backend=CheckedBackend(CpuBackend()))
    assert same(trained(checked), trained(Device("cpu", backend=CpuBackend())))


def test_a_recording_that_cannot_begin_leaves_nothing_behind(monkeypatch):
    def fail():
        raise OSError("a driver that is gone")

    monkeypatch.setattr(recording, "known_devices", fail)
    with pytest.raises(OSError, match="driver"), recording.recording():
        pass
    assert not recording.is_recording()


@pytest.mark.parametrize("place", range(6))
def test_ctrl_c_at_its_begin_or_end_leaves_no_device_behind(place, monkeypatch):
    devices = [Device(name, backend=CpuBackend()) for name in ("one", "two", "three")]
    backends = [device.backend for device in devices]
    put, calls = Device.put, []

    def interrupted(device, backend):
        calls.append(device)
        if len(calls) == place + 1:
            raise KeyboardInterrupt
        put(device, backend)

    monkeypatch.setattr(recording, "known_devices", lambda: devices)
    monkeypatch.setattr(Device, "put", interrupted)
    with pytest.raises(KeyboardInterrupt), recording.recording():
        pass
    assert [device.backend for device in devices] == backends
    assert not recording.is_recording()
