"""What a captured step returns: tensors, the same at every replay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fcdense.errors import CaptureError
from fcdense.tensor import Tensor


def fixed(result: Any) -> Any:
    """A result without the history of its tensors, which no replay renews."""
    if result is None:
        return None
    if isinstance(result, Tensor):
        return result if result.node is None else result.detach()
    if isinstance(result, tuple):
        items = [fixed(item) for item in result]
        return type(result)(*items) if hasattr(result, "_fields") else tuple(items)
    if type(result) is list:
        return [fixed(item) for item in result]
    if type(result) is dict:
        return {key: fixed(item) for key, item in result.items()}
    raise CaptureError(
        f"The step returned an object of type {type(result).__name__}, which every replay would repeat. Return "
        "tensors, or a tuple, list or dict of them."
    )


def tensors_of(result: Any) -> Iterator[Tensor]:
    """The tensors in what a step returned, in order."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, (tuple, list, dict)):
        for item in result.values() if isinstance(result, dict) else result:
            yield from tensors_of(item)
