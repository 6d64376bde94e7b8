"""One dense layer: 8 rows of 10 features become 8 rows of 3 neurons."""

import numpy as np

import fcdense as fc

fc.manual_seed(0)
x = np.random.default_rng(0).normal(size=(8, 10)).astype(np.float32)

layer = fc.nn.Dense(3, activation="relu", in_features=10)
y = layer(x)
print(f"input  x {x.shape!s:8} 8 rows of 10 features")
print(f"kernel W {layer.kernel.shape!s:8} a column for each of the 3 neurons")
print(f"bias   b {layer.bias.shape!s:8} a number for each neuron")
print(f"output y {y.shape!s:8} relu(x @ W + b)")
print("parameters:", layer.num_parameters(), "= 10 * 3 + 3")

# The activation may also stand outside: as a layer of its own, or as a function.
linear = fc.nn.Dense(3, in_features=10)
linear.load_state_dict(layer.state_dict())
as_layer = fc.nn.ReLU()(linear(x))
as_function = fc.activations.relu(linear(x))
print("activation as a layer of its own, largest difference:", abs(y - as_layer).max().item())
print("activation as a function, largest difference:", abs(y - as_function).max().item())
