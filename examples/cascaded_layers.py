"""Two layers, one after the other: 10 features -> 3 neurons -> 5 neurons."""

import numpy as np

import fcdense as fc

fc.manual_seed(0)
x = np.random.default_rng(0).normal(size=(8, 10)).astype(np.float32)

first = fc.nn.Dense(3, activation="relu")  # takes its 10 features from the first input
second = fc.nn.Dense(5)
print("before the first call:", first, second)

hidden = first(x)
y = second(hidden)
print("after it:             ", first, second)
print("x", x.shape, "-> hidden", hidden.shape, "-> y", y.shape)

by_hand = np.maximum(x @ first.kernel.numpy() + first.bias.numpy(), 0) @ second.kernel.numpy() + second.bias.numpy()
print("same as NumPy:", np.allclose(y.numpy(), by_hand, atol=1e-6))
