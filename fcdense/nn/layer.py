"""`Layer`: base of the layers that come with fcdense. It can be described as data and made again from it.

A description is a dict that JSON can hold: ``{"class": "Dense", "units": 4, ...}``, one key for each argument. Layers
in it are numbered from 0 in the order in which they begin; ``{"class": "shared", "layer": 2}`` is layer 2 once more.
Activations are described by their trace, so that a user's own needs no code to come back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Self, TypeVar

import numpy as np

from fcdense import activations, constraints, init, regularizers
from fcdense.activations import Activation, RowActivation
from fcdense.errors import (
    ArgumentError,
    DTypeError,
    FormatError,
    ShapeError,
    TraceError,
    UnknownNameError,
    unknown_name,
)
from fcdense.nn.module import Module
from fcdense.parameter import Parameter
from fcdense.tensor import Tensor

AnyLayer = TypeVar("AnyLayer", bound="type[Layer]")

_layers: dict[str, type[Layer]] = {}
LAYERS: Mapping[str, type[Layer]] = MappingProxyType(_layers)
"""Every class that a description may name."""

MAX_DEPTH = 100
"""Nested layers in one description: enough for any model, too few to exhaust Python's stack."""


@dataclass(frozen=True)
class Codec:
    """How one argument becomes data and comes back. Both functions also get the `Writer` or `Reader` at work."""

    encode: Callable[[Any, Writer], Any]
    decode: Callable[[Any, Reader], Any]


class Layer(Module):
    """A module whose constructor arguments are attributes of the same names; `arguments` says how each is written."""

    arguments: ClassVar[Mapping[str, Codec]] = {}

    def config(self) -> dict[str, Any]:
        """The layer, without its parameters, as data that JSON can hold.

        Raises
        ------
        ArgumentError
            It contains code (a function as initializer, regularizer or constraint, a class of your own), or layers
            that share a parameter without being one layer.
        """
        _refuse_ties(self)
        return Writer().describe(self)

    @classmethod
    def from_config(cls, config: Any) -> Self:
        """The layer that `config` describes, with new initial values.

        Raises
        ------
        FormatError
            `config` is not of that form, or describes another class.
        """
        made = Reader().make(config)
        if not isinstance(made, cls):
            raise FormatError(f"The config describes a {type(made).__name__}, not a {cls.__name__}.")
        return made

    @classmethod
    def make(cls, arguments: dict[str, Any]) -> Self:
        """A layer from its decoded arguments."""
        return cls(**arguments)

    def expect_tensor(self, x: Any) -> None:
        """Refuse an input that is neither a tensor nor was made one by `__call__`."""
        if not isinstance(x, Tensor):
            raise ArgumentError(f"{self.label()}: x is {_short(x)}; expected a tensor, an array or a list of numbers.")


def builtin(cls: AnyLayer) -> AnyLayer:
    """Enter a class into `LAYERS`."""
    _layers[cls.__name__] = cls
    return cls


def to_data(module: Module) -> dict[str, Any]:
    """`module.config()`, for any built-in layer or `Sequential`; raises `ArgumentError` for a class of your own."""
    if not isinstance(module, Layer):
        raise ArgumentError(_is_code(module))
    return module.config()


def from_data(data: Any) -> Layer:
    """The layer or model that `to_data` described; raises `FormatError` if `data` is not of that form."""
    return Layer.from_config(data)


@dataclass
class Writer:
    """Describes layers, and notes which it has described."""

    numbers: dict[int, int] = field(default_factory=dict)

    def describe(self, layer: Any) -> dict[str, Any]:
        """The description of `layer`."""
        if not isinstance(layer, Layer) or LAYERS.get(type(layer).__name__) is not type(layer):
            raise ArgumentError(_is_code(layer))
        if id(layer) in self.numbers:
            return {"class": "shared", "layer": self.numbers[id(layer)]}
        self.numbers[id(layer)] = len(self.numbers)
        try:
            arguments = {name: codec.encode(getattr(layer, name), self) for name, codec in layer.arguments.items()}
        except ArgumentError as error:
            raise ArgumentError(f"{layer.label()} has no config: {error}") from None
        return {"class": type(layer).__name__} | arguments


@dataclass
class Reader:
    """Makes layers from descriptions, and keeps them for those that are shared."""

    made: list[Layer | None] = field(default_factory=list)
    depth: int = 0

    def make(self, config: Any) -> Layer:
        """The layer that `config` describes."""
        if not isinstance(config, Mapping) or not isinstance(config.get("class"), str):
            raise FormatError(f"Not a layer: {_short(config)}; expected a mapping with the key 'class'.")
        name = config["class"]
        if name == "shared":
            return self._shared(config)
        cls = _known(name)
        expected = {"class", *cls.arguments}
        if config.keys() != expected:
            given = ", ".join(sorted(map(str, config)))
            raise FormatError(f"Config of {name} has the keys {given}; expected {', '.join(sorted(expected))}.")
        if self.depth >= MAX_DEPTH:
            raise FormatError(f"Layers are nested more than {MAX_DEPTH} deep.")
        number = len(self.made)
        self.made.append(None)
        self.depth += 1
        try:
            layer = cls.make({key: codec.decode(config[key], self) for key, codec in cls.arguments.items()})
        except FormatError:
            raise
        except (ArgumentError, DTypeError, ShapeError, TraceError) as error:
            raise FormatError(f"Config of {name}: {error}") from None
        self.depth -= 1
        self.made[number] = layer
        return layer

    def _shared(self, config: Mapping[str, Any]) -> Layer:
        number = config.get("layer")
        if type(number) is not int or not 0 <= number < len(self.made):
            raise FormatError(f"Not a shared layer: {_short(config)}; 'layer' must be the number of an earlier one.")
        layer = self.made[number]
        if layer is None:
            raise FormatError(f"Layer {number} contains itself.")
        return layer


def _known(name: str) -> type[Layer]:
    try:
        return LAYERS[name] if name in LAYERS else unknown_name("layer", name, LAYERS)
    except UnknownNameError as error:
        raise FormatError(str(error)) from None


# how arguments are written


def _encode_dtype(dtype: np.dtype[Any], writer: Writer) -> str:
    return dtype.name


def _encode_activation(activation: Any, writer: Writer) -> dict[str, Any]:
    return {"rows": activation.name} if isinstance(activation, RowActivation) else activation.to_data()


def _decode_activation(data: Any, reader: Reader) -> Activation | RowActivation:
    if isinstance(data, Mapping) and data.keys() == {"rows"}:
        found = activations.get(data["rows"]) if isinstance(data["rows"], str) else None
        if not isinstance(found, RowActivation):
            raise FormatError(f"{_short(data)} is no activation over rows.")
        return found
    read = Activation.from_data(data)
    known = activations.get(read.name) if read.name in activations.names() else None
    # The registered object has a docstring, and is the key of what is compiled already.
    same = isinstance(known, Activation) and (known.program, known.derivative) == (read.program, read.derivative)
    return known if same and known is not None else read


def _encode_initializer(initializer: init.Initializer, writer: Writer) -> dict[str, Any]:
    return initializer.to_data()


PLAIN = Codec(lambda value, writer: value, lambda data, reader: data)
DTYPE = Codec(_encode_dtype, PLAIN.decode)
ACTIVATION = Codec(_encode_activation, _decode_activation)
INITIALIZER = Codec(_encode_initializer, lambda data, reader: init.from_data(data))
REGULARIZER = Codec(
    lambda value, writer: regularizers.to_data(value), lambda data, reader: regularizers.from_data(data)
)
CONSTRAINT = Codec(lambda value, writer: constraints.to_data(value), lambda data, reader: constraints.from_data(data))
LAYER = Codec(lambda layer, writer: writer.describe(layer), lambda data, reader: reader.make(data))


def _decode_layers(data: Any, reader: Reader) -> list[Layer]:
    if not isinstance(data, list):
        raise FormatError(f"Not a list of layers: {_short(data)}.")
    return [reader.make(item) for item in data]


SEVERAL = Codec(lambda layers, writer: [writer.describe(layer) for layer in layers], _decode_layers)


def _refuse_ties(root: Module) -> None:
    """Layers that share a parameter would come back as separate ones."""
    owners: dict[int, str] = {}
    for path, module in root.named_modules():
        for name, parameter in module._own(Parameter):
            full = f"{path}.{name}" if path else name
            first = owners.setdefault(id(parameter), full)
            if first != full:
                raise ArgumentError(
                    f"'{first}' and '{full}' are one parameter of two layers, which a config cannot say. "
                    "Use one layer in both places, or keep the code and save state_dict()."
                )


def _is_code(module: object) -> str:
    return (
        f"{type(module).__name__} is a class of your own: code, not data. "
        "Keep its class, save state_dict(), and load it into a new model with load_state_dict()."
    )


def _short(data: object) -> str:
    text = repr(data)
    return text if len(text) <= 60 else f"{text[:57]}..."
