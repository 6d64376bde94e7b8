"""Where a NaN or infinity began."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fcdense import nn
from fcdense.conversion import is_on_gpu
from fcdense.data import Batch
from fcdense.errors import GraphError
from fcdense.nn.input import device_of
from fcdense.tensor import Tensor, placed


@np.errstate(all="ignore")
def first_non_finite(model: nn.Module, batch: Batch) -> str:
    """Where the first value stands that is not finite, looking at the batch, the parameters, and each layer's output.

    Returns
    -------
    str
        Sentences for an error message, with what to do. The model is called, but not changed.
    """
    for name, array in (("x", batch.x), ("y", batch.y)):
        if is_on_gpu(array):
            array = placed(array, device_of(model)).numpy()
        if array is not None and (found := _first(array)) is not None:
            row, *rest = found
            place = f"row {row}" + (f" (index {tuple(rest)} of the row)" if rest else "")
            return (
                f"{name} of the batch is {array[found]} in {place}. Find such rows with np.isfinite; mend or drop them."
            )
    for name, parameter in model.named_parameters():
        if parameter.is_built and (found := _first(parameter.numpy())) is not None:
            return f"parameter '{name}' is {parameter.numpy()[found]} at {found} already. Start from finite parameters."
    try:
        outputs = nn.layer_outputs(model, batch.x)
    except (GraphError, TypeError) as error:  # a module of the user's own that cannot be copied
        return f"batch and parameters are finite; the layers cannot be looked at one by one ({error})."
    for name, output in outputs:
        for tensor in _tensors(output):
            if (found := _first(tensor.numpy())) is not None:
                cure = "Lower the learning rate, scale the data, or clip gradients."
                if tensor.dtype == np.float16:
                    cure = "float16 ends at 65504: scale the data, or train in bfloat16."
                return (
                    f"the output of layer '{name}' is the first that is not finite ({tensor.numpy()[found]} in row "
                    f"{found[0] if found else 0}). {cure}"
                )
    return "every layer's output is finite, so it began in the loss or the backward pass. Lower the learning rate."


def _first(array: np.ndarray[Any, Any]) -> tuple[int, ...] | None:
    """The index of the first value that is not finite."""
    wrong = ~np.isfinite(array)
    return tuple(map(int, np.argwhere(wrong)[0])) if wrong.any() else None


def _tensors(output: Any) -> Iterator[Tensor]:
    """The tensors of what a module returned: one, or a tuple, list or dict of them."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, tuple | list | dict):
        for item in output.values() if isinstance(output, dict) else output:
            yield from _tensors(item)
