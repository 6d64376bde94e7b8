"""Saving a model, loading it, and what is in the file: numbers and a description, never code."""

import tempfile
from pathlib import Path

import numpy as np

import fcdense as fc

fc.manual_seed(0)
model = fc.nn.Sequential(fc.nn.Dense(16, activation="gelu", in_features=4), fc.nn.Dropout(0.5), fc.nn.Dense(3)).eval()
x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
before = model(x)

with tempfile.TemporaryDirectory() as folder:
    path = fc.save(Path(folder) / "model.safetensors", model)
    loaded = fc.load(path)
print(loaded)
print("same bits:", bool((loaded(x) == before).numpy().all()))

# The numbers alone, for a model whose class is one's own.
values = model.state_dict()
print({name: array.shape for name, array in values.items()})
other = fc.nn.Sequential(fc.nn.Dense(16, activation="gelu"), fc.nn.Dropout(0.5), fc.nn.Dense(3)).eval()
other.load_state_dict(values)
print("same bits again:", bool((other(x) == before).numpy().all()))
