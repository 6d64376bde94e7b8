"""A model of layers in a row: 3 -> 4 -> 5 -> 6, each layer with a sigmoid of its own behind it."""

import numpy as np

import fcdense as fc

fc.manual_seed(0)
model = fc.nn.Sequential(
    fc.nn.Dense(4, in_features=3),
    fc.nn.Sigmoid(),
    fc.nn.Dense(5, in_features=4),
    fc.nn.Sigmoid(),
    fc.nn.Dense(6, in_features=5),
    fc.nn.Sigmoid(),
)
print(model)

y = model(np.zeros((2, 3), np.float32))
print("output:", y.shape, "all between 0 and 1:", bool(((y > 0) & (y < 1)).numpy().all()))
for layer in model[::2]:
    rows, columns = layer.kernel.shape
    print(f"{rows} -> {columns}: {rows} * {columns} + {columns} = {layer.num_parameters()} parameters")
print("together:", model.num_parameters())
print(model.summary(3))
