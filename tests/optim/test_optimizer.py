"""What every optimizer does around its rule: what it updates and how far, and when it changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from fcdense import optim
from fcdense.backends import device
from fcdense.errors import ArgumentError, GraphError, ShapeError
from fcdense.parameter import Parameter
from fcdense.tensor import tensor

CPU = device("cpu")
ALL = [optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop]


def parameter(values, **options) -> Parameter:
    return Parameter(np.array(values, options.pop("dtype", np.float64)), CPU, **options)


def set_gradients(*pairs) -> None:
    """Give each parameter its gradient by `backward` of a linear function."""
    for p, g in pairs:
        (p * np.broadcast_to(np.asarray(g, p.dtype), p.shape)).sum().backward()


def weights(parameters) -> list[np.ndarray]:
    return [p.numpy().copy() for p in parameters]


@pytest.mark.parametrize("kind", ALL)
def test_without_gradient_nothing_changes(kind):
    a, b, frozen = parameter([1.0, 2.0], decay=True), parameter([3.0], decay=True), parameter([4.0], decay=True)
    optimizer = kind([a, b, frozen], weight_decay=0.1)
    set_gradients((a, 1.0), (b, 1.0), (frozen, 1.0))
    frozen.requires_grad = False
    optimizer.step()
    optimizer.zero_grad()
    before = weights([a, b, frozen])
    assert before[2] == 4.0
    state = optimizer.state_dict()["parameters"]
    set_gradients((a, 1.0))
    optimizer.step()
    assert (a.numpy() != before[0]).all()
    assert (b.numpy(), frozen.numpy()) == (before[1], before[2])
    after = optimizer.state_dict()["parameters"]
    for key in ("parameter#1", "parameter#2"):
        assert state[key] == after[key]
    optimizer.zero_grad()
    with pytest.raises(GraphError, match=r"no gradient.*loss\.backward"):
        optimizer.step()
    assert optimizer.steps == 2


@pytest.mark.parametrize(
    ("exclude", "decayed"),
    [
        (None, {"a.kernel", "b.kernel"}),
        ((), {"a.kernel", "a.bias", "b.kernel", "norm.scale"}),
        ("bias", {"a.kernel", "b.kernel", "norm.scale"}),
        (("bias", "norm.*"), {"a.kernel", "b.kernel"}),
        (("b", "scale"), {"a.kernel", "a.bias"}),
        ((name for name in ["a*"]), {"b.kernel", "norm.scale"}),
        (lambda p: p.ndim == 1, {"a.kernel", "b.kernel"}),
    ],
)
def test_what_decays(exclude, decayed):
    parameters = [
        parameter(np.ones((2, 2)), name="a.kernel", decay=True),
        parameter(np.ones(2), name="a.bias"),
        parameter(np.ones((2, 2)), name="b.kernel", decay=True),
        parameter(np.ones(2), name="norm.scale"),
    ]
    optimizer = optim.AdamW(parameters, 0.5, weight_decay=0.5, exclude=exclude)
    set_gradients(*((p, 0.0) for p in parameters))
    optimizer.step()
    assert {p.name for p in parameters if p.numpy().flat[0] == 0.75} == decayed
    assert {p.name for p in parameters if p.numpy().flat[0] == 1.0} == {p.name for p in parameters} - decayed


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("gradient_scale", [1.0, 0.25, -2.0])
def test_clipping_is_that_of_pytorch(rng, scale, gradient_scale):
    torch = pytest.importorskip("torch")
    parameters = [parameter(np.zeros((4, 3)), decay=True), parameter(np.zeros(3))]
    gradients = [scale * rng.standard_normal(p.shape) for p in parameters]
    optimizer = optim.SGD(parameters, 1.0, clip_norm=0.5)
    set_gradients(*zip(parameters, gradients, strict=True))
    optimizer.step(gradient_scale=gradient_scale)
    theirs = [torch.zeros(p.shape, dtype=torch.float64, requires_grad=True) for p in parameters]
    for t, g in zip(theirs, gradients, strict=True):
        t.grad = torch.tensor(gradient_scale * g)
    norm = torch.nn.utils.clip_grad_norm_(theirs, 0.5)
    assert optimizer.gradient_norm == pytest.approx(norm.item(), rel=1e-12)
    for p, t in zip(parameters, theirs, strict=True):
        np.testing.assert_allclose(p.numpy(), -t.grad.numpy(), rtol=1e-10, atol=1e-13)


def test_clipping_spans_arenas_and_leaves_gradients_alone():
    narrow, wide = parameter([0.0], dtype=np.float32), parameter([0.0, 0.0])
    optimizer = optim.SGD([narrow, wide], 1.0, clip_norm=1.0)
    set_gradients((narrow, 3.0), (wide, [4.0, 0.0]))
    optimizer.step()
    assert optimizer.gradient_norm == 5.0
    np.testing.assert_allclose(narrow.numpy(), -0.6, rtol=1e-6)
    np.testing.assert_allclose(wide.numpy(), [-0.8, 0.0], rtol=1e-6)
    assert narrow.grad.item() == 3.0


def test_gradients_of_zero_are_clipped_to_zero():
    p = parameter([1.0, 2.0])
    optimizer = optim.SGD([p], 1.0, clip_norm=1.0)
    set_gradients((p, 0.0))
    assert optimizer.step() is True
    np.testing.assert_array_equal(p.numpy(), [1.0, 2.0])
    assert optimizer.gradient_norm == 0.0


def test_a_float32_norm_beyond_float32():
    p = parameter([0.0, 0.0], dtype=np.float32)
    optimizer = optim.SGD([p], 1.0, clip_norm=1.0)
    set_gradients((p, [3e30, 4e30]))
    assert optimizer.step() is True
    np.testing.assert_allclose(p.numpy(), [-0.6, -0.8], rtol=1e-6)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_gradient_that_is_not_finite_changes_nothing(kind, bad, clip_norm):
    p, q = parameter([1.0, 2.0], decay=True), parameter([3.0])
    optimizer = kind([p, q], weight_decay=0.1, clip_norm=clip_norm)
    set_gradients((p, 1.0), (q, 1.0))
    assert optimizer.step(check_finite=True) is True
    optimizer.zero_grad()
    before, state = weights([p, q]), optimizer.state_dict()
    set_gradients((p, [0.5, bad]), (q, 1.0))
    assert optimizer.step(check_finite=clip_norm is None) is False
    assert (optimizer.skipped_steps, optimizer.steps) == (1, 1)
    assert not np.isfinite(optimizer.gradient_norm)
    for a, b in zip(before, weights([p, q]), strict=True):
        assert a.tobytes() == b.tobytes()
    after = optimizer.state_dict()
    assert after.pop("skipped_steps") == state.pop("skipped_steps") + 1
    assert repr(after) == repr(state)
    optimizer.zero_grad()
    set_gradients((p, 1.0), (q, 1.0))
    assert optimizer.step(check_finite=True) is True


def test_gradient_scale_takes_the_mean_of_several_backward_calls(rng):
    g = rng.standard_normal((3, 4))
    results = []
    for gradients, scale in ((g, 1 / 3), ([g.mean(axis=0)], 1.0)):
        p = parameter(np.zeros(4))
        optimizer = optim.Adam([p], 0.1)
        for part in gradients:
            set_gradients((p, part))
        optimizer.step(gradient_scale=scale)
        results.append(p.numpy())
    np.testing.assert_allclose(*results, rtol=1e-12)
    for wrong in (np.nan, np.inf):
        with pytest.raises(ArgumentError, match="gradient_scale"):
            optimizer.step(gradient_scale=wrong)


def test_learning_rate():
    p = parameter([0.0])
    optimizer = optim.SGD([p], optim.schedules.Piecewise([1], [1.0, 10.0]))
    seen = []
    for rate in (None, None, 0.5, 0, lambda step: float(step)):
        if rate is not None:
            optimizer.learning_rate = rate
        optimizer.zero_grad()
        set_gradients((p, 1.0))
        before = p.item()
        seen.append(optimizer.learning_rate)
        optimizer.step()
        assert before - p.item() == pytest.approx(seen[-1], rel=1e-12)
    assert seen == [1.0, 10.0, 0.5, 0.0, 4.0]
    with pytest.raises(ArgumentError):
        optimizer.learning_rate = -1.0
    assert optimizer.learning_rate == 5.0
    optimizer.learning_rate = lambda step: np.nan
    with pytest.raises(ArgumentError, match="rate of step 5"):
        optimizer.step()
    assert optimizer.steps == 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "SGD got no parameters"),
        (iter([]), "SGD got no parameters"),
        ([np.ones(3)], r"item 0 is ndarray, expected a Parameter.*model\.parameters\(\)"),
        ([parameter([1.0]), tensor([1.0])], "item 1 is Tensor"),
        ([("kernel", parameter([1.0]))], "item 0 is tuple"),
        (3, "item 0 is int"),
        (parameter([1.0]), "item 0 is Tensor"),
    ],
)
def test_wrong_parameters(given, message):
    with pytest.raises(ArgumentError, match=message):
        optim.SGD(given)


def test_duplicates_count_once():
    p = parameter([1.0])
    optimizer = optim.SGD((q for q in (p, p)), 1.0)
    optimizer.add_parameters([p])
    assert optimizer.parameters == (p,)
    set_gradients((p, 1.0))
    optimizer.step()
    assert p.item() == 0.0


def test_constraints_are_applied_after_the_update():
    p = parameter([1.0, -0.5], constraint=lambda w: np.maximum(w, 0.0))
    still = parameter([-1.0], constraint=lambda w: np.maximum(w, 0.0))
    optimizer = optim.SGD([p, still], 1.0)
    set_gradients((p, 0.75))
    optimizer.step()
    np.testing.assert_array_equal(p.numpy(), [0.25, 0.0])
    assert still.item() == -1.0
    p.constraint = lambda w: np.ones_like(w)
    optimizer.step()
    np.testing.assert_array_equal(p.numpy(), [1.0, 1.0])


@pytest.mark.parametrize(("constraint", "error"), [(lambda w: w[:1], ShapeError), (lambda w: 1 / 0, ZeroDivisionError)])
def test_a_constraint_that_fails_is_named(constraint, error):
    p = parameter([1.0, -0.5], constraint=constraint)
    optimizer = optim.SGD([p], 0.1)
    p.sum().backward()
    with pytest.raises(error) as caught:
        optimizer.step()
    (note,) = caught.value.__notes__
    assert note == f"Raised for the constraint of parameter '{p.name}', without which the step was made."
    assert optimizer.steps == 1
    np.testing.assert_allclose(p.numpy(), [0.9, -0.6], rtol=1e-6)


def test_a_graph_from_before_the_step_is_refused():
    p = parameter([2.0])
    optimizer = optim.SGD([p], 0.1)
    loss = (p * p).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(GraphError, match="changed in place"):
        loss.backward()


def test_rates_of_steps_to_come():
    p = parameter([2.0])
    optimizer = optim.SGD([p], 0.1)
    assert optimizer.rates(3) == [0.1, 0.1, 0.1]
    optimizer.learning_rate = decay = optim.schedules.Warmup(optim.schedules.StepDecay(0.4, 2), 3)
    set_gradients((p, 0.0))
    optimizer.step()
    assert optimizer.rates(6) == [decay(step) for step in range(1, 7)]
    asked = []
    for of_ones_own in (lambda step: asked.append(step) or 0.5, optim.schedules.Warmup(lambda step: 0.5, 1)):
        optimizer.learning_rate = of_ones_own
        assert optimizer.rates(6) == [0.5]
    assert asked == [1]
