"""`tune`: measure which kernel serves each product of a step best on this GPU, and keep it for later processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcdense.backends import Device, current_device
from fcdense.backends import device as named
from fcdense.backends.cuda import CudaBackend
from fcdense.backends.probe import failed_probe
from fcdense.cuda import tables, tuning
from fcdense.cuda.driver import Driver
from fcdense.cuda.plan import Choice, Problem
from fcdense.cuda.tuning import Measured
from fcdense.errors import ArgumentError
from fcdense.log import logger

HEADINGS = ("product", "chosen", "time", "before", "slowest")


@dataclass(frozen=True)
class Tuning:
    """What `tune` measured; printed, it is a table.

    Attributes
    ----------
    device : str
    lines : tuple of (Problem, str, sequence of Measured)
        Each product of the step, what served it before, and what was measured, the fastest first.
    path : Path or None
        The table that now has the choices; None where it could not be written.
    """

    device: str
    lines: tuple[tuple[Problem, str, Sequence[Measured]], ...]
    path: Path | None

    def _rows(self) -> list[tuple[str, ...]]:
        rows = []
        for problem, before, measured in self.lines:
            seconds = {str(choice): seconds for choice, seconds in measured}
            shape = f"{problem.rows} x {problem.columns} x {problem.depth} {problem.dtype}"
            times = measured[0].seconds, seconds.get(before), measured[-1].seconds
            rows.append((shape, str(measured[0].choice), *("-" if t is None else f"{1e6 * t:.1f} us" for t in times)))
        return rows

    def __repr__(self) -> str:
        rows = [HEADINGS, *self._rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
        lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([f"products on {self.device}", *lines, f"kept in {self.path}" if self.path else "not kept"])


def gpu_of(device: Device) -> CudaBackend:
    """The backend of a device that has something to tune.

    Raises
    ------
    ArgumentError
        It is no GPU.
    """
    if isinstance(device.backend, CudaBackend):
        return device.backend
    failed = failed_probe()
    raise ArgumentError(
        f'There is nothing to tune on device {device.name!r}; expected a GPU, such as "cuda".'
        f"{'' if failed is None else f' There is none: {failed}'}"
    )


def tune(step: Callable[[], Any], device: str | Device | None = None) -> Tuning:
    """Measure the products of a step on a GPU and choose for each the kernel that was the fastest.

    `step` is called once, on its own data. Each of its products is then timed on random numbers by every kernel that
    can serve it, cuBLASLt among them where it is installed. The choices hold for this process and for later ones on the
    same kind of GPU; steps that were captured before keep theirs.

    Parameters
    ----------
    step : callable
        Without arguments, such as a training step.
    device : str or Device, optional
        The GPU; the current device if not given.

    Returns
    -------
    Tuning

    Raises
    ------
    ArgumentError
        The device is no GPU, the step multiplies nothing on it, or the cache's folder cannot be written to, which is
        seen before anything is measured.
    """
    chosen = current_device() if device is None else named(device)
    backend = gpu_of(chosen)
    tables.require_folder(backend.driver)
    plan = backend.products.plan
    noting = backend.products.plan = tuning.Noting(plan)
    try:
        step()
    finally:
        backend.products.plan = plan
    if not noting.problems:
        raise ArgumentError(f"The step multiplies no matrices on {chosen.name}: is its model there?")
    measured = {bucket: tuning.measure(backend, problem) for bucket, problem in noting.problems.items()}
    found = {bucket: candidates for bucket, candidates in measured.items() if candidates}
    lines = tuple(
        (noting.problems[bucket], str(plan.choose(noting.problems[bucket])), found[bucket]) for bucket in found
    )
    choices = {bucket: candidates[0].choice for bucket, candidates in found.items()}
    plan.learn(choices)
    return Tuning(chosen.name, lines, _kept(backend.driver, choices))


def _kept(driver: Driver, choices: dict[str, Choice]) -> Path | None:
    """The table that now has the choices; None, and a warning, where it cannot be written."""
    try:
        return tables.write(driver, choices)
    except OSError as error:
        logger.warning(
            "What was measured cannot be kept in %s (%s): it holds for this process alone. Name a folder that can be "
            "written to in FCDENSE_CACHE.",
            tables.path_of(driver).parent,
            error.strerror,
        )
        return None
