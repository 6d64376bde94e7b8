"""`grad` of leaves, results and gradients themselves; `gradcheck` that can fail."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from fcdense import activations, ops, tape
from fcdense.errors import ArgumentError, GraphError, ShapeError
from fcdense.gradients import grad, gradcheck
from fcdense.tensor import Tensor, tensor

TANH = activations.get("tanh")


def leaf(values: Any) -> Tensor:
    return tensor(values, requires_grad=True)


# ---- grad ------------------------------------------------------------------------------------------------------------


def test_one_input_or_several() -> None:
    x, y = leaf([1.0, 2.0]), leaf(3.0)
    out = (x * x * y).sum()
    single = grad(out, x, retain_graph=True)
    assert isinstance(single, Tensor)
    np.testing.assert_array_equal(single.numpy(), [6.0, 12.0])
    with pytest.raises(ArgumentError, match="at least one input"):
        grad(out, iter(()))
    several = grad((part for part in (out,)), (leaf for leaf in (x, y, x)))
    assert isinstance(several, tuple)
    for found, expected in zip(several, ([6.0, 12.0], 5.0, [6.0, 12.0]), strict=True):
        np.testing.assert_array_equal(found.numpy(), expected)
        assert not found.requires_grad
    assert (x.grad, y.grad) == (None, None)


def test_results_in_between_and_the_output_itself() -> None:
    x = leaf([1.0, 2.0])
    h = x * x
    y = h * h
    dy, dh, dx = grad(y, [y, h, x], [1.0, 10.0])
    np.testing.assert_array_equal(dy.numpy(), [1.0, 10.0])
    np.testing.assert_array_equal(dh.numpy(), 2.0 * np.array([1.0, 4.0]) * [1, 10])
    np.testing.assert_array_equal(dx.numpy(), 4.0 * np.array([1.0, 8.0]) * [1, 10])
    np.testing.assert_array_equal(grad(x, x, np.ones(2)).numpy(), 1.0)


def test_several_outputs() -> None:
    x, w = leaf([1.0, 2.0]), leaf(3.0)
    h = x * w
    for outputs, seeds in (([h, (h * h).sum()], [np.ones(2), None]), ((h, (h * h).sum()), ([1, 1], 1.0))):
        dx, dw, dh = grad(outputs, [x, w, h], seeds, retain_graph=True)
        np.testing.assert_array_equal(dh.numpy(), 1.0 + 2.0 * h.numpy())
        np.testing.assert_array_equal(dx.numpy(), 3.0 * (1.0 + 2.0 * h.numpy()))
        np.testing.assert_array_equal(dw.numpy(), ((1.0 + 2.0 * h.numpy()) * x.numpy()).sum())
    np.testing.assert_array_equal(grad([w, w * w], w).numpy(), 7.0)
    with pytest.raises(ShapeError, match="needs one element"):
        grad([h, w], x)
    with pytest.raises(ArgumentError, match="2 outputs and 1 gradients"):
        grad([h, w], x, [np.ones(2)])
    with pytest.raises(ArgumentError, match="at least one"):
        grad([], x)
    for outputs, inputs, what in ((w, [x, "w"], "input.*str"), (3.0, x, "output.*float"), (w, None, "input.*None")):
        with pytest.raises(ArgumentError, match=f"at least one {what}"):
            grad(outputs, inputs)  # type: ignore[arg-type]


def test_a_hidden_dense_layer_that_is_itself_an_output(rng: np.random.Generator) -> None:
    """The gradient of h arrives from two sides, so its f' must not be multiplied in before both are there."""
    x, w = leaf(rng.normal(size=(4, 3))), leaf(rng.normal(size=(3, 3)))
    h = ops.dense(x, w, None, TANH)
    y = ops.dense(h, w, None, TANH)
    found = grad([h, y], [x, w, h], [np.ones((4, 3)), np.ones((4, 3))])
    h2 = np.tanh(x @ w)
    expected = grad((h2 + np.tanh(h2 @ w)).sum(), [x, w, h2])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-13, atol=1e-15)


def test_an_input_that_is_not_used() -> None:
    x, y = leaf([1.0]), leaf([1.0])
    for output, inputs in ((x * 2.0, y), (x * 2.0, [x, y]), (x * y.detach(), [y]), (x * 2.0, x * 3.0), (x, y)):
        with pytest.raises(GraphError, match=r"does not depend on input [01] \(shape \(1,\)\)"):
            grad(output, inputs)
    with pytest.raises(GraphError, match="requires_grad=True"):
        grad(tensor([1.0]), x)
    with pytest.raises(ShapeError):
        grad(leaf([1.0, 2.0]) * 2.0, x)


def test_the_graph_is_kept_when_asked_for() -> None:
    x = leaf([2.0])
    y = x * x
    grad(y, x, retain_graph=True)
    grad(y, x, create_graph=True)
    grad(y, x)
    for again in (y.backward, lambda: grad(y, x)):
        with pytest.raises(GraphError, match="retain_graph"):
            again()


def test_recording_is_off_unless_asked_for() -> None:
    x = leaf([2.0])
    y = x**3
    assert not grad(y, x, retain_graph=True).requires_grad
    with tape.no_grad():
        dx = grad(y, x, create_graph=True)
    assert dx.requires_grad, "create_graph is a request, whatever the surroundings"
    assert grad(dx, x).item() == 12.0


def test_third_derivatives() -> None:
    x = leaf([0.7, -0.3])
    y = np.sin(x) * np.exp(x)
    for k in range(1, 5):
        y = grad(y.sum(), x, create_graph=True)
        a = x.numpy()
        np.testing.assert_allclose(y.numpy(), 2 ** (k / 2) * np.exp(a) * np.sin(a + k * np.pi / 4), rtol=1e-13)


# ---- derivatives of networks -----------------------------------------------------------------------------------------


def network(x: Any, p: list[Any]) -> Tensor:
    return ops.dense(ops.dense(ops.dense(x, p[0], p[1], TANH), p[2], p[3], TANH), p[4], p[5])


def weights(rng: np.random.Generator, *sizes: int) -> list[Any]:
    return [a for n, m in pairwise(sizes) for a in (rng.normal(size=(n, m)), rng.normal(size=m))]


def test_second_derivative_of_a_network_by_its_input(rng: np.random.Generator) -> None:
    """What a PINN asks for: u'' against central differences of u."""
    p = [leaf(a) for a in weights(rng, 1, 8, 8, 1)]
    points = np.linspace(-1.0, 1.0, 7)[:, None]
    x = leaf(points)
    u_x = grad(network(x, p).sum(), x, create_graph=True)
    u_xx = grad(u_x.sum(), x, create_graph=True)
    h = 1e-4

    def u(z: Any) -> Any:
        return network(tensor(z), p).numpy()

    np.testing.assert_allclose(
        u_xx.numpy(), (u(points + h) - 2.0 * u(points) + u(points - h)) / h**2, rtol=1e-5, atol=1e-6
    )
    (u_xx * u_xx).mean().backward()
    torch = pytest.importorskip("torch")
    q = [torch.tensor(leaf.numpy().copy(), requires_grad=True) for leaf in p]
    t = torch.tensor(points, requires_grad=True)
    out = torch.tanh(torch.tanh(t @ q[0] + q[1]) @ q[2] + q[3]) @ q[4] + q[5]
    t_x = torch.autograd.grad(out.sum(), t, create_graph=True)[0]
    t_xx = torch.autograd.grad(t_x.sum(), t, create_graph=True)[0]
    (t_xx * t_xx).mean().backward()
    np.testing.assert_allclose(u_xx.numpy(), t_xx.detach().numpy(), rtol=1e-11, atol=1e-12)
    for ours, theirs in zip(p[:-1], q[:-1], strict=True):
        np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=1e-10, atol=1e-12)
    assert p[-1].grad is None, "the last bias does not enter u''"


def test_gradient_penalty(rng: np.random.Generator) -> None:
    arrays = [rng.normal(size=(3, 2)), *weights(rng, 2, 4, 3, 1)]

    def penalty(x: Tensor, *p: Tensor) -> Tensor:
        y = network(x, list(p))
        slope = grad(y.sum(), x, create_graph=True)
        return ((np.sqrt((slope * slope).sum(axis=1)) - 1.0) ** 2).mean() + 0.1 * (y * y).mean()

    gradcheck(penalty, arrays)


def test_hessian_vector_product(rng: np.random.Generator) -> None:
    a = rng.normal(size=(4, 4))
    matrix, point, v = a + a.T, rng.normal(size=4), rng.normal(size=4)
    x = leaf(point)
    slope = grad(0.5 * (x @ matrix @ x), x, create_graph=True)
    np.testing.assert_allclose(grad(slope, x, v).numpy(), matrix @ v, rtol=1e-13)


def test_second_derivatives_skip_nothing_at_a_joined_layer(rng: np.random.Generator) -> None:
    """d/dh for a hidden h, recorded, then differentiated by the weights below it."""
    arrays = [rng.normal(size=(3, 2)), *weights(rng, 2, 4, 3, 1)]

    def function(x: Tensor, *p: Tensor) -> Tensor:
        h = ops.dense(x, p[0], p[1], TANH)
        y = ops.dense(ops.dense(h, p[2], p[3], TANH), p[4], p[5], TANH)
        slope = grad(y.sum(), h, create_graph=True)
        return (slope * slope * h).sum() + y.sum()

    gradcheck(function, arrays)


# ---- gradcheck -------------------------------------------------------------------------------------------------------


def wrong_square(x: Tensor, factor: float) -> Tensor:
    """x² with the gradient `factor`·x; the right one is 2x."""
    out = x.derived(x.array**2)
    if tape.needs_grad((x,)):
        out.attach(tape.VjpNode("square", (x,), lambda dy: (dy * x.detach() * factor,), (x,)))
    return out


def test_gradcheck_passes_the_right_gradient_and_fails_a_wrong_one() -> None:
    point = np.array([[1.0, 2.0], [3.0, -4.0]])
    assert gradcheck(lambda x: wrong_square(x, 2.0), point)
    for factor in (2.01, -2.0, 0.0, np.nan, np.inf):
        with pytest.raises(
            GraphError, match=r"Input 0, element \(\d, \d\): the gradient is .*, the central difference"
        ):
            gradcheck(lambda x, factor=factor: wrong_square(x, factor), point)


def test_gradcheck_names_the_worst_element() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        return x + wrong_square(y, 2.1)

    with pytest.raises(GraphError, match=r"Input 1, element \(1,\): the gradient is -?\d"):
        gradcheck(function, [np.ones(3), np.array([1.0, -20.0, 3.0])])


@pytest.mark.parametrize(
    "tolerance", [{"rtol": 1e-2, "atol": 0.0}, {"atol": 1.0, "rtol": 0.0}, {"eps": 1e-4, "rtol": 1e-2}]
)
def test_gradcheck_takes_tolerances(tolerance: dict[str, float]) -> None:
    assert gradcheck(lambda x: wrong_square(x, 2.01), np.array([1.0, 2.0]), **tolerance)


def test_what_gradcheck_takes() -> None:
    inputs: list[Any] = [
        2.0,
        [1.0, 2.0],
        np.array([1, 2]),
        np.ones(2, np.float32),
        tensor([1.0]),
        leaf([1.0]),
        [leaf([1.0])],
    ]
    for given in inputs:
        assert gradcheck(lambda *x: x[0] * x[-1], given)
    assert gradcheck(lambda x: x.sum(axis=0), np.empty((0, 2)))
    with pytest.raises(ArgumentError, match="at least one input"):
        gradcheck(lambda: tensor(1.0), ())
    with pytest.raises(GraphError, match="does not depend on input 1"):
        gradcheck(lambda x, y: x * 2.0, (1.0, 2.0))


@pytest.mark.parametrize("function", [np.abs, lambda x: np.maximum(x, 0.0)], ids=["abs", "relu"])
def test_gradcheck_sees_a_kink(function: Callable[[Any], Any]) -> None:
    assert gradcheck(function, np.array([-1.0, 1.0]))
    with pytest.raises(GraphError, match=r"element \(1,\)"):
        gradcheck(lambda x: function(x) + x, np.array([-1.0, 1e-8]))
