"""Replays made of NumPy calls: the bits of the primitives, on the values of the moment, in memory of their own."""

from __future__ import annotations

import threading
import tracemalloc
from typing import Any

import numpy as np
import pytest

from fcdense import activations
from fcdense.backends.cpu import CpuBackend
from fcdense.backends.native import NativeBackend
from fcdense.backends.numpy_replay import NumpyReplay, Temporaries
from fcdense.backends.replay import Call
from fcdense.program import trace
from tests.backends import cases
from tests.backends.calls import draw
from tests.backends.cases import CASES, Case, Out

Values = dict[str, Any]
BACKEND = CpuBackend()
PLUS = trace(lambda x, s: x + s, 1, 1, name="plus")


def outputs_of(case: Case, values: Values) -> list[bytes]:
    written = [values[name] for name, wanted in case.arguments.items() if isinstance(_first(wanted), Out)]
    return [a.tobytes() for value in written for a in (value if isinstance(value, tuple) else (value,))]


def _first(wanted: Any) -> Any:
    return wanted[0] if isinstance(wanted, tuple) and wanted else wanted


def copies(values: Values) -> Values:
    """The same values in memory of their own."""

    def copy(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(copy, value))
        return value.copy() if isinstance(value, np.ndarray) else value

    return {name: copy(value) for name, value in values.items()}


def replay_of(*calls: tuple[str, Values]) -> NumpyReplay:
    return NumpyReplay([Call(primitive, values, (), ()) for primitive, values in calls], "NumPy")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_primitive_gives_its_bits_again(case: Case, dtype: str, rng: np.random.Generator) -> None:
    values, others = draw(case, dtype, rng), draw(case, dtype, rng)
    mine = copies(values)
    replay = replay_of((case.primitive, mine))
    for given in (values, others):
        expected = copies(given)
        getattr(BACKEND, case.primitive)(**expected)
        for name, value in given.items():
            for to, x in zip(*((v if isinstance(v, tuple) else (v,)) for v in (mine[name], value)), strict=True):
                if isinstance(to, np.ndarray):
                    to[...] = x
        replay.run()
        assert outputs_of(case, mine) == outputs_of(case, expected)


def test_scalars_and_gates_are_those_of_the_moment():
    x, scalars, flag = np.zeros(3), np.array([1.0]), np.array(1.0)
    replay = replay_of(("map", {"program": PLUS, "inputs": (x,), "scalars": scalars, "out": (x,), "when": flag}))
    assert not x.any()
    replay.run()
    scalars[0] = 4.0
    replay.run()
    flag[...] = 0.0
    replay.run()
    assert x.tolist() == [5.0] * 3


@pytest.mark.parametrize("weight", [None, np.ones(4, np.float32)])
def test_class_numbers_out_of_range_poison_their_rows_alone(weight: np.ndarray | None):
    z = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    target, loss, dz = np.array([2, 0, 1, 2]), np.empty((), z.dtype), np.empty_like(z)
    values = {"z_bk": z, "target": target, "weight_b": weight, "scale": 0.25, "loss": loss, "dz": dz}
    replay = replay_of(("softmax_xent", values))
    replay.run()
    right = dz.copy()
    assert np.isfinite(loss)
    for stray in (3, -1, 2**62, -(2**63)):
        target[:] = [2, stray, stray, 2]
        replay.run()
        assert np.isnan(loss)
        assert np.isnan(dz[1:3]).all()
        np.testing.assert_array_equal(dz[[0, 3]], right[[0, 3]])


def test_nothing_warns():
    """Warnings are errors in this suite; the eager calls warn as NumPy does."""
    x, out = np.array([0.0, -1.0, 1e300]), np.empty(3)
    log = {"program": trace(lambda x: np.log(x) * 1e300, 1), "inputs": (x,), "out": (out,)}
    with pytest.warns(RuntimeWarning):
        BACKEND.map(**log)
    expected = out.tobytes()
    replay_of(("map", log)).run()
    assert out.tobytes() == expected


def test_a_replay_and_eager_calls_in_another_thread():
    case = cases.dense(130, 70, 150, activations.gelu)
    values = draw(case, "float32", np.random.default_rng(0))
    mine, theirs = copies(values), copies(values)
    replay = replay_of((case.primitive, mine))  # made in this thread, where the eager calls run
    replay.run()
    expected = outputs_of(case, mine)
    found: list[list[bytes]] = []

    def work() -> None:
        for _ in range(20):
            replay.run()
            found.append(outputs_of(case, mine))

    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        BACKEND.dense(**theirs)
    thread.join()
    assert found == [expected] * 20


def test_a_run_allocates_no_array():
    case = cases.softmax_xent(2000, 50, False)
    values = draw(case, "float32", np.random.default_rng(0))
    replay = replay_of((case.primitive, values))
    replay.run()
    tracemalloc.start()
    replay.run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < values["dz"].nbytes / 8  # what NumPy's iterator buffers


def test_temporaries_lie_in_one_place_one_after_another():
    temporaries = Temporaries(CpuBackend())
    small, dtype = temporaries.empty((3, 4), np.dtype(np.float32)), np.dtype(np.float64)
    beside = temporaries.empty((5,), dtype)
    assert (small.shape, small.dtype) == ((3, 4), np.float32)
    assert not np.shares_memory(small, beside)
    temporaries.take_back()
    assert np.shares_memory(temporaries.empty((6,), dtype), small)
    temporaries.take_back()
    large = temporaries.empty((7,), dtype)
    large[...] = small.fill(1.0) or 2.0
    assert (small == 1.0).all()
    assert temporaries.empty((0, 3), dtype).shape == (0, 3)


def test_who_serves_the_calls():
    replay = BACKEND.replay([Call("fill", {"value": 2.0, "out": np.empty(3)}, (), ())] * 2)
    assert isinstance(replay, NumpyReplay)
    assert replay.describe() == [BACKEND.implementation] * 2


def test_an_installation_whose_numba_cannot_be_imported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fcdense.backends.native._kernels", lambda: None)
    out = np.empty(3)
    replay = NativeBackend().replay([Call("fill", {"value": 2.0, "out": out}, (), ())])
    replay.run()
    assert replay.describe() == ["NumPy"]
    assert out.tolist() == [2.0] * 3
