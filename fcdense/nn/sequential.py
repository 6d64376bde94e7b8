"""`Sequential`: layers one after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Self, overload

from fcdense import changes
from fcdense.errors import ArgumentError
from fcdense.nn import layer
from fcdense.nn.layer import Layer
from fcdense.nn.module import Module


@layer.builtin
class Sequential(Layer):
    """y = layer_n(... layer_1(x)): each layer takes the output of the one before it.

    Parameters
    ----------
    *layers : Module, or one iterable of them
        The same layer may occur more than once and is then one layer.

    Attributes
    ----------
    layers : list of Module
        Paths begin with it: ``"layers.0.kernel"``.

    Notes
    -----
    Works as a list: ``model[0]``, ``model[:2]`` (a new `Sequential` of the same layers), ``model[1] = layer``,
    ``del model[1]``, ``len(model)``, iteration, `append`, `insert`, `extend`. A new layer's parameters become known to
    an optimizer that was made before by ``optimizer.add_parameters(layer.parameters())``.

    Raises
    ------
    ArgumentError
        Something is no module; a function or a name becomes one by ``fc.nn.Activation(...)``.

    Examples
    --------
    >>> model = fc.nn.Sequential(fc.nn.Dense(128, activation="relu"), fc.nn.Dense(10))
    """

    arguments: ClassVar = {"layers": layer.SEVERAL}

    def __init__(self, *layers: Module | Iterable[Module]) -> None:
        super().__init__()
        items = layers
        if len(layers) == 1 and not isinstance(layers[0], (Module, str)) and isinstance(layers[0], Iterable):
            items = tuple(layers[0])
        self.layers: list[Module] = [_module(item) for item in items]

    @classmethod
    def make(cls, arguments: dict[str, Any]) -> Self:
        return cls(*arguments["layers"])

    def forward(self, x: Any) -> Any:
        """The output of the last layer; x itself if there is none."""
        for module in self.layers:
            x = module(x)
        return x

    def append(self, module: Module) -> Self:
        """Add a layer at the end. Returns the model, as do `insert` and `extend`."""
        self.layers.append(_module(module))
        changes.settings.bump()
        return self

    def insert(self, index: int, module: Module) -> Self:
        """Add a layer before position `index`."""
        self.layers.insert(index, _module(module))
        changes.settings.bump()
        return self

    def extend(self, modules: Iterable[Module]) -> Self:
        """Add several layers at the end."""
        self.layers.extend([_module(module) for module in modules])
        changes.settings.bump()
        return self

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Module]:
        return iter(self.layers)

    @overload
    def __getitem__(self, index: int) -> Module: ...
    @overload
    def __getitem__(self, index: slice) -> Sequential: ...
    def __getitem__(self, index: int | slice) -> Module:
        if not isinstance(index, slice):
            return self.layers[index]
        part = Sequential(*self.layers[index])
        part.training = self.training
        return part

    def __setitem__(self, index: int, module: Module) -> None:
        self.layers[index] = _module(module)
        changes.settings.bump()

    def __delitem__(self, index: int | slice) -> None:
        del self.layers[index]
        changes.settings.bump()

    def _lines(self) -> list[tuple[str, Module]]:
        return [(str(position), module) for position, module in enumerate(self.layers)]


def _module(item: Any) -> Module:
    if isinstance(item, Module):
        return item
    if isinstance(item, type) and issubclass(item, Module):
        raise ArgumentError(f"Sequential got the class {item.__name__}; make a layer of it: {item.__name__}(...).")
    cure = f" Wrap it: fc.nn.Activation({item!r})." if callable(item) or isinstance(item, str) else ""
    raise ArgumentError(f"Sequential got {item!r}; expected modules.{cure}")
