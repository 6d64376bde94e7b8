"""PyTorch on the GPU: forward, loss and backward under `torch.compile` (max-autotune), fused optimizers, and the whole
step as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain, repeat

import torch

from ..cases import Arrays, Case, Run
from ..networks import Network
from ..questions.train import Train
from . import cuda_torch
from . import torch as eager

VERSIONS = cuda_torch.VERSIONS
KINDS = (Network,)

WARM_UP = 2
"""Calls before the one that is captured: the first compiles, and makes the optimizer's state."""


def prepare(case: Case, data: Arrays) -> Run | None:
    """Prediction and training of networks, but for float16, whose loss scale looks at the GPU between two kernels."""
    if isinstance(case, Train) and case.dtype == "float16":
        return None
    torch.compiler.reset()
    # The mode "max-autotune" would make graphs of the passes alone, with the optimizer's launches between them.
    compiled = partial(torch.compile, mode="max-autotune-no-cudagraphs", dynamic=False)
    options = {"fused": True}
    if isinstance(case, Train) and case.optimizer != "sgd":
        options["capturable"] = True
    return eager.prepare(case, data, compiled, options, "cuda", in_a_graph)


def in_a_graph(call: Callable[[], None]) -> Callable[[], None]:
    """The call as a CUDA graph, captured after `WARM_UP` calls (PyTorch's notes on CUDA semantics, whole-network
    capture)."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()

    def warm_up() -> None:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)

    def first() -> None:
        with torch.cuda.graph(graph, stream=stream):
            call()
        graph.replay()

    calls = chain(repeat(warm_up, WARM_UP), [first], repeat(graph.replay))
    return lambda: next(calls)()
