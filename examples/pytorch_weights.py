"""PyTorch keeps the weights of a linear layer as (out, in); here they are (in, out), as y = x @ W + b is written."""

import importlib.util

import numpy as np

import fcdense as fc

rng = np.random.default_rng(0)
x = rng.normal(size=(8, 10)).astype(np.float32)
theirs = rng.normal(size=(3, 10)).astype(np.float32)  # (out, in)
bias = rng.normal(size=3).astype(np.float32)

layer = fc.nn.Dense(3, in_features=10)
layer.load_state_dict({"kernel": theirs.T, "bias": bias})
y = layer(x).numpy()
print("PyTorch's weight:", theirs.shape, "  y = x @ weight.T + bias")
print("our kernel:", layer.kernel.shape, "        y = x @ kernel + bias")
print("same output as NumPy:", np.allclose(y, x @ theirs.T + bias, atol=1e-5))

if importlib.util.find_spec("torch"):
    import torch

    linear = torch.nn.Linear(10, 3)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(theirs))
        linear.bias.copy_(torch.from_numpy(bias))
        print("same output as PyTorch:", np.allclose(y, linear(torch.from_numpy(x)).numpy(), atol=1e-5))
else:
    print("PyTorch is not installed, so there is nothing more to compare.")
