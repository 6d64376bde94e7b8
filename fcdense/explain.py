"""`explain`: which primitives a model's passes are made of, and what serves each of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fcdense import losses, nn, optim, tape
from fcdense.arena import Array
from fcdense.backends.replay import Call
from fcdense.capture import Captured
from fcdense.captured_training import UNKNOWN_TARGETS, training_step
from fcdense.errors import ArgumentError, GraphError
from fcdense.inference import evaluating, require_module
from fcdense.nn.input import device_of
from fcdense.precision import FLOAT_KINDS, current_precision
from fcdense.random import drawing_aside
from fcdense.tensor import Tensor, placed

HEADINGS = ("", "primitive", "reads", "writes", "served by")


class Line(NamedTuple):
    """One call of a primitive, in words."""

    primitive: str
    reads: str
    writes: str
    served_by: str


@dataclass(frozen=True)
class Explanation:
    """What `explain` found out; printed, it is a table.

    Attributes
    ----------
    device : str
        Where the model lies.
    precision : str
        In which numbers it multiplies (`fcdense.use_precision`).
    passes : dict
        The calls of "forward", and of "training step" where a loss was given.
    notes : tuple of str
        What is replayed without Python, and what is not, for which reason.
    """

    device: str
    precision: str
    passes: dict[str, tuple[Line, ...]]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        return "\n".join(self._text())

    def _text(self) -> Iterator[str]:
        for title, lines in self.passes.items():
            rows = [HEADINGS, *((str(number), *line) for number, line in enumerate(lines))]
            widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
            yield self._heading(title, lines)
            yield from (
                "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
            )
            yield ""
        yield from self.notes

    def _heading(self, title: str, lines: Sequence[Line]) -> str:
        precision = "" if self.precision == "float32" else f" in {self.precision}"
        return f"{title} on {self.device}{precision}, {len(lines)} calls"

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table

        parts: list[Any] = []
        for title, lines in self.passes.items():
            table = Table(*HEADINGS, title=self._heading(title, lines), title_justify="left")
            for number, line in enumerate(lines):
                table.add_row(str(number), *line)
            parts.append(table)
        return Group(*parts, *self.notes)


def explain(model: nn.Module, x: Any, y: Any = None, *, loss: Any = None, optimizer: Any = None) -> Explanation:
    """Which primitives the model's passes over `x` are made of, and which implementation serves each, and why.

    Inside of `fcdense.use_precision` the passes are those of mixed precision; arrays of 16 bits are marked.

    Parameters
    ----------
    model : nn.Module
        Is left as it is: a copy of it is called.
    x : array (B, ..., I)
        Rows, of which the shape and the dtype matter.
    y : array, optional
        Targets, for the training step.
    loss : str or callable, optional
        As for `Trainer`; given with `y`, the training step is explained too.
    optimizer : str or class, optional
        As for `Trainer`, which takes "adam"; without it, the training step ends with the gradients.

    Returns
    -------
    Explanation

    Raises
    ------
    ArgumentError
        `model` is no module, `loss` without `y`, or an optimizer without a loss.
    """
    require_module(model, "explain")
    if (loss is None) != (y is None) or (optimizer is not None and loss is None):
        raise ArgumentError("explain takes a training step as y and loss together; the optimizer goes with them.")
    try:
        model = copy.deepcopy(model)
    except (GraphError, TypeError) as error:
        raise ArgumentError(f"explain calls a copy of the model, and this one cannot be copied: {error}") from None
    with drawing_aside():
        with evaluating(model), tape.no_grad(), np.errstate(all="ignore"):
            on = device_of(model)
            rows = placed(x, on, "x")
            model(rows)  # which builds it
            forward, note = _recorded(Captured(model), "predict", "forward pass", rows)
        passes, notes = {"forward": forward}, [note]
        if loss is not None:
            model.train()
            target = placed(y, on, "y")
            passes["training step"], note = _training(model, losses.get(loss), optimizer, rows, target)
            notes.append(note)
    return Explanation(str(on), current_precision(), passes, tuple(notes))


def _training(model: nn.Module, loss: losses.Loss, spec: Any, x: Tensor, y: Tensor) -> tuple[tuple[Line, ...], str]:
    chosen: Any = optim.SGD if spec is None else optim.get(spec)
    scale = optim.LossScale(device=x.device) if current_precision() == "float16" else None
    step = Captured(partial(training_step, model, loss, chosen(model.parameters()), scale, spec is not None))
    lines, note = _recorded(step, "Trainer", "training step", x, y)
    if step.unchecked and loss.target_check is None:
        note = f"Trainer calls Python for every training step: {UNKNOWN_TARGETS}"
    return lines, note


def _recorded(step: Captured, who: str, what: str, *arguments: Tensor) -> tuple[tuple[Line, ...], str]:
    """The calls of a step, and whether it is replayed."""
    try:
        step.record(*arguments)
    except Exception as error:
        return (), f"{who} calls Python for every {what}: {error}"
    return tuple(_line(call, served_by) for call, served_by in step.calls()), f"{who} replays the {what}."


def _line(call: Call, served_by: str) -> Line:
    named = call.arguments.get("program") or call.arguments.get("act") or call.arguments.get("operation")
    name = getattr(named, "name", named)
    return Line(
        call.primitive if name in (None, "linear") else f"{call.primitive} {name}",
        _shapes(call.reads),
        _shapes(call.writes),
        served_by,
    )


def _shapes(arrays: Sequence[Array]) -> str:
    return " ".join(_shape(array) + _dtype(array) for array in arrays)


def _shape(array: Array) -> str:
    return "x".join(map(str, array.shape)) or "1"


def _dtype(array: Array) -> str:
    """The dtype of an operand in 16 bits, which is worth telling."""
    return f":{array.dtype}" if array.dtype.kind in FLOAT_KINDS and array.dtype.itemsize == 2 else ""
