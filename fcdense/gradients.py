"""Gradients on demand: `grad` returns them, `gradcheck` holds them against central differences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from fcdense import tape
from fcdense.arena import Array
from fcdense.backends.base import Mode
from fcdense.conversion import host_array
from fcdense.errors import ArgumentError, GraphError
from fcdense.tensor import Tensor, tensor


class Collector:
    """A sink that keeps the gradients of chosen tensors and touches no `.grad`."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        self._nodes = {x.node for x in inputs if x.node is not None}
        self._leaves = {x for x in inputs if x.node is None}
        self._on_the_way: set[tape.Node] = set()
        self.found: dict[Any, Tensor] = {}

    def deposit(self, leaf: Tensor, gradient: Tensor) -> None:
        """Keep the gradient of a chosen leaf."""
        if leaf in self._leaves:
            self.found[leaf] = self.found[leaf] + gradient if leaf in self.found else gradient

    def buffer(self, leaf: Tensor) -> tuple[Array, Mode] | None:
        """Nothing is written into a leaf."""
        return None

    def wants(self, node: tape.Node) -> bool:
        """Whether the node made one of the chosen tensors."""
        return node in self._nodes

    def collect(self, node: tape.Node, gradient: Tensor) -> None:
        """Keep the gradient of a chosen result."""
        self.found[node] = gradient

    def route(self, nodes: list[tape.Node]) -> list[tape.Node]:
        """The nodes that lie between the output and the chosen tensors; a PINN asks for inputs, not for kernels."""
        for node in reversed(nodes):
            if node in self._nodes or any(self.needs(node, i) for i in range(len(node.below))):
                self._on_the_way.add(node)
        return [node for node in nodes if node in self._on_the_way]

    def needs(self, node: tape.Node, position: int) -> bool:
        """Whether a chosen tensor lies at or under the node's input."""
        return node.below[position] in self._on_the_way or node.leaves[position] in self._leaves


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    gradient: Any = None,
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> Any:
    """d(outputs)/d(inputs) as tensors; no `.grad` is touched.

    Parameters
    ----------
    outputs : Tensor or iterable of Tensor
        Of one element each, unless `gradient` is given. The gradients of several add up.
    inputs : Tensor or iterable of Tensor
        Leaves or intermediate results.
    gradient
        d(something)/d(outputs): a tensor or array, or for several outputs one for each (or None).
    create_graph : bool
        Record the computation, so that the gradients can be differentiated again.
    retain_graph : bool
        Keep the saved arrays; as `create_graph` unless given.

    Returns
    -------
    Tensor, or tuple of Tensor
        As `inputs` is one tensor or several. They may share memory: copy before changing one in place.

    Raises
    ------
    GraphError
        No output depends on one of `inputs`.
    ArgumentError
        There are no outputs or inputs, or one of them is no tensor; or not one gradient for each of several outputs.
    """
    wanted = _tensors(inputs, "input")
    output = outputs if isinstance(outputs, Tensor) else _joined(_tensors(outputs, "output"), gradient)
    seed = output.gradient_seed(gradient if output is outputs else None)
    collector = Collector(wanted)
    if output.node is None:
        collector.deposit(output, seed)
    else:
        retain = create_graph if retain_graph is None else retain_graph
        tape.backward(output.node, seed, collector, retain_graph=retain, create_graph=create_graph)
    results = []
    for position, x in enumerate(wanted):
        found = collector.found.get(x if x.node is None else x.node)
        if found is None:
            raise GraphError(
                f"The output does not depend on input {position} (shape {x.shape}), or not differentiably."
            )
        results.append(found)
    return results[0] if isinstance(inputs, Tensor) else tuple(results)


def _tensors(given: Any, role: str) -> tuple[Tensor, ...]:
    """The outputs or inputs of `grad`."""
    several = (given,) if isinstance(given, Tensor) else tuple(given) if isinstance(given, Iterable) else ()
    for one in several or (given,):
        if not isinstance(one, Tensor):
            raise ArgumentError(f"grad needs at least one {role}, each a tensor; given {type(one).__name__}.")
    return several


def _joined(outputs: Sequence[Tensor], gradients: Any) -> Tensor:
    """One number whose gradient is the sum of theirs."""
    if gradients is not None and (not isinstance(gradients, Iterable) or getattr(gradients, "shape", None) == ()):
        raise ArgumentError(
            f"grad of several outputs needs a list of gradients, one for each output (or None); "
            f"given {type(gradients).__name__}."
        )
    given = [None] * len(outputs) if gradients is None else list(gradients)
    if len(given) != len(outputs):
        raise ArgumentError(f"{len(outputs)} outputs and {len(given)} gradients were given; expected one for each.")
    seeds: list[Tensor] = [output.gradient_seed(gradient) for output, gradient in zip(outputs, given, strict=True)]
    with tape.recording(True):
        parts = [(output * seed).sum() for output, seed in zip(outputs, seeds, strict=True)]
        return sum(parts[1:], parts[0])


def gradcheck(
    function: Callable[..., Tensor],
    inputs: Any,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
) -> bool:
    """Hold the gradients of `function` against central differences (f(x + eps) - f(x - eps)) / (2 eps).

    Parameters
    ----------
    function : callable
        Tensors -> a tensor of any shape; a fixed random combination of its elements is differentiated.
    inputs : array, tensor, or a sequence of them
        Taken as float64, whatever they are.

    Returns
    -------
    bool
        True; anything else raises.

    Raises
    ------
    GraphError
        A gradient differs by more than atol + rtol * |difference quotient|; the message names the worst element.
    ArgumentError
        `function` is no function, or returns no tensor; or there are no inputs.
    """
    if not callable(function):
        raise ArgumentError(f"gradcheck needs a function of tensors; given {function!r}.")
    given = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
    arrays = [x.numpy() if isinstance(x, Tensor) else host_array(x, "an input of gradcheck") for x in given]
    points = [np.array(array, dtype=np.float64) for array in arrays]
    if not points:
        raise ArgumentError("gradcheck needs at least one input.")
    leaves = [tensor(p, requires_grad=True) for p in points]
    output = function(*leaves)
    if not isinstance(output, Tensor):
        raise ArgumentError(f"The function returned {type(output).__name__}; gradcheck needs one tensor.")
    direction = np.random.default_rng(0).uniform(0.5, 1.5, output.shape)
    analytic = grad(output, leaves, direction)

    def value(position: int, index: tuple[int, ...], step: float) -> float:
        shifted = [p.copy() for p in points]
        shifted[position][index] += step
        result = function(*(tensor(p, requires_grad=True) for p in shifted))  # it may call `grad` itself
        return float((result.numpy() * direction).sum())

    worst, message = 0.0, ""
    for position, point in enumerate(points):
        for index in np.ndindex(point.shape):
            quotient = (value(position, index, eps) - value(position, index, -eps)) / (2 * eps)
            computed = float(analytic[position].numpy()[index])
            excess = abs(computed - quotient) - (atol + rtol * abs(quotient))
            if not excess <= worst:  # NaN as well
                worst = np.inf if np.isnan(excess) else excess
                message = f"Input {position}, element {index}: the gradient is {computed:.9g}, "
                message += f"the central difference {quotient:.9g}."
    if message:
        raise GraphError(message)
    return True
