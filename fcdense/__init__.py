"""Dense networks on CPU and GPU, fused and without a framework.

>>> import fcdense as fc
>>> model = fc.nn.Sequential(fc.nn.Dense(128, activation="relu"), fc.nn.Dense(10))
>>> trainer = fc.Trainer(model, "cross_entropy", fc.optim.Adam(model.parameters(), learning_rate=1e-3))
>>> history = trainer.fit(x_train, y_train, epochs=5)  # doctest: +SKIP
"""

from fcdense import _checkout as _checkout  # by being imported it makes fcdense.kernels findable in a checkout
from fcdense import (
    activations,
    callbacks,
    constraints,
    data,
    errors,
    init,
    losses,
    math,
    metrics,
    nn,
    ops,
    optim,
    regularizers,
)
from fcdense.activations import Activation, activation
from fcdense.backends import Device, available_devices, current_device, device, use_device
from fcdense.capture import capture
from fcdense.checkpoint import load, save
from fcdense.explain import explain
from fcdense.gradients import grad, gradcheck
from fcdense.history import History
from fcdense.inference import predict
from fcdense.ops import clip, concatenate, log_softmax, logsumexp, softmax, stack, where
from fcdense.optim import LossScale
from fcdense.parameter import Parameter
from fcdense.precision import current_precision, use_precision
from fcdense.random import manual_seed
from fcdense.tape import no_grad
from fcdense.tensor import Tensor, tensor
from fcdense.train import Trainer

__version__ = "0.1.0"

__all__ = [
    "Activation",
    "Device",
    "History",
    "LossScale",
    "Parameter",
    "Tensor",
    "Trainer",
    "activation",
    "activations",
    "available_devices",
    "callbacks",
    "capture",
    "clip",
    "concatenate",
    "constraints",
    "current_device",
    "current_precision",
    "data",
    "device",
    "errors",
    "explain",
    "grad",
    "gradcheck",
    "init",
    "load",
    "log_softmax",
    "logsumexp",
    "losses",
    "manual_seed",
    "math",
    "metrics",
    "nn",
    "no_grad",
    "ops",
    "optim",
    "predict",
    "regularizers",
    "save",
    "softmax",
    "stack",
    "tensor",
    "use_device",
    "use_precision",
    "where",
]
