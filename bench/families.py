"""Families: one kind of kernels for a product, by the tiling and parts with which it is the fastest here."""

from __future__ import annotations

from collections.abc import Sequence

from fcdense.backends import Device
from fcdense.backends.cuda import CudaBackend
from fcdense.backends.replay import Call, Replay
from fcdense.cuda.plan import Choice
from fcdense.cuda.tuning import Noting, Only

from .cases import Arrays, Case, Run
from .questions.products import Product

TRIALS = 3


def by_family(device: Device, family: str, case: Case, data: Arrays) -> Run | None:
    """A product by the kernels of one family on a GPU; None for other cases, and where it does not serve."""
    backend = device.backend
    if not isinstance(case, Product) or not isinstance(backend, CudaBackend):
        return None
    return case.run(device, data, lambda calls: fastest(backend, calls, family))


def fastest(backend: CudaBackend, calls: Sequence[Call], family: str) -> Replay | None:
    """The same product over several operands as one graph, by the tiling and parts with which a family of kernels is
    the fastest here; None where it does not serve this product."""
    plan = backend.products.plan
    found: list[tuple[float, Replay]] = []
    try:
        for choice in choices(backend, calls, family):
            backend.products.plan = Only(choice, plan)
            replay = backend.replay(calls)
            if not all(served.endswith(str(choice)) for served in replay.describe()):
                continue  # the library has refused it
            replay.run()
            seconds = min(backend.driver.timed(replay.run) for _ in range(TRIALS))
            found = [min([*found, (seconds, replay)], key=lambda one: one[0])]  # others free their memory
    finally:
        backend.products.plan = plan
    return found[0][1] if found else None


def choices(backend: CudaBackend, calls: Sequence[Call], family: str) -> list[Choice]:
    """What a family has for the product of the first call."""
    plan = backend.products.plan
    noting = backend.products.plan = Noting(plan)
    try:
        backend.replay(calls[:1])
    finally:
        backend.products.plan = plan
    (problem,) = noting.problems.values()
    return [choice for choice in plan.candidates(problem) if choice.family == family]
