"""The table that `Module.summary` returns, and the outputs of all layers for one input."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from fcdense.errors import ArgumentError
from fcdense.parameter import Parameter
from fcdense.random import drawing_aside
from fcdense.tape import no_grad
from fcdense.tensor import Tensor

if TYPE_CHECKING:
    from fcdense.nn.module import Module

HEADINGS = ("Layer", "Output", "Parameters", "Activation")


def layer_outputs(model: Module, *inputs: Any) -> list[tuple[str, Any]]:
    """Path and output of every module below `model`, in the order in which they finish.

    Computed by a copy of the model: parameters, statistics and random numbers stay as they are. A layer that is called
    twice occurs twice. `model` itself comes last, under its class's name.
    """
    return _outputs(copy.deepcopy(model), *inputs)


def _outputs(model: Module, *inputs: Any) -> list[tuple[str, Any]]:
    outputs: list[tuple[str, Any]] = []

    def watched(path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **options: Any) -> Any:
            y = forward(*args, **options)
            outputs.append((path, y))
            return y

        return wrapper

    for path, module in model.named_modules():
        object.__setattr__(module, "forward", watched(path or type(model).__name__, module.forward))
    with no_grad(), drawing_aside():
        model(*inputs)
    return outputs


def table(model: Module, input_shape: Any) -> str:
    """The text of `Module.summary`."""
    shapes: dict[str, str] = {}
    if input_shape is not None:
        model = copy.deepcopy(model).eval()
        names = {path or type(model).__name__: path for path, _ in model.named_modules()}
        x = np.zeros((1, *_sizes(input_shape)), _dtype(model))
        shapes = {names[path]: _batched(y) for path, y in _outputs(model, x)}
    rows = [_row(path, module, shapes.get(path)) for path, module in model.named_modules() if _is_shown(module)]
    widths = [max(len(row[column]) for row in (HEADINGS, *rows)) for column in range(len(HEADINGS))]
    lines = [_line(row, widths) for row in (HEADINGS, *rows)]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:], rule, _totals(model)])


def _sizes(input_shape: Any) -> tuple[int, ...]:
    sizes = input_shape if isinstance(input_shape, (tuple, list)) else (input_shape,)
    if any(isinstance(s, bool) or not isinstance(s, (int, np.integer)) or s < 1 for s in sizes):
        raise ArgumentError(
            f"input_shape is {input_shape!r}; expected the shape of one row without the batch axis, such as (784,)."
        )
    return tuple(int(s) for s in sizes)


def _dtype(model: Module) -> Any:
    return next((module.dtype for module in model.modules() if hasattr(module, "dtype")), np.float32)


def _is_shown(module: Module) -> bool:
    return not any(module.children()) or any(module._own(Parameter))


def _row(path: str, module: Module, shape: str | None) -> tuple[str, str, str, str]:
    own: list[Parameter] = [parameter for _, parameter in module._own(Parameter)]
    count = f"{sum(p.size for p in own):,}" if all(p.is_built for p in own) else "not built"
    units = getattr(module, "units", None) or getattr(module, "in_features", None)
    name = f"{path} ({type(module).__name__})" if path else type(module).__name__
    return name, shape or (f"(..., {units})" if units else ""), count, getattr(_activation(module), "name", "")


def _activation(module: Module) -> Any:
    return getattr(module, "activation", None)


def _batched(y: Any) -> str:
    if not isinstance(y, Tensor):
        return type(y).__name__
    sizes = ["B" if axis == 0 and size == 1 else str(size) for axis, size in enumerate(y.shape)]
    return f"({sizes[0]},)" if len(sizes) == 1 else f"({', '.join(sizes)})"


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    name, shape, count, activation = (text.ljust(width) for text, width in zip(row, widths, strict=True))
    return f"{name}  {shape}  {count.strip().rjust(widths[2])}  {activation}".rstrip()


def _totals(model: Module) -> str:
    parameters = list(model.parameters())
    built = [p for p in parameters if p.is_built]
    total, trained = sum(p.size for p in built), sum(p.size for p in built if p.requires_grad)
    size = sum(p.size * p.dtype.itemsize for p in [*built, *(b for _, b in model.named_buffers())])
    missing = len(parameters) - len(built)
    note = f"; {missing} more not built: give input_shape, or call the model once" if missing else ""
    return f"Parameters: {total:,} ({trained:,} trainable), {size:,} bytes with buffers{note}"
