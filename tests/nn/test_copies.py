"""Copies of modules, and modules on another device."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from fcdense import nn
from fcdense.backends import device
from fcdense.errors import DeviceError
from fcdense.parameter import pack
from fcdense.tensor import tensor


class TiedAutoencoder(nn.Module):
    """Both halves use one kernel."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Dense(3, in_features=3, dtype="float64")
        self.decoder = nn.Dense(3, in_features=3, dtype="float64")
        self.decoder.kernel = self.encoder.kernel

    def forward(self, x):
        return self.decoder(self.encoder(x))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("is_packed", [False, True])
def test_copies_are_whole_and_separate(copied, is_packed, rng):
    model = nn.Sequential(
        TiedAutoencoder(), nn.BatchNorm(dtype="float64"), nn.Dense(2, lambda v: v * v, dtype="float64")
    )
    x = rng.standard_normal((5, 3))
    model(x)
    model.eval()
    if is_packed:
        pack(model.parameters())
    twin = copied(model)
    np.testing.assert_array_equal(twin(x).numpy(), model(x).numpy())
    assert twin[0].decoder.kernel is twin[0].encoder.kernel
    assert list(twin.state_dict()) == list(model.state_dict())
    before = model.state_dict()
    for parameter in twin.parameters():
        parameter.assign(parameter.numpy() + 1.0)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    pack(twin.parameters())
    assert len({id(p.arena) for p in twin.parameters()}) == 1


def test_a_lazy_model_can_be_copied():
    twin = copy.deepcopy(nn.Sequential(nn.Dense(2), nn.BatchNorm()))
    assert twin(np.ones((3, 4), np.float32)).shape == (3, 2)


def test_to_moves_parameters_and_buffers(rng):
    model = nn.Sequential(nn.Dense(3, in_features=3), nn.BatchNorm(in_features=3), nn.Dense(2))
    x = rng.standard_normal((4, 3)).astype(np.float32)
    here = model.eval()(x).numpy()
    assert model.to("reference") is model
    goal = device("reference")
    assert all(p.device == goal for p in model.parameters())
    assert all(b.device == goal for _, b in model.named_buffers())
    assert nn.device_of(model) == goal
    y = model(x)  # an array goes to the model's device
    assert y.device == goal
    np.testing.assert_allclose(y.numpy(), here, rtol=1e-5)
    with pytest.raises(DeviceError, match=r"Dense 'layers.0': x is on cpu, the parameters are on reference"):
        model(tensor(x, device="cpu"))
    with pytest.raises(DeviceError):
        model.to("nowhere")
