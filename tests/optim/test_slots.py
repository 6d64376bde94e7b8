"""Slots beside the arenas: few passes over many parameters, and the right ages, whatever joins, leaves or is shared."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fcdense import ops, optim
from fcdense.backends import device
from fcdense.optim.optimizer import NEXT
from fcdense.parameter import Parameter, pack
from fcdense.tensor import tensor

CPU = device("cpu")
ALL = [optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop]


def parameter(values, **options) -> Parameter:
    return Parameter(np.array(values, options.pop("dtype", np.float64)), CPU, **options)


def set_gradients(*pairs) -> None:
    """Give each parameter its gradient by `backward` of a linear function."""
    for p, g in pairs:
        (p * np.broadcast_to(np.asarray(g, p.dtype), p.shape)).sum().backward()


@pytest.fixture
def map_calls(monkeypatch) -> list[str]:
    """Names of the programs that the CPU maps over parameters, from now on."""
    calls: list[str] = []
    served_by = type(CPU.backend)
    original = served_by.map

    def counted(self, program, *args, **options):
        if program is not NEXT:
            calls.append(program.name)
        original(self, program, *args, **options)

    monkeypatch.setattr(served_by, "map", counted)
    return calls


def test_a_step_is_one_pass_for_each_kind_of_decay(map_calls):
    layers = [parameter(np.ones((5, 3)), decay=True), parameter(np.ones(3)), parameter(np.ones((3, 2)), decay=True)]
    for options, passes in (({}, 1), ({"weight_decay": 0.1}, 2), ({"weight_decay": 0.1, "exclude": ()}, 1)):
        optimizer = optim.Adam(layers, **options)
        for _ in range(3):
            optimizer.zero_grad()
            set_gradients(*((p, 0.5) for p in layers))
            map_calls.clear()
            optimizer.step()
            assert map_calls == ["adam"] * passes


def test_both_dtypes(map_calls):
    narrow, wide = parameter([1.0], dtype=np.float32), parameter([1.0])
    optimizer = optim.SGD([narrow, wide], 0.5)
    set_gradients((narrow, 1.0), (wide, 3.0))
    map_calls.clear()
    optimizer.step()
    assert map_calls == ["sgd", "sgd"]
    assert (narrow.numpy(), narrow.dtype) == (0.5, np.float32)
    assert (wide.numpy(), wide.dtype) == (-0.5, np.float64)


def test_parameters_that_are_built_later(map_calls):
    kernel, bias = Parameter(None, CPU, name="kernel", decay=True), parameter(np.zeros(2), name="bias")
    optimizer = optim.Adam([kernel, bias], 0.1)
    assert "2 parameters" in repr(optimizer)
    optimizer.zero_grad()
    kernel.build(np.ones((3, 2)))
    ops.dense(tensor(np.ones((4, 3))), kernel, bias).sum().backward()
    map_calls.clear()
    optimizer.step()
    assert map_calls == ["adam"]
    assert kernel.arena is bias.arena
    np.testing.assert_allclose(kernel.numpy(), 0.9, rtol=1e-7)


@pytest.mark.parametrize("kind", [optim.Adam, optim.AdamW])
@pytest.mark.parametrize("late", ["added", "frozen", "without gradient"])
def test_who_comes_later_starts_from_its_own_first_step(rng, kind, late):
    gradients = rng.standard_normal((9, 3))
    old, new = parameter(np.ones(3)), parameter(np.ones(3))
    expected = parameter(np.ones(3))
    optimizer = kind([old] if late == "added" else [old, new], 0.1)
    alone = kind([expected], 0.1)
    new.requires_grad = late != "frozen"
    for step, g in enumerate(gradients):
        if step == 4:
            new.requires_grad = True
            if late == "added":
                optimizer.add_parameters([new])
        optimizer.zero_grad()
        set_gradients((old, g))
        if step >= 4 and step != 6:
            alone.zero_grad()
            set_gradients((new, g), (expected, g))
            alone.step()
        optimizer.step()
    np.testing.assert_array_equal(new.numpy(), expected.numpy())
    entries = optimizer.state_dict()["parameters"]
    assert [entry["steps"] for entry in entries.values()] == [9, 4]


def test_shared_encoder_and_two_optimizers(rng):
    encoder = [parameter(rng.standard_normal((3, 4)), decay=True), parameter(np.zeros(4))]
    heads = [[parameter(rng.standard_normal((4, n)), decay=True)] for n in (2, 5)]
    optimizers = [optim.Adam([*encoder, *head], 0.01, weight_decay=0.1) for head in heads]
    x = tensor(rng.standard_normal((6, 3)))
    first: list[float] = []
    last: list[float] = []
    for _ in range(60):
        last = []
        for optimizer, (head,) in zip(optimizers, heads, strict=True):
            optimizer.zero_grad()
            loss = ((ops.dense(x, *encoder) @ head - 1.0) ** 2).mean()
            loss.backward()
            optimizer.step()
            last.append(loss.item())
        first = first or last
    assert all(b < 0.5 * a for a, b in zip(first, last, strict=True))
    steps = [[e["steps"] for e in o.state_dict()["parameters"].values()] for o in optimizers]
    assert steps == [[60, 60, 60], [60, 60, 60]]


def test_parameters_of_one_arena_in_two_optimizers():
    parameters = [parameter(np.ones(n)) for n in (3, 20, 5, 7)]
    pack(parameters)
    optimizers = [optim.SGD(parameters[::2], 1.0), optim.Adam(parameters[1::2], 0.5)]
    set_gradients(*((p, 1.0) for p in parameters))
    optimizers[0].step()
    assert [p.numpy().mean() for p in parameters] == [0.0, 1.0, 0.0, 1.0]
    optimizers[1].step()
    np.testing.assert_allclose([p.numpy().mean() for p in parameters], [0.0, 0.5, 0.0, 0.5])


def test_any_pattern_of_gradients(rng):
    sizes = (1, 17, 4, 33)
    ours, alone = ([parameter(np.ones(n)) for n in sizes] for _ in range(2))
    together, single = optim.Adam(ours, 0.1), [optim.Adam([p], 0.1) for p in alone]
    patterns = list(itertools.product([1, 0], repeat=4))[:-1]
    for pattern in itertools.chain.from_iterable((patterns[0], pattern, patterns[0]) for pattern in reversed(patterns)):
        together.zero_grad()
        for i in np.flatnonzero(pattern):
            g = rng.standard_normal(sizes[i])
            single[i].zero_grad()
            set_gradients((ours[i], g), (alone[i], g))
            single[i].step()
        together.step()
    for p, q in zip(ours, alone, strict=True):
        np.testing.assert_array_equal(p.numpy(), q.numpy())


@pytest.mark.parametrize("kind", ALL)
def test_gaps_between_parameters_stay_zero(kind):
    parameters = [parameter(np.ones(n), decay=True) for n in (1, 3, 9)]
    optimizer = kind(parameters, weight_decay=0.1)
    for _ in range(3):
        set_gradients(*((p, 1.0) for p in parameters))
        optimizer.step()
    arena = parameters[0].arena
    kept = np.ones(arena.layout.size, bool)
    for slot in arena.layout.slots:
        kept[slot.offset : slot.stop] = False
    assert kept.any()
    assert not arena.values[kept].any()
