"""Layers and models: `Module`, `Sequential`, `Dense`, activations, normalization, dropout.

Every built-in layer describes itself as data (`config`) and is made again from it (`from_config`); `LAYERS` lists them.
"""

from fcdense.nn.activation import Activation
from fcdense.nn.activations import (
    CELU,
    ELU,
    GELU,
    SELU,
    HardSigmoid,
    HardSiLU,
    HardTanh,
    LeakyReLU,
    LogSigmoid,
    LogSoftmax,
    Mish,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    Sine,
    Softmax,
    Softplus,
    Softsign,
    Squareplus,
    Tanh,
    TanhShrink,
)
from fcdense.nn.dense import Dense
from fcdense.nn.dropout import Dropout
from fcdense.nn.features import unbuilt
from fcdense.nn.flatten import Flatten
from fcdense.nn.input import device_of
from fcdense.nn.layer import LAYERS, Layer, from_data, to_data
from fcdense.nn.module import Module, parameter
from fcdense.nn.normalization import BatchNorm, LayerNorm
from fcdense.nn.sequential import Sequential
from fcdense.nn.spectral import SpectralNorm
from fcdense.nn.summary import layer_outputs
from fcdense.parameter import Parameter

__all__ = [
    "CELU",
    "ELU",
    "GELU",
    "LAYERS",
    "SELU",
    "Activation",
    "BatchNorm",
    "Dense",
    "Dropout",
    "Flatten",
    "HardSiLU",
    "HardSigmoid",
    "HardTanh",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "LogSigmoid",
    "LogSoftmax",
    "Mish",
    "Module",
    "Parameter",
    "ReLU",
    "ReLU6",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Sine",
    "Softmax",
    "Softplus",
    "Softsign",
    "SpectralNorm",
    "Squareplus",
    "Tanh",
    "TanhShrink",
    "device_of",
    "from_data",
    "layer_outputs",
    "parameter",
    "to_data",
    "unbuilt",
]
