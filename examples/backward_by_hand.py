"""The backward pass of a dense layer, written out: dW = x^T dy, db = sum of dy over the rows, dx = dy W^T."""

import numpy as np

import fcdense as fc


class HandMadeDense:
    """y = x @ W + b, and its gradients from the formulas."""

    def __init__(self, weights, bias):
        self.weights, self.bias = weights, bias

    def forward(self, x):
        self.x = x
        return x @ self.weights + self.bias

    def backward(self, dy):
        self.d_weights = self.x.T @ dy
        self.d_bias = dy.sum(axis=0)
        return dy @ self.weights.T


fc.manual_seed(0)
rng = np.random.default_rng(0)
x, dy = fc.tensor(rng.normal(size=(8, 10)), requires_grad=True), rng.normal(size=(8, 3))
layer = fc.nn.Dense(3, kernel_regularizer=fc.regularizers.l2(0.1), dtype="float64", in_features=10)
by_hand = HandMadeDense(layer.kernel.numpy(), layer.bias.numpy())

y = layer(x)
(y * dy).sum().backward()  # dy is what comes from the layers above
print("y agrees: ", np.allclose(y.numpy(), by_hand.forward(x.numpy()), rtol=1e-12))
print("dx agrees:", np.allclose(x.grad.numpy(), by_hand.backward(dy), rtol=1e-12))
print("dW agrees:", np.allclose(layer.kernel.grad.numpy(), by_hand.d_weights, rtol=1e-12))
print("db agrees:", np.allclose(layer.bias.grad.numpy(), by_hand.d_bias, rtol=1e-12))

layer.penalty().backward()  # 0.1 * sum W**2; its gradient is added to that of the loss
d_weights = by_hand.d_weights + 2 * 0.1 * by_hand.weights
print("dW with the regularizer agrees:", np.allclose(layer.kernel.grad.numpy(), d_weights, rtol=1e-12))
