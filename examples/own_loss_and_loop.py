"""A loss and a training loop of one's own: a line is fitted, and outliers are to count little."""

import numpy as np

import fcdense as fc


@fc.losses.elementwise()
def log_cosh(prediction, target):
    """l = log cosh(p - t): a parabola near 0, a straight line far off."""
    return np.log(np.cosh(prediction - target))


rng = np.random.default_rng(0)
x = rng.uniform(-1.0, 1.0, size=(200, 1)).astype(np.float32)
y = 3.0 * x + 0.5
y[::10] += 8.0  # outliers

fc.manual_seed(0)
model = fc.nn.Dense(1)
optimizer = fc.optim.Adam(model.parameters(), learning_rate=0.05)
for epoch in range(200):
    for rows in np.split(rng.permutation(200), 4):
        loss = log_cosh(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if epoch % 50 == 0:
        print(f"epoch {epoch:3}  loss {loss.item():.4f}")

slope, offset = model.kernel.item(), model.bias.item()
least_squares = np.polyfit(x[:, 0], y[:, 0], 1)
print(f"the line is 3.0 x + 0.5; log cosh finds {slope:.2f} x + {offset:.2f}")
print(f"least squares would find {least_squares[0]:.2f} x + {least_squares[1]:.2f}")
