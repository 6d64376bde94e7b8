"""The last axis holds the features; whatever axes stand before it are rows, and stay as they are."""

import numpy as np

import fcdense as fc

fc.manual_seed(0)
rng = np.random.default_rng(0)
layer = fc.nn.Dense(10, bias_initializer="normal", dtype="float64", in_features=6)

for shape in ((2, 3, 6), (1, 3, 5, 6), (6,)):
    x = rng.normal(size=shape)
    y = layer(x).numpy()
    by_numpy = np.tensordot(x, layer.kernel.numpy(), axes=1) + layer.bias.numpy()
    print(shape, "->", y.shape, "  same as np.tensordot:", np.allclose(y, by_numpy, rtol=1e-12))
