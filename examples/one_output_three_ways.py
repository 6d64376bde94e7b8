"""The output of a dense layer, computed three ways: by the layer, by one matrix product, neuron by neuron."""

import numpy as np

import fcdense as fc

fc.manual_seed(0)
x = np.random.default_rng(0).normal(size=(8, 10))
layer = fc.nn.Dense(3, bias_initializer="normal", dtype="float64", in_features=10)
weights, bias = layer.kernel.numpy(), layer.bias.numpy()

by_layer = layer(x).numpy()

by_product = x @ weights + bias

by_neuron = np.empty((8, 3))
for row in range(8):
    for neuron in range(3):
        by_neuron[row, neuron] = np.dot(x[row], weights[:, neuron]) + bias[neuron]

print("first row, layer:         ", by_layer[0].round(6))
print("first row, x @ W + b:     ", by_product[0].round(6))
print("first row, dot by dot:    ", by_neuron[0].round(6))
print("layer and product agree:", np.allclose(by_layer, by_product, rtol=1e-12))
print("layer and dot products agree:", np.allclose(by_layer, by_neuron, rtol=1e-12))
