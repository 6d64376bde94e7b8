"""Variables: an array on a device, its gradient, and its place on the tape. `Tensor` adds the operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from fcdense import changes, tape
from fcdense.arena import Array, Version
from fcdense.backends import Device
from fcdense.backends.base import Mode
from fcdense.conversion import FLOATS, check_numbers, host_array, is_on_gpu
from fcdense.errors import ArgumentError, DeviceError, DTypeError, GraphError, ShapeError
from fcdense.operations import AsType, Call, Operation
from fcdense.precision import FLOAT32, FLOAT_KINDS

V = TypeVar("V", bound="Variable")

ONE = Version()
"""That of the gradients which `backward` starts with: a 1 that nobody changes, and no vjp has to multiply with."""


class Variable:
    """What every tensor is: state, gradient, and `apply`, through which every operation passes."""

    __slots__ = ("__weakref__", "_gradient", "_requires_grad", "array", "device", "node", "version")
    moves: bool = False
    """Whether the values may come to lie elsewhere."""

    def __init__(
        self, array: Array, on: Device, *, requires_grad: bool = False, version: Version | None = None
    ) -> None:
        self.array = array
        self.device = on
        self.node: tape.Node | None = None
        self.version = Version() if version is None else version
        self._gradient: Any = None
        self._requires_grad = False
        if requires_grad:
            self.requires_grad = True

    def derived(self, array: Array, version: Version | None = None) -> Any:
        """A plain tensor on this one's device."""
        raise TypeError(f"{type(self).__name__} is not a tensor.")

    # what it is

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        shape: tuple[int, ...] = self.array.shape
        return shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return int(self.array.ndim)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(self.array.size)

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's dtype of the elements."""
        dtype: np.dtype[Any] = self.array.dtype
        return dtype

    def __len__(self) -> int:
        if not self.shape:
            raise ShapeError("A tensor of shape () has no length.")
        return self.shape[0]

    def __repr__(self) -> str:
        text = np.array2string(self.numpy(), separator=", ", prefix="tensor(", threshold=100)
        extras = "" if self.dtype == np.float32 else f", dtype={self.dtype}"
        extras += "" if self.device.type == "cpu" else f", device='{self.device}'"
        if self.node is not None:
            extras += f", from='{self.node.name}'"
        elif self.requires_grad:
            extras += ", requires_grad=True"
        return f"tensor({text}{extras})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else repr(self)

    def numpy(self) -> np.ndarray[Any, Any]:
        """The values as a read-only NumPy array, without a copy where host memory is the device's."""
        view = self.device.backend.to_host(self.array).view()
        view.flags.writeable = False
        return view

    def item(self) -> Any:
        """The value of a tensor of one element as a Python number."""
        if self.size != 1:
            raise ShapeError(f"item() needs one element; this tensor has shape {self.shape}.")
        return self.device.backend.to_host(self.array).item()

    def __float__(self) -> float:
        return float(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        if copy is False and not self.device.backend.is_host:
            raise ArgumentError(
                f"A tensor on {self.device} is no NumPy array without a copy. Leave out copy=False: np.asarray(tensor)."
            )
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, **options: Any) -> Any:
        return self.device.backend.hand_over(self.array).__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()

    def __reduce__(self) -> tuple[Any, ...]:
        if self.node is not None:
            raise GraphError("A tensor that is part of a graph cannot be copied or pickled; use detach().")
        return type(self)._restore, (np.array(self.numpy()), self.device, self.requires_grad)

    @classmethod
    def _restore(cls, array: np.ndarray[Any, Any], on: Device, requires_grad: bool) -> Any:
        return cls(on.backend.from_host(array), on, requires_grad=requires_grad)

    # operations

    @staticmethod
    def apply(operation: Operation, *inputs: V) -> V:
        """Compute `operation` on tensors of one device, and record it when a gradient will be needed."""
        operands = _aligned(operation, inputs)
        changes.note_use(operands)
        first = operands[0]
        array = operation.forward(first.device.backend, [x.array for x in operands])
        out: V = first.derived(array, first.version if operation.is_view else None)
        if not tape.needs_grad(operands) or out.dtype.kind not in FLOAT_KINDS:
            return out
        needs = tuple([x.requires_grad for x in operands])
        saved = operation.saves(needs)
        call = Call(
            tuple([x if i in saved else None for i, x in enumerate(operands)]),
            tuple([x.shape for x in operands]),
            tuple([x.dtype for x in operands]),
            needs,
        )
        node = tape.VjpNode(operation.name, operands, lambda dy: operation.vjp(dy, call), [operands[i] for i in saved])
        out.attach(node)
        return out

    def attach(self, node: tape.Node) -> Any:
        """This tensor as the result of `node`."""
        self._requires_grad = True
        self.node = node
        return self

    # gradients

    @property
    def requires_grad(self) -> bool:
        """Whether `backward` computes a gradient for this tensor."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if self.node is not None:
            raise GraphError("requires_grad can be set on leaves only; use detach() for a leaf with the same values.")
        if value:
            self._check_differentiable()
        if self._requires_grad is not bool(value):
            changes.settings.bump()
            self._requires_grad = bool(value)

    def _check_differentiable(self) -> None:
        if self.dtype not in FLOATS:
            raise DTypeError(f"Only float tensors can require gradients; this one is {self.dtype}.")

    @property
    def grad(self) -> Any:
        """The gradient that `backward` summed up, a tensor of this shape, or None."""
        return self._gradient

    @grad.setter
    def grad(self, value: Any) -> None:
        gradient = None if value is None else self.gradient_like(value)
        self._note_gradient(forgets=True)
        self._gradient = gradient

    @property
    def gradient_state(self) -> Any:
        """The gradient as it is, to be put back; two states are compared by identity."""
        return self._gradient

    @gradient_state.setter
    def gradient_state(self, state: Any) -> None:
        self._gradient = state

    def _note_gradient(self, *, forgets: bool = False) -> None:
        changes.gradients.bump()
        if changes.witness is not None:
            changes.witness.leaf(self, forgets=forgets)

    def gradient_like(self, value: Any, *, owned: bool = False) -> Any:
        """`value`, a tensor or array of this tensor's shape, as a tensor of its dtype and on its device.

        It may share memory with a tensor or an array of the host, unless it is to be `owned`.
        """
        if not isinstance(value, Variable):
            owned |= is_on_gpu(value)
            value = self.derived(on_device(value, self.device, "the gradient"))
        if value.shape != self.shape:
            raise ShapeError(f"The gradient has shape {value.shape}, the tensor {self.shape}.")
        if value.device != self.device:
            raise DeviceError(f"The gradient lies on {value.device}, the tensor on {self.device}; move it with .to().")
        return value if value.dtype == self.dtype and not owned else self.apply(AsType(self.dtype), value)

    def deposit(self, gradient: Any) -> None:
        """Add the tensor `gradient` to `grad`, which has memory of its own: `gradient` may be a view."""
        self._note_gradient()
        before = self._gradient
        self._gradient = self.apply(AsType(self.dtype), gradient) if before is None else before + gradient

    def gradient_buffer(self) -> tuple[Array, Mode] | None:
        """The array and mode with which a primitive may write this leaf's gradient itself; parameters have one."""
        return None

    def zero_grad(self) -> None:
        """Forget the gradient."""
        self._note_gradient(forgets=True)
        self._gradient = None

    def backward(self, gradient: Any = None, *, retain_graph: bool = False) -> None:
        """Add d(self)/d(leaf) to `grad` of every leaf under this tensor.

        Parameters
        ----------
        gradient
            d(something)/d(self), a tensor or array of this shape; may be left out for a tensor of one element.
        retain_graph
            Keep the saved arrays, so that `backward` can be called again.

        Raises
        ------
        GraphError
            Nothing under this tensor requires a gradient; the graph was freed; a saved array was changed in place.
        ShapeError
            `gradient` is left out for more than one element, or has another shape.
        """
        with tape.recording(False):
            # What is given may lie in a parameter's gradient, which is written while it is read.
            seed = self.gradient_seed(gradient, owned=True)
            if self.node is None:
                self.deposit(seed)
                return
        tape.backward(self.node, seed, GradientBuffers(), retain_graph=retain_graph, create_graph=False)

    def gradient_seed(self, gradient: Any = None, *, owned: bool = False) -> Any:
        """The checked start of a walk back from this tensor: `gradient_like`, or 1."""
        if not self.requires_grad:
            raise GraphError(
                "A gradient needs a tensor that depends on one with requires_grad=True, computed outside fc.no_grad()."
            )
        if gradient is not None:
            return self.gradient_like(gradient, owned=owned)
        if self.size != 1:
            raise ShapeError(
                f"backward() without a gradient needs one element; this tensor has shape {self.shape}. "
                "Reduce it first (.sum(), .mean()) or pass a gradient of its shape."
            )
        array = self.device.backend.workspace.empty(self.shape, self.dtype)
        self.device.backend.fill(1.0, out=array)
        return self.derived(array, ONE)

    def detach(self) -> Any:
        """The same values without their history; they share memory."""
        return self.derived(self.array, self.version)


def on_device(data: Any, on: Device, what: str) -> Array:
    """What the user gave as an array of the device `on`, in the same memory where it lies there already."""
    if not is_on_gpu(data):
        return on.backend.from_host(host_array(data, what))
    array = on.backend.adopt(data)
    check_numbers(array.dtype, what)
    return array


class GradientBuffers:
    """The sink of `Variable.backward`: gradients are added to each leaf's `grad`."""

    def deposit(self, leaf: Variable, gradient: Any) -> None:
        """Add `gradient` to the leaf's."""
        leaf.deposit(gradient)

    def buffer(self, leaf: Variable) -> tuple[Array, Mode] | None:
        """The leaf's own buffer, where it has one."""
        return leaf.gradient_buffer()

    def wants(self, node: tape.Node) -> bool:
        """No node's gradient is kept."""
        return False

    def collect(self, node: tape.Node, gradient: Any) -> None:
        """Not called: no node is wanted."""

    def route(self, nodes: list[tape.Node]) -> list[tape.Node]:
        """All of them: every node was recorded because it leads to a leaf."""
        return nodes

    def needs(self, node: tape.Node, position: int) -> bool:
        """Every gradient that leads anywhere."""
        return node.below[position] is not None or node.leaves[position] is not None


def _aligned(operation: Operation, inputs: Sequence[V]) -> Sequence[V]:
    """The inputs on one device and, where they are floats, in one dtype."""
    on = inputs[0].device
    for x in inputs:
        if x.device is not on and x.device != on:
            raise DeviceError(f"'{operation.name}' got tensors on {on} and {x.device}. Move one: x.to('{on}').")
    dtypes = {x.dtype for x in inputs if x.dtype.kind in FLOAT_KINDS}
    if operation.needs_floats and not dtypes:
        raise DTypeError(f"'{operation.name}' needs float tensors, not {inputs[0].dtype}; use .astype('float32').")
    if len(dtypes) < 2:
        return inputs
    # float16 and bfloat16 meet in float32: NumPy knows no dtype for both.
    common = np.result_type(*[FLOAT32 if dtype.itemsize == 2 else dtype for dtype in dtypes])
    return [
        x if x.dtype == common or x.dtype.kind not in FLOAT_KINDS else Variable.apply(AsType(common), x) for x in inputs
    ]
