"""Optimizers and learning-rate schedules.

``optimizer = fc.optim.Adam(model.parameters(), learning_rate=1e-3)``, then for each batch ``optimizer.zero_grad()``,
``loss.backward()``, ``optimizer.step()``. A rule of your own is a small class: see `Optimizer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fcdense.errors import ArgumentError, unknown_name
from fcdense.optim import schedules
from fcdense.optim.loss_scale import LossScale
from fcdense.optim.optimizer import Optimizer
from fcdense.optim.ranges import FLAG, NOT_NEGATIVE, POSITIVE, SHARE, Range
from fcdense.optim.rules import SGD, Adam, AdamW, RMSprop
from fcdense.parameter import Parameter

__all__ = [
    "FLAG",
    "NOT_NEGATIVE",
    "POSITIVE",
    "SGD",
    "SHARE",
    "Adam",
    "AdamW",
    "LossScale",
    "Optimizer",
    "RMSprop",
    "Range",
    "for_parameters",
    "get",
    "schedules",
]

TABLE: Mapping[str, type[Optimizer]] = {kind.__name__.lower(): kind for kind in (SGD, Adam, AdamW, RMSprop)}


def get(spec: str | type[Optimizer]) -> type[Optimizer]:
    """The class that `spec` is or names, in any case: ``get("adam")(model.parameters(), learning_rate=1e-3)``.

    Raises
    ------
    UnknownNameError
        No optimizer has this name.
    """
    if isinstance(spec, type) and issubclass(spec, Optimizer):
        return spec
    if not isinstance(spec, str):
        raise ArgumentError(f"Optimizer {spec!r}: expected {', '.join(TABLE)}, or a subclass of Optimizer.")
    return TABLE[spec.lower()] if spec.lower() in TABLE else unknown_name("optimizer", spec, TABLE)


def for_parameters(
    spec: str | type[Optimizer] | Optimizer, parameters: Sequence[Parameter], **options: Any
) -> Optimizer:
    """The optimizer that `spec` is, or names and is made with those `options` that are not None.

    Raises
    ------
    ArgumentError
        An optimizer that trains none of the `parameters`, or options for one that is made already.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if not isinstance(spec, Optimizer):
        return get(spec)(parameters, **given)
    if given:
        raise ArgumentError(f"{' and '.join(given)}: the optimizer is made already; give it there.")
    if not set(spec.parameters) & set(parameters):
        raise ArgumentError("The optimizer has no parameter of this model; make it with model.parameters().")
    return spec
