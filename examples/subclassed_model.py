"""A model as a class of one's own: layers in `__init__`, what a call computes in `forward`."""

import numpy as np

import fcdense as fc


class TwoLayers(fc.nn.Module):
    """10 features -> 16 hidden neurons with ReLU -> 3 outputs."""

    def __init__(self):
        super().__init__()
        self.hidden = fc.nn.Dense(16, in_features=10)
        self.relu = fc.nn.ReLU()
        self.output = fc.nn.Dense(3, in_features=16)

    def forward(self, x):
        return self.output(self.relu(self.hidden(x)))


fc.manual_seed(0)
model = TwoLayers()
print(model)
y = model(np.ones((4, 10), np.float32))
print("(4, 10) ->", y.shape)
for name, parameter in model.named_parameters():
    print(f"{name:14} {parameter.shape}")
print("parameters:", model.num_parameters())
