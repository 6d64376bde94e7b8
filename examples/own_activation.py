"""An activation of one's own: a function of NumPy's operations, of which the derivative is found."""

import numpy as np

import fcdense as fc


@fc.activation
def swish2(x):
    """f(x) = x sigmoid(2 x)."""
    return x * fc.math.sigmoid(2.0 * x)


print(swish2)
print("with arrays:", swish2(np.array([-1.0, 0.0, 1.0])).round(4))

x = fc.tensor([-1.0, 0.0, 1.0], requires_grad=True)
swish2(x).sum().backward()
s = 1 / (1 + np.exp(-2 * x.numpy()))
print("the derivative:", x.grad.numpy().round(4), " by hand:", (s + 2 * x.numpy() * s * (1 - s)).round(4))

layer = fc.nn.Dense(64, activation="swish2", in_features=8)  # by name, as the built-in ones
print(layer)

try:
    fc.activation(lambda x: x if x > 0 else 0.0, name="with_an_if")
except fc.errors.TraceError as error:
    print("refused:", error)
