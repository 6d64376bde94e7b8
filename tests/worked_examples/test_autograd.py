"""z = x @ w + b under a binary cross entropy over three outputs: the example of PyTorch's tutorial on autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fcdense as fc

X, Y = np.ones(5), np.zeros(3)


@pytest.fixture
def values(rng: np.random.Generator) -> tuple[Any, Any]:
    return rng.normal(size=(5, 3)), rng.normal(size=3)


def forward(values: tuple[Any, Any]) -> tuple[fc.Tensor, fc.Tensor, fc.Tensor, fc.Tensor]:
    w, b = (fc.tensor(array, requires_grad=True) for array in values)
    z = fc.tensor(X) @ w + b
    return w, b, z, fc.losses.binary_cross_entropy_with_logits(z, fc.tensor(Y))


def sigmoid(values: tuple[Any, Any]) -> Any:
    w, b = values
    return 1 / (1 + np.exp(-(X @ w + b)))


def test_loss(values: tuple[Any, Any]):
    loss = forward(values)[-1]
    p = sigmoid(values)
    expected = -np.mean(Y * np.log(p) + (1 - Y) * np.log(1 - p))
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-12, atol=1e-13)


def test_gradients(values: tuple[Any, Any]):
    w, b, _, loss = forward(values)
    loss.backward()
    dz = (sigmoid(values) - Y) / 3
    np.testing.assert_allclose(b.grad.numpy(), dz, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(w.grad.numpy(), np.outer(X, dz), rtol=1e-12, atol=1e-13)
    for row in w.grad.numpy():  # x is all ones: dw_io = x_i dz_o = db_o
        np.testing.assert_array_equal(row, b.grad.numpy())


def test_same_as_pytorch(values: tuple[Any, Any]):
    torch = pytest.importorskip("torch")
    w, b = (torch.tensor(array, requires_grad=True) for array in values)
    z = torch.from_numpy(X) @ w + b
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(z, torch.from_numpy(Y))
    theirs.backward()
    ours = forward(values)
    ours[-1].backward()
    np.testing.assert_allclose(ours[-1].item(), theirs.item(), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(ours[0].grad.numpy(), w.grad.numpy(), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(ours[1].grad.numpy(), b.grad.numpy(), rtol=1e-12, atol=1e-13)


def test_gradients_add_up_until_they_are_forgotten(values: tuple[Any, Any]):
    w, b, _, loss = forward(values)
    loss.backward(retain_graph=True)
    once = b.grad.numpy().copy()
    loss.backward()
    np.testing.assert_array_equal(b.grad.numpy(), 2 * once)
    b.zero_grad()
    assert b.grad is None
    assert w.grad is not None
    with pytest.raises(fc.errors.GraphError):
        loss.backward()  # the graph was kept for one more pass only


def test_no_grad_and_detach(values: tuple[Any, Any]):
    w, b, z, loss = forward(values)
    assert z.requires_grad
    assert loss.requires_grad
    with fc.no_grad():
        silent = fc.tensor(X) @ w + b
    assert not silent.requires_grad
    assert not z.detach().requires_grad
    for same in (silent, z.detach()):
        np.testing.assert_array_equal(same.numpy(), z.numpy())
    with pytest.raises(fc.errors.GraphError, match="requires_grad"):
        silent.sum().backward()


def test_the_script(run_example):
    lines = run_example("autograd.py").splitlines()
    assert lines[1] == "z remembers how it was computed: True"
    assert lines[3] == "w.grad:"
    assert set(lines[4:9]) == {lines[2].removeprefix("b.grad: ")}
    assert lines[9:] == ["inside of no_grad: False", "detached: False", "after zero_grad: None"]
