"""What a captured step returns: tensors, the same at every replay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

from fcdense import tape
from fcdense.errors import CaptureError, GraphError
from fcdense.tensor import Tensor


class ReplayedNode(tape.Node):
    """Stands for the graph under a result, which no replay renews: gradients do not go that way."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__("captured", (), ())

    def check(self) -> NoReturn:
        """Refuse, before any gradient is changed."""
        raise GraphError(
            "The gradient of a captured step's result was asked for outside of the step, and a replay has none. Call "
            "backward() inside of the captured step. The forward pass of a layer is not to be captured: Trainer and "
            "fc.predict capture it by themselves."
        )

    def backward(self, dy: Any, sink: tape.GradientSink) -> NoReturn:
        """As `check`."""
        self.check()


def fixed(result: Any) -> Any:
    """A result without the history of its tensors, which no replay renews."""
    if result is None:
        return None
    if isinstance(result, Tensor):
        if result.node is None:
            return result
        is_wanted = not result.node.freed
        return result.detach().attach(ReplayedNode()) if is_wanted else result.detach()
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
