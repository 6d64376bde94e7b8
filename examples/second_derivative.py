"""A differential equation: a network learns u with u'' = -u on [0, pi], u(0) = 0 and u(pi/2) = 1, which is sin."""

import numpy as np

import fcdense as fc

fc.manual_seed(0)
x = fc.tensor(np.linspace(0.0, np.pi, 20)[:, None], requires_grad=True)
network = fc.nn.Sequential(
    fc.nn.Dense(32, activation="tanh", dtype="float64"),
    fc.nn.Dense(1, dtype="float64"),
)


def u(x):
    """Meets both conditions, whatever the network says."""
    return 2 / np.pi * x + x * (x - np.pi / 2) * network(x)


optimizer = fc.optim.Adam(network.parameters(), learning_rate=0.03)
for step in range(300):
    value = u(x)
    slope = fc.grad(value.sum(), x, create_graph=True)
    curvature = fc.grad(slope.sum(), x, create_graph=True)
    loss = ((curvature + value) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 0:
        print(f"step {step:3}  mean square of u'' + u: {loss.item():.1e}")

with fc.no_grad():
    error = abs(u(x).numpy() - np.sin(x.numpy())).max()
print(f"largest difference from sin(x): {error:.1e}")
