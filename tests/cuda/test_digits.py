"""A few steps on the digits on the emulated GPU, against the reference: float64, every primitive as its formula reads.

How far float32 may lie from it is no tolerance, but is computed beside a plain NumPy program of the same steps, where
each array is carried with a bound for its error (running error analysis: N. Higham (2002), Accuracy and stability of
numerical algorithms, section 3.3). A sum of K terms adds gamma_K of the sum of their absolute values, tanh and exp add
4 eps, all else a few roundings, and what an operation does to the errors of its operands follows from its derivative.
What remains between the NumPy program and the reference are roundings of float64.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

import fcdense as fc
from fcdense.backends import Device
from fcdense.backends.cuda import CudaBackend
from tests import emulation
from tests.emulation import EmulatedDriver

pytestmark = pytest.mark.skipif(not emulation.is_available(), reason="no g++ here")
DIGITS = fc.data.digits()
WIDTHS, BATCH, STEPS = (64, 72, 10), 96, 3
RATE = {"sgd": 0.05, "adam": 2e-4}
"""So small that errors, each of which is taken to be as large as it may be, grow threefold from step to step."""
BATCHES = [slice(BATCH * step, BATCH * (step + 1)) for step in range(STEPS)]
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
U = float(np.finfo(np.float32).eps) / 2
HostArray = np.ndarray[Any, Any]


class Known(NamedTuple):
    """Exact numbers, and how far those of a float32 program may lie from them."""

    at: Any
    error: Any = 0.0

    @property
    def size(self) -> Any:
        """The largest that those of the program are."""
        return np.abs(self.at) + self.error

    @property
    def T(self) -> Known:  # noqa: N802
        return Known(self.at.T, self.error.T)


def gamma(terms: int) -> float:
    return terms * U / (1 - terms * U)


def product(a: Known, b: Known, c: Known | None = None) -> Known:
    """a @ b + c: the errors of the operands, and K + 2 roundings."""
    passed_on = a.error @ b.size + np.abs(a.at) @ b.error
    terms = a.size @ b.size + (0.0 if c is None else c.size)
    at = a.at @ b.at + (0.0 if c is None else c.at)
    return Known(at, passed_on + (0.0 if c is None else c.error) + gamma(a.at.shape[1] + 2) * terms)


def times(a: Known, b: Known) -> Known:
    """a * b, rounded twice: f' is stored in between."""
    return Known(a.at * b.at, a.error * b.size + np.abs(a.at) * b.error + 4 * U * a.size * b.size)


def gradients(x: HostArray, y: HostArray, parameters: list[Known]) -> tuple[Known, list[Known]]:
    """The loss of a network of two layers, tanh between them, and its gradients."""
    w1, b1, w2, b2 = parameters
    given = Known(x.astype(np.float64), np.zeros(x.shape))
    z1 = product(given, w1, b1)
    h = Known(np.tanh(z1.at), z1.error + 8 * U)  # |tanh'| <= 1, |tanh''| < 0.8
    slope = Known(1 - h.at**2, 0.8 * z1.error + 8 * U)
    z2 = product(h, w2, b2)
    # exp(z - m) / sum: errors of z shift the exponents, by twice their largest; so do the roundings of z - m
    reach = z2.size.max(axis=1, keepdims=True) - (-z2.size).min(axis=1, keepdims=True)
    shift = 2 * z2.error.max(axis=1, keepdims=True) + 2 * U * reach + gamma(14) + 16 * U
    p = np.exp(z2.at - z2.at.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    t = np.eye(10)[y]
    losses = -np.log(p[np.arange(BATCH), y])
    loss = Known(losses.mean(), (shift[:, 0] + (gamma(BATCH + 2) + 8 * U) * losses).mean())
    dz2 = Known((p - t) / BATCH, (p * np.expm1(shift) + 8 * U * (p + t)) / BATCH)
    dz1 = times(product(dz2, w2.T), slope)
    ones = Known(np.ones((1, BATCH)), np.zeros((1, BATCH)))
    found = [product(given.T, dz1), product(ones, dz1), product(h.T, dz2), product(ones, dz2)]
    shapes = [w.at.shape for w in parameters]
    return loss, [Known(*(a.reshape(shape) for a in g)) for g, shape in zip(found, shapes, strict=True)]


def moved(w: Known, step: Known) -> Known:
    """w - step."""
    return Known(w.at - step.at, w.error + step.error + 4 * U * (w.size + step.size))


def mixed(share: float, a: Known, b: Known) -> Known:
    """share a + (1 - share) b."""
    size = share * a.size + (1 - share) * b.size
    return Known(share * a.at + (1 - share) * b.at, share * a.error + (1 - share) * b.error + 8 * U * size)


def adam(m: Known, v: Known, t: int) -> Known:
    """Its step: between those of the ends of m and v, and as large as Cauchy and Schwarz allow m / sqrt(v) to be."""
    root = np.sqrt(1 - BETA2**t)
    rate = RATE["adam"] * root / (1 - BETA1**t)
    shares = BETA1 ** (2 * np.arange(t)) / BETA2 ** np.arange(t)
    largest = rate * (1 - BETA1) / np.sqrt(1 - BETA2) * np.sqrt(shares.sum())

    def step(sign: float) -> HostArray:
        roots = (np.sqrt(np.maximum(v.at + side * v.error, 0)) + EPS * root for side in (-1, 1))
        ends = [rate * (m.at + sign * m.error) / r for r in roots]
        return np.clip(np.maximum(*ends) if sign > 0 else np.minimum(*ends), -largest, largest)

    at = rate * m.at / (np.sqrt(v.at) + EPS * root)
    return Known(at, np.maximum(step(1.0) - at, at - step(-1.0)) + 16 * U * largest)


def by_hand(optimizer: str, parameters: list[HostArray]) -> tuple[list[Known], list[Known]]:
    """The losses of the steps and the parameters after them."""
    known = [Known(p.astype(np.float64), np.zeros(p.shape)) for p in parameters]
    slots = [(Known(np.zeros(p.shape)), Known(np.zeros(p.shape))) for p in parameters]
    losses = []
    for number, rows in enumerate(BATCHES, 1):
        loss, found = gradients(DIGITS.x[rows], DIGITS.y[rows], known)
        losses.append(loss)
        if optimizer == "sgd":
            rate = RATE["sgd"]
            known = [moved(w, Known(rate * g.at, rate * g.error)) for w, g in zip(known, found, strict=True)]
            continue
        slots = [(mixed(BETA1, m, g), mixed(BETA2, v, times(g, g))) for (m, v), g in zip(slots, found, strict=True)]
        known = [moved(w, adam(m, v, number)) for w, (m, v) in zip(known, slots, strict=True)]
    return losses, known


def network(dtype: str) -> fc.nn.Sequential:
    fc.manual_seed(4)
    hidden = fc.nn.Dense(WIDTHS[1], "tanh", in_features=WIDTHS[0], dtype=dtype)
    return fc.nn.Sequential(hidden, fc.nn.Dense(WIDTHS[2], in_features=WIDTHS[1], dtype=dtype))


def trained(optimizer: str, dtype: str, start: Any = None) -> tuple[Any, list[float], list[HostArray]]:
    """What the steps start from, their losses, and the parameters after them, on the current device."""
    model = network(dtype)
    if start is not None:
        model.load_state_dict({name: values.astype(dtype) for name, values in start.items()})
    start = model.state_dict()
    kinds: dict[str, Any] = {"sgd": fc.optim.SGD, "adam": fc.optim.Adam}
    chosen = kinds[optimizer](model.parameters(), RATE[optimizer])

    @fc.capture
    def step(x: Any, y: Any) -> Any:
        chosen.zero_grad()
        loss = fc.losses.cross_entropy(model(x), y)
        loss.backward()
        chosen.step()
        return loss

    losses = [step(DIGITS.x[rows].astype(dtype), DIGITS.y[rows]).item() for rows in BATCHES]
    return start, losses, [p.numpy().astype(np.float64) for p in model.parameters()]


@pytest.mark.parametrize("optimizer", RATE)
def test_steps_are_those_of_the_reference(optimizer: str) -> None:
    with fc.use_device(Device("emu", 0, backend=CudaBackend(EmulatedDriver()))):
        start, losses, ours = trained(optimizer, "float32")
    with fc.use_device("reference"):
        _, exact_losses, exact = trained(optimizer, "float64", start)
    known_losses, known = by_hand(optimizer, list(start.values()))
    for loss, expected, bound in zip(losses, exact_losses, known_losses, strict=True):
        np.testing.assert_allclose(expected, bound.at, rtol=1e-12)
        assert abs(loss - expected) <= bound.error
    for w, first, expected, bound in zip(ours, start.values(), exact, known, strict=True):
        np.testing.assert_allclose(expected, bound.at, rtol=1e-9, atol=1e-12)
        assert (np.abs(w - expected) <= bound.error).all()
        assert np.median(bound.error) < 0.03 * np.median(np.abs(expected - first)), "the bound tells nothing"
