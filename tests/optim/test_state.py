"""An optimizer that is saved, pickled, copied or moved goes on with the same bits."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest

from fcdense import optim
from fcdense.backends import device
from fcdense.errors import FormatError
from fcdense.parameter import Parameter
from fcdense.tensor import tensor

KINDS = [
    (optim.SGD, {}),
    (optim.SGD, {"momentum": 0.9, "nesterov": True}),
    (optim.Adam, {"clip_norm": 0.5}),
    (optim.AdamW, {"weight_decay": 0.1}),
    (optim.RMSprop, {"momentum": 0.5}),
]
RATE = optim.schedules.Warmup(optim.schedules.CosineDecay(0.1, 8), 3, start=0.01)


def parameters(dtype=np.float32) -> list[Parameter]:
    start = np.random.default_rng(0)
    arrays = {"kernel": start.standard_normal((5, 3)), "bias": np.zeros(3), "wide": np.ones(2)}
    return [
        Parameter(a.astype(np.float64 if name == "wide" else dtype), device("cpu"), name=name, decay=name == "kernel")
        for name, a in arrays.items()
    ]


def train(trained, optimizer, steps) -> None:
    for step in steps:
        optimizer.zero_grad()
        gradients = np.random.default_rng(step)
        for p in trained:
            if p.name != "bias" or step % 3:  # so that ages differ
                (p * tensor(gradients.standard_normal(p.shape).astype(p.dtype), device=p.device)).sum().backward()
        optimizer.step()


def bits(trained) -> list[bytes]:
    return [p.numpy().tobytes() for p in trained]


def through_files(state):
    """As JSON and arrays apart, which is how a checkpoint holds it."""
    arrays = {}

    def split(value, path=""):
        if isinstance(value, dict):
            return {key: split(item, f"{path}/{key}") for key, item in value.items()}
        if isinstance(value, np.ndarray):
            arrays[path] = value.tobytes(), value.dtype, value.shape
            return {"array": path}
        return value

    def join(value):
        if isinstance(value, dict) and "array" in value:
            data, dtype, shape = arrays[value["array"]]
            return np.frombuffer(data, dtype).reshape(shape)
        return {key: join(item) for key, item in value.items()} if isinstance(value, dict) else value

    return join(json.loads(json.dumps(split(state), allow_nan=False)))


def halfway(kind, options):
    """Parameters and optimizer after 5 steps, and the bits that 12 steps in one go arrive at."""
    whole, half = parameters(), parameters()
    train(whole, kind(whole, RATE, **options), range(12))
    optimizer = kind(half, RATE, **options)
    train(half, optimizer, range(5))
    return half, optimizer, bits(whole)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_resuming_gives_the_same_bits(kind, options):
    half, optimizer, expected = halfway(kind, options)
    state, values = through_files(optimizer.state_dict()), [p.numpy().copy() for p in half]
    train(half, optimizer, range(5, 9))  # what was saved is a copy
    resumed = parameters()
    for p, value in zip(resumed, values, strict=True):
        p.assign(value)
    again = kind(resumed, 123.0, **{key: value for key, value in options.items() if key in ("momentum", "nesterov")})
    again.load_state_dict(state)
    assert (again.steps, again.learning_rate, again.hyperparameters) == (5, RATE(5), optimizer.hyperparameters)
    train(resumed, again, range(5, 12))
    assert bits(resumed) == expected


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@pytest.mark.parametrize("optimizer_first", [False, True])
def test_copies_go_on_alone(kind, options, clone, optimizer_first):
    half, optimizer, expected = halfway(kind, options)
    if optimizer_first:
        again, resumed = clone((optimizer, half))
    else:
        resumed, again = clone((half, optimizer))
    assert all(p is q for p, q in zip(again.parameters, resumed, strict=True))
    assert all(p is not q for p, q in zip(half, resumed, strict=True))
    before = bits(half)
    train(resumed, again, range(5, 12))
    assert bits(resumed) == expected
    assert bits(half) == before
    train(half, optimizer, range(5, 12))
    assert bits(half) == expected


def test_a_copy_of_parameters_that_are_not_built():
    p = Parameter(None, device("cpu"))
    (q,), optimizer = copy.deepcopy(([p], optim.Adam([p], 0.1)))
    q.build(np.ones(3))
    train([q], optimizer, range(1))
    np.testing.assert_allclose(abs(q.numpy() - 1.0), 0.1, rtol=1e-6)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_slots_follow_parameters_that_move(kind, options):
    half, optimizer, expected = halfway(kind, options)
    for p in half:
        p.move(device("reference"))
    assert optimizer.state_dict()["parameters"].keys() == {"kernel", "bias", "wide"}
    for p in half[:2]:
        p.move(device("cpu"))
    for p in half:  # back home, now in arenas of other layouts
        p.move(device("cpu"))
    train(half, optimizer, range(5, 12))
    assert bits(half) == expected


def test_training_goes_on_after_a_move():
    trained = parameters(np.float64)
    optimizer = optim.Adam(trained, 0.1)
    train(trained, optimizer, range(3))
    for p in trained:
        p.move(device("reference"))
    train(trained, optimizer, range(3, 6))
    whole = parameters(np.float64)
    train(whole, optim.Adam(whole, 0.1), range(6))
    for p, q in zip(trained, whole, strict=True):
        np.testing.assert_allclose(p.numpy(), q.numpy(), rtol=1e-12)


def test_a_schedule_of_code_is_not_saved():
    trained = parameters()
    optimizer = optim.SGD(trained, lambda step: 0.5 / (1 + step))
    train(trained, optimizer, range(4))
    state = optimizer.state_dict()
    assert state["learning_rate"] is None
    again = optim.SGD(trained, lambda step: 1.0 / (1 + step))
    again.load_state_dict(state)
    assert again.learning_rate == 0.2


def test_parameters_of_one_name_are_told_apart_by_position():
    cpu = device("cpu")
    trained = [Parameter(np.zeros(n), cpu, name=name) for n, name in ((1, "w"), (2, "v"), (3, "w"))]
    assert list(optim.SGD(trained).state_dict()["parameters"]) == ["w#0", "v", "w#2"]


def test_loaded_hyperparameters_are_used():
    half, optimizer, _ = halfway(optim.AdamW, {"weight_decay": 0.1})
    again = optim.AdamW(half, 0.5, weight_decay=0.0, clip_norm=3.0)
    train(half, again, range(1))
    again.load_state_dict(optimizer.state_dict())
    again.learning_rate = 1.0
    again.zero_grad()
    before = [p.numpy().copy() for p in half]
    for p in half:
        (p * 0.0).sum().backward()
    again.step()
    for p, w, decay in zip(half, before, (0.1, 0.0, 0.0), strict=True):
        entry = optimizer.state_dict()["parameters"][p.name]
        t = entry["steps"] + 1
        m, v = 0.9 * entry["mean"] / (1 - 0.9**t), 0.999 * entry["square"] / (1 - 0.999**t)
        np.testing.assert_allclose(p.numpy(), w * (1 - decay) - m / (np.sqrt(v) + 1e-8), rtol=1e-5)


def test_a_loaded_flag_is_used():
    half, optimizer, expected = halfway(optim.SGD, {"momentum": 0.9, "nesterov": True})
    values = [p.numpy().copy() for p in half]
    again = optim.SGD(half, 0.5, momentum=0.9)
    train(half, again, range(1))
    for p, value in zip(half, values, strict=True):
        p.assign(value)
    again.load_state_dict(optimizer.state_dict())
    train(half, again, range(5, 12))
    assert bits(half) == expected


def damaged(state, key, value):
    """`state` with the entry at the path `key` replaced, or removed for the value None."""
    state = copy.deepcopy(state)
    *path, last = key.split("/")
    inner = state
    for part in path:
        inner = inner[part]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return state


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer", "SGD", "The state is of 'SGD', this optimizer is Adam"),
        ("steps", -1, "steps: -1, expected an integer >= 0"),
        ("steps", None, "steps is missing"),
        ("skipped_steps", 1.5, r"skipped_steps: 1\.5"),
        ("hyperparameters/beta1", 1.0, "beta1 is 1.0"),
        ("hyperparameters/beta1", None, "beta1 is None"),
        ("hyperparameters/rho", 0.5, "'rho'"),
        ("learning_rate", {"name": "Magic"}, "Magic"),
        ("learning_rate", -0.5, "learning_rate"),
        ("parameters/bias", None, "'bias' is missing"),
        ("parameters/scale", {}, "'scale' is no parameter of this optimizer"),
        ("parameters/bias/mean", None, "'bias': expected steps, mean, square, given .*square.*steps"),
        ("parameters/bias/mean", np.zeros(4), r"'bias': mean is float64 of shape \(4,\), expected .* \(3,\)"),
        ("parameters/bias/mean", np.zeros(3, int), r"'bias': mean is int64"),
        ("parameters/bias/steps", True, "'bias': steps: True"),
        ("parameters", [1, 2], "parameters: expected a mapping"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(key, value, message):
    half, optimizer, _ = halfway(optim.Adam, {})
    before = repr(optimizer.state_dict())
    with pytest.raises(FormatError, match=message):
        optimizer.load_state_dict(damaged(optimizer.state_dict(), key, value))
    assert repr(optimizer.state_dict()) == before
    assert bits(half) == bits(optimizer.parameters)


def test_all_that_is_wrong_is_listed():
    _, optimizer, _ = halfway(optim.Adam, {})
    state = damaged(damaged(optimizer.state_dict(), "parameters/bias", None), "parameters/wide/mean", np.zeros(9))
    state = damaged(state, "hyperparameters/eps", -1.0)
    with pytest.raises(FormatError) as caught:
        optimizer.load_state_dict(state)
    for part in ("eps is -1.0", "'bias' is missing", "'wide': mean is float64 of shape (9,)"):
        assert part in str(caught.value)


def test_loading_before_the_sizes_are_known():
    _, optimizer, _ = halfway(optim.SGD, {"momentum": 0.9})
    unbuilt = [Parameter(None, device("cpu"), name=name) for name in ("kernel", "bias", "wide")]
    again = optim.SGD(unbuilt, momentum=0.9)
    with pytest.raises(FormatError, match="'kernel' has no shape yet: call the model once"):
        again.load_state_dict(optimizer.state_dict())
    assert again.state_dict()["parameters"] == {}
    with pytest.raises(FormatError, match="'NoneType'"):
        again.load_state_dict(None)


def test_momentum_needs_its_slot():
    half, optimizer, _ = halfway(optim.SGD, {"momentum": 0.9})
    with pytest.raises(FormatError, match=r"'kernel': expected steps, given .*velocity"):
        optim.SGD(half).load_state_dict(optimizer.state_dict())
