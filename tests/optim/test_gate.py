"""Norm, flag and scale of a step, on one device and on several, over one span and over many."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fcdense import optim
from fcdense.backends import Device, device
from fcdense.backends.checked import CheckedBackend
from fcdense.backends.cpu import CpuBackend
from fcdense.errors import ShapeError
from fcdense.optim.gate import Gate, decision, words
from fcdense.parameter import Parameter, pack
from fcdense.tensor import tensor

CPU = device("cpu")
CHECKED = Device("cpu", backend=CheckedBackend(CpuBackend()))
REFERENCE = device("reference")


def parameter(values, on=CPU, dtype=np.float64) -> Parameter:
    return Parameter(np.array(values, dtype), on)


def set_gradients(*pairs) -> None:
    for p, g in pairs:
        (p * tensor(np.broadcast_to(np.asarray(g, p.dtype), p.shape).copy(), device=p.device)).sum().backward()


def gate_of(*gradients, scales: int = 1) -> tuple[Gate, list[np.ndarray]]:
    scalars = [words(CPU.backend, [0.1, 7.0, 1.0]) for _ in range(scales)]
    gate = Gate([(CHECKED, np.array(g)) for g in gradients], [(CHECKED, s) for s in scalars], {CHECKED: CPU.backend})
    return gate, scalars


def test_words_are_float64_and_keep_their_values():
    vector = words(CPU.backend, [1.0, 0.1, 3.0])
    assert (vector.dtype, vector.tolist()) == (np.float64, [1.0, 0.1, 3.0])


@pytest.mark.parametrize("scale", [1.0, -0.25, 0.0])
@pytest.mark.parametrize("limit", [0.1, 13.0, 1e300])
@pytest.mark.parametrize("scales", [1, 3])
def test_the_numbers_are_those_of_python(rng, scale, limit, scales):
    spans = [rng.standard_normal(n) for n in (3, 100, 1)]
    gate, scalars = gate_of(*spans, scales=scales)
    gate.ask(scale, limit)
    gate.decide(None, True)
    total = 0.0
    for span in spans:
        total += float(np.dot(span, span))
    norm = abs(scale) * math.sqrt(total)
    assert gate.read() == (0.0, norm, True)
    assert [s.tolist() for s in scalars] == [[0.1, scale * min(1.0, limit / (norm + 1e-6)), 1.0]] * scales
    assert gate.flag(CHECKED) == 1.0


def test_without_clipping_the_scale_is_the_callers():
    gate, ((_, scale, _),) = gate_of([3.0, 4.0])
    gate.ask(1.0, None)
    gate.decide(None, False)
    assert gate.read() == (0.0, 5.0, True)
    assert scale == 7.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["gradient", "loss"])
def test_numbers_that_are_not_finite(bad, where):
    gate, _ = gate_of([1.0, bad if where == "gradient" else 2.0], [3.0])
    gate.ask(1.0, None)
    for loss in (bad if where == "loss" else 1.0, 0.0):
        gate.decide(tensor(np.array([loss], np.float32), device=CHECKED), False)
        seen, norm, finite = gate.read()
        assert repr(seen) == repr(loss)
        assert finite is (where == "loss" and loss == 0.0)
        assert math.isfinite(norm) is (where == "loss")
        assert float(gate.flag(CHECKED)) == finite
    gate.decide(None, False)  # what the loss was does not count any more
    assert gate.read()[2] is (where == "loss")


def test_one_program_for_as_many_spans():
    assert decision(2, 1) is decision(2, 1)
    assert decision(2, 1).n_scalars == 6


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_parameters_on_two_devices(clip_norm):
    here, there = parameter([0.0, 0.0]), parameter([0.0], REFERENCE)
    optimizer = optim.SGD([here, there], 1.0, clip_norm=clip_norm)
    set_gradients((here, [3.0, 0.0]), (there, 4.0))
    assert optimizer.step(check_finite=True)
    assert optimizer.gradient_norm == 5.0
    shrunk = 1.0 if clip_norm is None else 1.0 / (5.0 + 1e-6)
    np.testing.assert_allclose(here.numpy(), [-3.0 * shrunk, 0.0], rtol=1e-15)
    np.testing.assert_allclose(there.numpy(), [-4.0 * shrunk], rtol=1e-15)
    for bad in (here, there):
        before = here.numpy().tobytes() + there.numpy().tobytes()
        optimizer.zero_grad()
        set_gradients((here, 1.0), (there, 1.0))
        bad.grad.array[0] = np.nan
        assert not optimizer.step(check_finite=True)
        assert here.numpy().tobytes() + there.numpy().tobytes() == before
    assert (optimizer.steps, optimizer.skipped_steps) == (1, 2)


def test_parameters_in_many_spans(rng):
    parameters = [parameter(np.zeros(n), dtype=np.float32) for n in (3, 5, 7, 9, 11, 13)]
    pack(parameters)
    gradients = [rng.standard_normal(p.shape) for p in parameters]
    optimizer = optim.SGD(parameters[::2], 1.0, clip_norm=0.5)
    set_gradients(*zip(parameters, gradients, strict=True))
    optimizer.step()
    norm = np.sqrt(sum(float(np.sum(np.float32(g).astype(float) ** 2)) for g in gradients[::2]))
    assert optimizer.gradient_norm == pytest.approx(norm, rel=1e-6)
    for p, g in zip(parameters[::2], gradients[::2], strict=True):
        np.testing.assert_allclose(p.numpy(), -g * 0.5 / norm, rtol=1e-5)


@pytest.mark.parametrize("loss", [np.nan, np.inf, 1.0])
def test_the_loss_may_be_looked_at_as_well(loss):
    p = parameter([1.0])
    optimizer = optim.Adam([p], 0.1)
    set_gradients((p, 2.0))
    done = optimizer.step(check_finite=tensor(np.float32(loss)))
    assert done is bool(np.isfinite(loss))
    assert (optimizer.steps, optimizer.skipped_steps) == (int(done), int(not done))
    assert (p.item() == 1.0) is not done
    assert optimizer.gradient_norm == 2.0


def test_a_loss_of_several_elements():
    p = parameter([1.0])
    optimizer = optim.Adam([p], 0.1)
    set_gradients((p, 2.0))
    with pytest.raises(ShapeError, match=r"check_finite is a tensor of shape \(2,\); expected one element"):
        optimizer.step(check_finite=tensor(np.ones(2)))
    assert p.item() == 1.0
