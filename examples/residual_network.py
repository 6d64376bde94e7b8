"""A residual network: every block adds what it computes to its input, so that deep models begin as shallow ones."""

import numpy as np

import fcdense as fc


class Residual(fc.nn.Module):
    """x + Dense(Dense(LayerNorm(x)))."""

    def __init__(self, units):
        super().__init__()
        self.norm = fc.nn.LayerNorm()
        self.layers = [fc.nn.Dense(units, activation="gelu"), fc.nn.Dense(units, kernel_initializer="zeros")]

    def forward(self, x):
        first, second = self.layers
        return x + second(first(self.norm(x)))


fc.manual_seed(0)
x = np.random.default_rng(0).normal(size=(256, 4)).astype(np.float32)
y = np.sin(2 * x[:, 0]) * x[:, 1] + x[:, 2] ** 2

model = fc.nn.Sequential(fc.nn.Dense(32), *(Residual(32) for _ in range(4)), fc.nn.Dense(1))
hidden = model[0](x)
print("at first a block passes its input on:", bool((model[1](hidden) == hidden).numpy().all()))

trainer = fc.Trainer(model, "mse", "adam", learning_rate=0.003)
history = trainer.fit(x, y, epochs=20, verbose=False)
print("parameters:", model.num_parameters())
print(f"variance of the targets: {y.var():.3f}")
print(f"mean squared error after 20 epochs: {history['loss'][-1]:.3f}")
