"""The whole comparison on a GPU: what is measured where nothing but the device is asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from . import questions
from .cases import Case, Grid
from .timing import Plan

WIDTHS = (512, 1024, 2048, 4096)
LAYERS = ((256, 784, 512), *((16384, width, width) for width in (*WIDTHS, 8192)))
PRODUCTS = Grid(sizes=LAYERS, activations=("gelu_tanh",))  # the one that cuBLASLt has
WIDE = Grid(networks=tuple((width,) * 5 for width in WIDTHS), batches=(16384,), max_gflop=math.inf)
SMALL = Grid(networks=((784, 512, 512, 10),), batches=(256,))

PARTS: tuple[tuple[tuple[str, ...], Grid], ...] = (
    (("launch", "bandwidth"), Grid()),
    (("products",), replace(PRODUCTS, sizes=((16384, 4096, 4096),), dtype="bfloat16")),
    (("train",), replace(SMALL, dtype="bfloat16")),
    (("products",), replace(PRODUCTS, dtype="bfloat16")),
    (("train",), replace(WIDE, dtype="bfloat16", activations=("gelu",), optimizers=("adamw",))),
    (("train",), SMALL),
    (("products",), PRODUCTS),
)
"""First what gives the rates of the device, then what takes seconds before what takes minutes: `torch.compile` tries
kernels anew for each width, and the time may not suffice for all."""

PLAN = Plan(min_time=0.07, warmup=0.01, rounds=7, max_others=2.0)
"""On a GPU nothing spins after a call, and the processor does no more than launch."""
TIME_LIMIT = 450.0
"""Seconds for all of it."""
ALL_ELSE, LEAST_SHARE = 200.0, 0.3
"""Seconds that are kept for all others, but for a share of the time that any candidate may have. They are estimated."""


def patience(limit: float) -> float:
    """Seconds for all answers of a candidate: `torch.compile` may try kernels for longer than all else takes, and what
    it has tried until then is kept."""
    return max(limit - ALL_ELSE, LEAST_SHARE * limit)


def cases(given: Mapping[str, Any]) -> list[Case]:
    """All cases, with the values that the command line gives for fields of the grid."""
    found = [case for names, grid in PARTS for case in questions.cases(names, replace(grid, **given))]
    return list(dict.fromkeys(found))
