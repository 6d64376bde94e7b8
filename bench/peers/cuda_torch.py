"""PyTorch on the GPU, eager, with its fused optimizers, autocast where precision is mixed; also its copy and AdamW."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fcdense.errors import DeviceError

from ..cases import Arrays, Case, Run
from ..networks import Network
from ..questions.bandwidth import DECAY, EPSILON, LEARNING_RATE, Pass
from . import torch as eager

VERSIONS = eager.VERSIONS | {"cuda of torch": str(torch.version.cuda)}
KINDS = (Network, Pass)

if not torch.cuda.is_available():
    raise DeviceError(f"torch {torch.__version__} finds no GPU. Its build for CUDA is at pytorch.org/get-started.")


def prepare(case: Case, data: Arrays) -> Run | None:
    """Prediction and training of networks; copies and AdamW."""
    return passes(case, data) if isinstance(case, Pass) else eager.prepare(case, data, on="cuda")


def passes(case: Pass, data: Arrays, on: str = "cuda") -> Run:
    """A copy, or AdamW on flat parameters."""
    w = torch.from_numpy(data["w"]).to(on)
    wait: Callable[[], None] = torch.cuda.synchronize if on == "cuda" else lambda: None

    def result(array: Any) -> Arrays:
        return {"w": eager.host(array.detach()[case.compared])}

    if case.what == "copy":
        out = torch.empty_like(w)
        return Run(lambda: out.copy_(w), lambda: result(out), wait)
    parameter = torch.nn.Parameter(w)
    parameter.grad = torch.from_numpy(data["g"]).to(on)
    optimizer = torch.optim.AdamW([parameter], LEARNING_RATE, eps=EPSILON, weight_decay=DECAY, fused=True)
    return Run(optimizer.step, lambda: result(parameter), wait)
