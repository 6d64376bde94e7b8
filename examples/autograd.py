"""Gradients: z = x @ w + b, a loss, and what `backward` leaves in w.grad and b.grad."""

import numpy as np

import fcdense as fc

rng = np.random.default_rng(0)
x = fc.tensor(np.ones(5))
y = fc.tensor(np.zeros(3))
w = fc.tensor(rng.normal(size=(5, 3)), requires_grad=True)
b = fc.tensor(rng.normal(size=3), requires_grad=True)

z = x @ w + b
loss = fc.losses.binary_cross_entropy_with_logits(z, y)
print("loss:", loss.item())
print("z remembers how it was computed:", z.requires_grad)

loss.backward()
print("b.grad:", b.grad.numpy())  # (sigmoid(z) - y) / 3
print("w.grad:", *w.grad.numpy(), sep="\n")  # x is all ones: every row is b.grad

with fc.no_grad():
    print("inside of no_grad:", (x @ w + b).requires_grad)
print("detached:", z.detach().requires_grad)

w.zero_grad()
print("after zero_grad:", w.grad)
