"""The tape: which operation made which tensor, and the walk back along it.

Every recorded operation is a `Node`, numbered in program order. `backward` collects the nodes under a result without
recursion and visits them from the highest number to the lowest, so each node has its whole gradient when it is
visited. A vector-Jacobian product (vjp) is written in tensor operations; recording them gives second derivatives.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Protocol

from fcdense.arena import Array, Version
from fcdense.backends.base import Mode
from fcdense.errors import GraphError
from fcdense.scope import Scope

_recording: ContextVar[bool] = ContextVar("fcdense_recording", default=True)
_numbers = itertools.count()


class Tracked(Protocol):
    """What the tape knows of a tensor."""

    node: Node | None
    version: Version

    @property
    def requires_grad(self) -> bool: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


Vjp = Callable[[Any], Sequence[Any]]
"""dy -> one gradient for each input, None where the input needs none."""


class GradientSink(Protocol):
    """Where the gradients of leaves go: into their `.grad` buffers, or into a list for `fc.grad`."""

    def deposit(self, leaf: Any, gradient: Any) -> None:
        """Add `gradient` to what `leaf` has."""

    def buffer(self, leaf: Any) -> tuple[Array, Mode] | None:
        """The array that a primitive may write `leaf`'s gradient into, with the mode; None to use `deposit`."""

    def wants(self, node: Node) -> bool:
        """Whether the gradient of this node's result is asked for itself."""

    def collect(self, node: Node, gradient: Any) -> None:
        """Take the gradient of a node's result that `wants` named."""

    def route(self, nodes: list[Node]) -> list[Node]:
        """Those of `nodes` (newest first) that have to be visited."""

    def needs(self, node: Node, position: int) -> bool:
        """Whether the gradient of the input at `position` reaches anything that is asked for."""


class Node(ABC):
    """One recorded operation: where the gradients of its inputs go, and which arrays its vjp will read.

    For each input there is the node that made it (`below`), or the input itself if it is a leaf that requires a
    gradient (`leaves`), or None in both. So a node keeps alive only the arrays that its vjp keeps.
    """

    __slots__ = ("_saved", "below", "freed", "leaves", "name", "number", "uses")

    def __init__(self, name: str, inputs: Sequence[Tracked], saved: Sequence[Tracked]) -> None:
        self.name = name
        self.below = tuple([tensor.node for tensor in inputs])
        self.leaves = tuple([tensor if tensor.requires_grad and tensor.node is None else None for tensor in inputs])
        self.number = next(_numbers)
        self.uses = 0
        self.freed = False
        self._saved = [(tensor.version, tensor.version.number, tensor.shape) for tensor in saved]
        for node in self.below:
            if node is not None:
                node.uses += 1

    @abstractmethod
    def backward(self, dy: Any, sink: GradientSink) -> Sequence[Any]:
        """Gradients of the inputs, given that of the result; None where none is needed or the sink has it already."""

    def check(self) -> None:
        """Make sure that the vjp is still there and will read what the forward pass read."""
        if self.freed:
            raise GraphError(
                f"The gradient of '{self.name}' was computed already and its saved arrays were freed. "
                "Call backward(retain_graph=True) the first time, or run the forward pass again."
            )
        for version, number, shape in self._saved:
            if changes := version.changes_since(number):
                raise GraphError(
                    f"'{self.name}' saved an array of shape {shape} for its gradient, and the array was changed in "
                    f"place afterwards ({changes} time(s)). Change a copy, or change it after backward()."
                )

    def release(self) -> None:
        """Let go of everything saved."""
        self.freed = True
        self.below = self.leaves = ()
        self._saved = []


class VjpNode(Node):
    """A node whose gradient is a function of tensors."""

    __slots__ = ("_vjp",)

    def __init__(self, name: str, inputs: Sequence[Tracked], vjp: Vjp, saved: Sequence[Tracked] = ()) -> None:
        super().__init__(name, inputs, saved)
        self._vjp: Vjp | None = vjp

    def backward(self, dy: Any, sink: GradientSink) -> Sequence[Any]:
        """One gradient for each input."""
        assert self._vjp is not None
        return self._vjp(dy)

    def release(self) -> None:
        """Let go of everything saved."""
        super().release()
        self._vjp = None


def is_recording() -> bool:
    """Whether operations are put on the tape now."""
    return _recording.get()


def recording(enabled: bool) -> Scope[bool]:
    """Switch recording on or off inside the `with` block."""
    return Scope(_recording, enabled)


def no_grad() -> Any:
    """Record nothing inside the `with` block (also a decorator): results do not require gradients."""
    return recording(False)


def needs_grad(inputs: Sequence[Tracked]) -> bool:
    """Whether a result of these inputs belongs on the tape."""
    if _recording.get():
        for tensor in inputs:
            if tensor.requires_grad:
                return True
    return False


def backward(root: Node, dy: Any, sink: GradientSink, *, retain_graph: bool, create_graph: bool) -> None:
    """Carry the gradient `dy` of the root's result back to every leaf under it."""
    pending: dict[Node, Any] = {root: dy}
    with recording(create_graph):
        for node in sink.route(_ordered(root)):
            gradient = pending.pop(node, None)
            if gradient is None:
                continue
            if sink.wants(node):
                sink.collect(node, gradient)
            gradients = node.backward(gradient, sink)
            for below, leaf, part in zip(node.below, node.leaves, gradients, strict=True):
                if part is None:
                    continue
                if below is not None:
                    pending[below] = pending[below] + part if below in pending else part
                elif leaf is not None:
                    sink.deposit(leaf, part)
            del gradients, gradient, part  # a buffer that nobody refers to serves the next node
            if not retain_graph:
                node.release()


def _ordered(root: Node) -> list[Node]:
    """The nodes under `root`, newest first; an error here leaves every gradient as it was."""
    seen = {root}
    stack = [root]
    while stack:
        node = stack.pop()
        node.check()
        for below in node.below:
            if below is not None and below not in seen:
                seen.add(below)
                stack.append(below)
    return sorted(seen, key=lambda node: node.number, reverse=True)
