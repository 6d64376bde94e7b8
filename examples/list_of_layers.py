"""Ten layers in a plain Python list, each ten neurons wider than the one before: 10 -> 10 -> 20 -> ... -> 100."""

from itertools import pairwise

import numpy as np

import fcdense as fc

fc.manual_seed(0)
sizes = [10, *range(10, 101, 10)]
layers = [fc.nn.Dense(units, activation="tanh", in_features=features) for features, units in pairwise(sizes)]

x = np.random.default_rng(0).normal(size=(8, 10)).astype(np.float32)
print("input ", x.shape)
for number, layer in enumerate(layers, 1):
    x = layer(x)
    print(f"layer {number:2}  kernel {layer.kernel.shape!s:10} output {x.shape}")

model = fc.nn.Sequential(layers)  # the same layers as a model
print("parameters of all", len(model), "layers:", model.num_parameters())
