"""PyTorch with forward, loss and backward under `torch.compile`, which needs a C++ compiler, and fused optimizers."""

from __future__ import annotations

from functools import partial

from torch import compile, compiler

from ..cases import Arrays, Case, Run
from . import torch

VERSIONS = torch.VERSIONS


def prepare(case: Case, data: Arrays) -> Run | None:
    """What the eager peer has."""
    compiler.reset()  # after eight shapes of one function PyTorch would go on uncompiled
    return torch.prepare(case, data, compiled=partial(compile, dynamic=False))
