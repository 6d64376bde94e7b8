"""`Module`: what holds parameters and computes with them; every layer and every model is one."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Self

import numpy as np

from fcdense import backends as devices
from fcdense import changes, constraints, regularizers
from fcdense.backends import Device, current_device
from fcdense.conversion import float_dtype, host_array
from fcdense.errors import ArgumentError, ShapeError
from fcdense.nn import state, summary
from fcdense.nn.input import as_input, device_of
from fcdense.parameter import Parameter
from fcdense.tensor import Tensor, tensor

_running: ContextVar[Module | None] = ContextVar("fcdense_running_module", default=None)
"""The outermost module whose call is under way: messages name layers by their path in it."""


class Module:
    """Base of layers and models: write `__init__` (call ``super().__init__()`` first) and `forward`.

    Whatever is an attribute belongs to the module: a `Parameter`, a `Module`, and lists, tuples and dicts of them,
    which need no special class. They are looked up each time, so a layer that is appended, replaced or deleted later
    counts from then on. Paths name attributes, positions and keys: ``"layers.0.kernel"``. What is reached by several
    paths (a shared layer, a tied parameter) is listed once, under its first.

    Attributes
    ----------
    training : bool
        True at first. `train` and `eval` set it; `Dropout` and `BatchNorm` act on it.

    Examples
    --------
    >>> class Residual(fc.nn.Module):
    ...     def __init__(self, units):
    ...         super().__init__()
    ...         self.layers = [fc.nn.Dense(units, activation="relu"), fc.nn.Dense(units)]
    ...
    ...     def forward(self, x):
    ...         return x + self.layers[1](self.layers[0](x))
    """

    training: bool = True
    _buffers: Mapping[str, None] = MappingProxyType({})

    def __init__(self) -> None:
        object.__setattr__(self, "_buffers", {})

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Compute the output; define it in a subclass, with whatever arguments it needs."""
        raise ArgumentError(f"{type(self).__name__} has no forward(). Define it to say what a call computes.")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """`forward`. Positional arrays and lists of numbers become tensors on the module's device."""
        inputs = tuple([x if isinstance(x, Tensor) else as_input(x, self) for x in inputs])
        if _running.get() is not None:
            return self.forward(*inputs, **options)
        if changes.witness is not None:
            changes.witness.module(self)
        token = _running.set(self)
        try:
            return self.forward(*inputs, **options)
        finally:
            _running.reset(token)

    def label(self) -> str:
        """The class, and the path inside the model that is being called: how messages name a layer."""
        root = _running.get() or self
        path = next((path for path, module in root.named_modules() if module is self), "")
        return f"{type(self).__name__} '{path}'" if path else type(self).__name__

    # what belongs to the module

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "training":  # often, and most often to what it is already
            if value is not self.training:
                changes.settings.bump()
                object.__setattr__(self, name, value)
            return
        changes.settings.bump()
        if next(_members(value, name), None) is not None:
            self._require_init(name)
        if name in self._buffers and not (value is None or isinstance(value, Tensor)):
            value = tensor(host_array(value, f"buffer '{name}'"), device=device_of(self))
        is_leaf = isinstance(value, Tensor) and value.requires_grad and value.node is None
        if is_leaf and not isinstance(value, Parameter):
            raise ArgumentError(
                f"{type(self).__name__}.{name} is a tensor that requires a gradient, but no parameter: it would not "
                "be trained or saved. Make it with fc.nn.parameter(data), or take tensor.detach()."
            )
        object.__setattr__(self, name, value)

    def register_buffer(self, name: str, array: Any) -> None:
        """Make attribute `name` a tensor that is saved and moved with the parameters, but not trained.

        `array` is an array, a tensor, or None while its shape is not known.
        """
        if not isinstance(name, str) or not name.isidentifier() or hasattr(self, name):
            raise ArgumentError(f"Buffer {name!r}: expected the name of an attribute that does not exist yet.")
        self._require_init(name)
        self.__dict__["_buffers"][name] = None
        setattr(self, name, array)

    def _require_init(self, name: str) -> None:
        if "_buffers" not in self.__dict__:
            raise ArgumentError(
                f"{type(self).__name__}.{name} is set before Module.__init__ ran. "
                "Call super().__init__() first in __init__."
            )

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Path and module for each module that an attribute holds, directly or in a list, tuple or dict."""
        seen = set()
        for path, child in self._own(Module):
            if id(child) not in seen:
                seen.add(id(child))
                yield path, child

    def children(self) -> Iterator[Module]:
        """The modules of `named_children`."""
        return (child for _, child in self.named_children())

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """Path and module for this module (path "") and all below it, each before its children."""
        seen = set()
        waiting: list[tuple[str, Module]] = [("", self)]
        while waiting:
            path, module = waiting.pop()
            if id(module) not in seen:
                seen.add(id(module))
                yield path, module
                waiting += reversed([(_joined(path, name), child) for name, child in module.named_children()])

    def modules(self) -> Iterator[Module]:
        """The modules of `named_modules`."""
        return (module for _, module in self.named_modules())

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Path and parameter, of this module and all below it; each parameter learns its path for messages."""
        seen = set()
        for path, module in self.named_modules():
            for name, parameter in module._own(Parameter):
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    full = _joined(path, name)
                    # The path from the model stays when only one of its layers is asked.
                    if not parameter.name.endswith(f".{full}"):
                        parameter.name = full
                    yield full, parameter

    def parameters(self) -> Iterator[Parameter]:
        """The parameters of `named_parameters`."""
        return (parameter for _, parameter in self.named_parameters())

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Path and tensor for each buffer whose shape is known."""
        for path, module in self.named_modules():
            for name in module._buffers:
                value = module.__dict__.get(name)
                if value is not None:
                    yield _joined(path, name), value

    def num_parameters(self, trainable_only: bool = False) -> int:
        """Number of entries of all parameters. Raises `GraphError` while a shape is not known."""
        return sum(p.size for p in self.parameters() if p.requires_grad or not trainable_only)

    def _own(self, kind: type[Any]) -> Iterator[tuple[str, Any]]:
        for name, value in list(self.__dict__.items()):  # another thread may add one
            for path, member in _members(value, name):
                if isinstance(member, kind):
                    yield path, member

    # modes

    def train(self, mode: bool = True) -> Self:
        """Set the training mode of this module and all below it. Returns the module.

        A module below it whose class has a `train` of its own decides for itself and what is below that: one that calls
        ``super().train(False)`` stays in evaluation mode, in `Trainer` as well.
        """
        seen = set()
        waiting: list[Module] = [self]
        while waiting:
            module = waiting.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            if module is self or type(module).train is Module.train:
                module.training = bool(mode)
                waiting += module.children()
            else:
                module.train(mode)
        return self

    def eval(self) -> Self:
        """Set the evaluation mode. Returns the module."""
        return self.train(False)

    def freeze(self) -> Self:
        """Train no parameter (the statistics of `BatchNorm` follow `training`, not this). Returns the module."""
        for parameter in self.parameters():
            parameter.requires_grad = False
        return self

    def unfreeze(self) -> Self:
        """Train every parameter. Returns the module."""
        for parameter in self.parameters():
            parameter.requires_grad = True
        return self

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.parameters():
            parameter.zero_grad()

    def penalty(self) -> Tensor | None:
        """The sum of the regularizers over all parameters (a tied one counts once), or None if there is none."""
        total: Tensor | None = None
        for name, parameter in self.named_parameters():
            if parameter.regularizer is not None:
                term = parameter.regularizer(parameter)
                if not isinstance(term, Tensor) or term.shape != ():
                    given = f"shape {term.shape}" if isinstance(term, Tensor) else repr(term)
                    raise ShapeError(f"The regularizer of '{name}' returned {given}; expected a tensor of shape ().")
                total = term if total is None else total + term
        return total

    # memory

    def to(self, target: str | Device) -> Self:
        """Move parameters and buffers to a device; gradients are forgotten. Returns the module."""
        goal = devices.device(target)
        for module in self.modules():
            for _, parameter in module._own(Parameter):
                parameter.move(goal)
            for name in module._buffers:
                value = module.__dict__.get(name)
                if value is not None:
                    object.__setattr__(module, name, value.to(goal))
        return self

    def state_dict(self) -> dict[str, np.ndarray[Any, Any]]:
        """Copies of all parameters and buffers by path. Raises `GraphError` while a shape is not known."""
        return state.values(self)

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Copy arrays in, each cast to the dtype that is there; parameters not built yet take their shapes from them.

        Raises
        ------
        ArgumentError
            Paths are missing or unexpected, or shapes differ; all are listed, and nothing has changed.
        """
        state.load(self, values)

    # what it looks like

    def summary(self, input_shape: Any = None) -> str:
        """A table of the layers: output shape, parameters, activation; then totals and bytes.

        Parameters
        ----------
        input_shape : int or tuple of int, optional
            Shape of one row of input, without the batch axis B. It lets the table show the shape of every output and
            the parameters of layers that are not built; the model itself, its mode and the random numbers that it
            will be built with stay as they are.
        """
        return summary.table(self, input_shape)

    def extra_repr(self) -> str:
        """What stands between the parentheses of a module without children."""
        return ""

    def _lines(self) -> list[tuple[str, Module]]:
        """Label and child for each line of the repr; a shared layer is shown in each of its places."""
        return list(self._own(Module))

    @reprlib.recursive_repr()
    def __repr__(self) -> str:
        name = type(self).__name__
        children = [f"({label}): {child!r}".replace("\n", "\n  ") for label, child in self._lines()]
        return f"{name}(\n  " + "\n  ".join(children) + "\n)" if children else f"{name}({self.extra_repr()})"

    def lazy_shape(self, name: str) -> tuple[int | None, ...] | None:
        """The shape that an unbuilt parameter or buffer may take, None where any size is right; None if all are."""
        del name
        return None


def parameter(
    data: Any, dtype: Any = None, *, decay: bool = False, regularizer: Any = None, constraint: Any = None
) -> Parameter:
    """A parameter holding a copy of `data`, for modules of your own.

    NumPy's float dtypes are kept; integers need a `dtype`. `decay` says whether an optimizer's weight decay applies.
    `regularizer` and `constraint` are whatever `Dense` takes for its kernel: a name, one of `fcdense.regularizers` or
    `fcdense.constraints`, or a function.
    """
    array = host_array(data.numpy() if isinstance(data, Tensor) else data)
    on = current_device()
    values = on.backend.from_host(np.array(array, dtype=float_dtype(dtype or array.dtype), order="C"))
    penalty, bound = regularizers.get(regularizer), constraints.get(constraint)
    return Parameter(values, on, decay=decay, regularizer=penalty, constraint=bound)


def _members(value: Any, name: str) -> Iterator[tuple[str, Module | Parameter]]:
    """Modules and parameters in `value`: itself, or the items of lists, tuples and dicts."""
    if isinstance(value, (Module, Parameter)):
        yield name, value
    elif isinstance(value, (list, tuple)):
        for position, item in enumerate(value):
            yield from _members(item, f"{name}.{position}")
    elif isinstance(value, dict):
        for key, item in value.items():
            for path, member in _members(item, f"{name}.{key}"):
                if not isinstance(key, str) or not key or "." in key:
                    held = type(member).__name__
                    raise ArgumentError(f"{name}[{key!r}] holds a {held}; its key must be a name without dots.")
                yield path, member


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
