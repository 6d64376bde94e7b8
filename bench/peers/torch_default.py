"""PyTorch, eager, with its optimizers as they come, which update the parameters one after another."""

from __future__ import annotations

from ..cases import Arrays, Case, Run
from ..questions.train import Train
from . import torch

VERSIONS = torch.VERSIONS


def prepare(case: Case, data: Arrays) -> Run | None:
    """Training; prediction has no optimizer."""
    return torch.prepare(case, data, optimizer_options={}) if isinstance(case, Train) else None
