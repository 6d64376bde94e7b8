"""Each update rule over 20 steps against a loop of plain NumPy in float64, and PyTorch where it is installed."""

from __future__ import annotations

import numpy as np
import pytest

from fcdense import activations, losses, ops, optim
from fcdense.backends import device
from fcdense.errors import ArgumentError, UnknownNameError
from fcdense.parameter import Parameter
from fcdense.tensor import tensor

STEPS = 20


def sgd(w, g, slots, step, rate, momentum=0.0, nesterov=False):
    v = momentum * slots.get("v", 0.0) + g
    slots["v"] = v
    return w - rate * (g + momentum * v if nesterov else v)


def adam(w, g, slots, step, rate, betas=(0.9, 0.999), eps=1e-8):
    slots["m"] = betas[0] * slots.get("m", 0.0) + (1 - betas[0]) * g
    slots["v"] = betas[1] * slots.get("v", 0.0) + (1 - betas[1]) * g**2
    m, v = slots["m"] / (1 - betas[0] ** step), slots["v"] / (1 - betas[1] ** step)
    return w - rate * m / (np.sqrt(v) + eps)


def rmsprop(w, g, slots, step, rate, alpha=0.99, eps=1e-8, momentum=0.0):
    slots["v"] = alpha * slots.get("v", 0.0) + (1 - alpha) * g**2
    slots["u"] = momentum * slots.get("u", 0.0) + g / (np.sqrt(slots["v"]) + eps)
    return w - rate * slots["u"]


RULES = {"SGD": sgd, "Adam": adam, "AdamW": adam, "RMSprop": rmsprop}
CASES = [
    ("SGD", {}),
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
    ("Adam", {}),
    ("Adam", {"betas": (0.7, 0.9), "eps": 1e-3, "weight_decay": 0.1}),
    ("Adam", {"betas": (0.0, 0.0)}),
    ("AdamW", {}),
    ("AdamW", {"weight_decay": 0.5, "betas": (0.8, 0.99)}),
    ("RMSprop", {}),
    ("RMSprop", {"alpha": 0.8, "eps": 1e-4, "momentum": 0.9, "weight_decay": 0.1}),
]


class Problem:
    """mean((tanh(x w + b) - y)^2), and its gradients by hand."""

    def __init__(self, rng):
        self.x, self.y = rng.standard_normal((8, 3)), rng.standard_normal((8, 2))
        self.start = [rng.standard_normal((3, 2)), rng.standard_normal(2)]

    def parameters(self, on="cpu", dtype=np.float64):
        w, b = (a.astype(dtype) for a in self.start)
        return [
            Parameter(w, device(on), name="layer.kernel", decay=True),
            Parameter(b, device(on), name="layer.bias"),
        ]

    def backward(self, parameters):
        w, b = parameters
        x = tensor(self.x.astype(w.dtype), device=w.device)
        losses.mse(ops.dense(x, w, b, activations.get("tanh")), self.y).backward()

    def gradients(self, w, b):
        out = np.tanh(self.x @ w + b)
        dz = 2 * (out - self.y) / out.size * (1 - out**2)
        return self.x.T @ dz, dz.sum(axis=0)

    def train(self, kind, parameters, **options):
        optimizer = getattr(optim, kind)(parameters, **options)
        for _ in range(STEPS):
            self.backward(parameters)
            assert optimizer.step() is True
            optimizer.zero_grad()
        return [p.numpy() for p in parameters]

    def expected(self, kind, decays, *, learning_rate, weight_decay=0.0, **options):
        if kind == "AdamW" and not weight_decay:
            weight_decay = 0.01
        weights, slots = [a.copy() for a in self.start], [{}, {}]
        for step in range(STEPS):
            rate = learning_rate(step) if callable(learning_rate) else learning_rate
            for i, g in enumerate(self.gradients(*weights)):
                decay = weight_decay * decays[i]
                w = weights[i] * (1 - rate * decay) if kind == "AdamW" else weights[i]
                g = g if kind == "AdamW" else g + decay * w
                weights[i] = RULES[kind](w, g, slots[i], step + 1, rate, **options)
        return weights


@pytest.mark.parametrize(("kind", "options"), CASES)
@pytest.mark.parametrize("exclude", [None, ()])
def test_rule_is_its_formula(rng, kind, options, exclude):
    problem = Problem(rng)
    found = problem.train(kind, problem.parameters(), learning_rate=0.05, exclude=exclude, **options)
    expected = problem.expected(kind, (1, 0) if exclude is None else (1, 1), learning_rate=0.05, **options)
    for a, b, start in zip(found, expected, problem.start, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12, rtol=0)
        assert np.abs(a - start).min() > 1e-6


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_rule_is_that_of_pytorch(rng, kind, options):
    torch = pytest.importorskip("torch")
    problem = Problem(rng)
    found = problem.train(kind, problem.parameters(), learning_rate=0.05, exclude=(), **options)
    w, b = (torch.tensor(a, requires_grad=True) for a in problem.start)
    theirs = getattr(torch.optim, kind)([w, b], lr=0.05, **options)
    x, y = torch.tensor(problem.x), torch.tensor(problem.y)
    for _ in range(STEPS):
        theirs.zero_grad()
        torch.nn.functional.mse_loss(torch.tanh(x @ w + b), y).backward()
        theirs.step()
    for ours, expected in zip(found, (w, b), strict=True):
        np.testing.assert_allclose(ours, expected.detach().numpy(), atol=1e-10, rtol=0)


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_reference_backend_and_float32(rng, kind, options):
    problem = Problem(rng)
    expected = problem.expected(kind, (1, 0), learning_rate=0.01, **options)
    for on, dtype, tolerance in (("reference", np.float64, 1e-12), ("cpu", np.float32, 1e-4)):
        found = problem.train(kind, problem.parameters(on, dtype), learning_rate=0.01, **options)
        assert found[0].dtype == dtype
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=tolerance, rtol=0)


def test_schedule(rng):
    problem = Problem(rng)

    def rate(step):
        return 0.1 / (step + 1)

    found = problem.train("Adam", problem.parameters(), learning_rate=rate)
    expected = problem.expected("Adam", (0, 0), learning_rate=rate)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-12, rtol=0)


class Lion(optim.Optimizer):
    """A rule as a user would write it."""

    slots = ("momentum",)
    hyper = {"beta1": optim.SHARE, "beta2": optim.SHARE}  # noqa: RUF012
    decoupled = True

    def rule(self, w, g, slots, s):
        (m,) = slots
        step = s.learning_rate * np.sign(s.beta1 * m + (1 - s.beta1) * g)
        return w - step, s.beta2 * m + (1 - s.beta2) * g


def test_own_rule(rng):
    problem = Problem(rng)
    parameters = problem.parameters()
    optimizer = Lion(parameters, 0.01, beta1=0.9, beta2=0.99, weight_decay=0.1)
    weights, momenta = [a.copy() for a in problem.start], [0.0, 0.0]
    for _ in range(STEPS):
        problem.backward(parameters)
        optimizer.step()
        optimizer.zero_grad()
        for i, g in enumerate(problem.gradients(*weights)):
            update = np.sign(0.9 * momenta[i] + 0.1 * g)
            weights[i] = weights[i] * (1 - 0.01 * 0.1 * (i == 0)) - 0.01 * update
            momenta[i] = 0.99 * momenta[i] + 0.01 * g
    for p, w in zip(parameters, weights, strict=True):
        np.testing.assert_allclose(p.numpy(), w, atol=1e-12, rtol=0)
    with pytest.raises(UnknownNameError, match="beta1"):
        Lion(parameters, 0.01, beta=0.9, beta2=0.9)
    with pytest.raises(ArgumentError, match="Lion: beta2 is None"):
        Lion(parameters, 0.01, beta1=0.9)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("SGD", {"momentum": 1.0}, "SGD: momentum is 1.0, expected a number >= 0 and < 1"),
        ("SGD", {"momentum": -0.1}, "momentum is -0.1"),
        ("SGD", {"nesterov": True}, r"nesterov=True needs momentum > 0"),
        ("SGD", {"momentum": 0.9, "nesterov": 1}, "nesterov is 1, expected True or False"),
        ("SGD", {"weight_decay": -1.0}, "weight_decay is -1.0, expected a finite number >= 0"),
        ("Adam", {"betas": (0.9, 1.0)}, "beta2 is 1.0"),
        ("Adam", {"betas": (np.nan, 0.9)}, "beta1 is nan"),
        ("Adam", {"betas": 0.9}, r"betas is 0\.9, expected two numbers"),
        ("Adam", {"betas": (0.9, 0.99, 0.999)}, "expected two numbers"),
        ("Adam", {"eps": 0.0}, "eps is 0.0, expected a finite number > 0"),
        ("AdamW", {"weight_decay": np.inf}, "AdamW: weight_decay is inf"),
        ("AdamW", {"clip_norm": 0.0}, "clip_norm is 0.0, expected a number > 0, or None"),
        ("RMSprop", {"alpha": True}, "alpha is True"),
        ("RMSprop", {"eps": "1e-8"}, "eps is '1e-8'"),
        ("Adam", {"learning_rate": -0.1}, r"-0\.1.*expected a finite number >= 0"),
        ("Adam", {"learning_rate": np.nan}, "nan.*finite"),
        ("Adam", {"learning_rate": np.inf}, "inf.*finite"),
        ("Adam", {"learning_rate": "fast"}, "expected a number, a Schedule"),
        ("Adam", {"epsilon": 1e-8}, "Unknown option of Adam 'epsilon'"),
    ],
)
def test_values_out_of_range(rng, kind, options, message):
    with pytest.raises(ArgumentError, match=message):
        getattr(optim, kind)(Problem(rng).parameters(), **options)


def test_get_and_repr(rng):
    parameters = Problem(rng).parameters()
    for name, kind in (("sgd", optim.SGD), ("Adam", optim.Adam), ("adamw", optim.AdamW), ("rmsprop", optim.RMSprop)):
        assert optim.get(name) is kind
    assert optim.get(optim.Adam) is optim.Adam
    assert optim.get("adam")(parameters, learning_rate=0.5).learning_rate == 0.5
    with pytest.raises(UnknownNameError, match="'adam'"):
        optim.get("adm")
    with pytest.raises(ArgumentError, match="subclass of Optimizer"):
        optim.get(3)
    optimizer = optim.SGD(parameters, 0.1, momentum=0.9, clip_norm=1)
    assert repr(optimizer) == (
        "SGD(learning_rate=0.1, momentum=0.9, nesterov=False, weight_decay=0.0, clip_norm=1.0; 2 parameters, 0 steps)"
    )
    assert "CosineDecay" in repr(optim.Adam(parameters, optim.schedules.CosineDecay(0.1, 10)))
    assert optimizer.hyperparameters["momentum"] == 0.9
