"""JAX on the GPU: as on the CPU; float32 is multiplied as such, not as TF32, which is what it would do by default."""

from __future__ import annotations

import os

# Of its own accord it would take three quarters of the GPU's memory at once, of which others need some.
os.environ.update(XLA_PYTHON_CLIENT_PREALLOCATE="false")

import jax

from fcdense.errors import DeviceError

from ..cases import Arrays, Case, Run
from ..networks import Network
from . import jax as on_cpu

VERSIONS = on_cpu.VERSIONS
KINDS = (Network,)

jax.config.update("jax_platforms", None)  # of those that it finds it takes the GPU
try:
    jax.devices("gpu")
except RuntimeError as error:
    raise DeviceError(f"JAX finds no GPU ({error}). pip install 'jax[cuda13]' brings what it needs.") from None


def prepare(case: Case, data: Arrays) -> Run | None:
    """Prediction and training of networks."""
    if isinstance(case, Network):
        jax.config.update("jax_default_matmul_precision", "highest" if case.dtype == "float32" else None)
    return on_cpu.prepare(case, data)
