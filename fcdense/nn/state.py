"""The state of a module: parameters and buffers as arrays by path, out of it and back in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fcdense.conversion import host_array, warn_once
from fcdense.errors import ArgumentError, GraphError
from fcdense.parameter import Parameter
from fcdense.tape import no_grad
from fcdense.tensor import Tensor

if TYPE_CHECKING:
    from fcdense.nn.module import Module

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Entry:
    """A parameter or buffer: the module that owns it, its name there, and what is there now."""

    owner: Module
    name: str
    value: Parameter | Tensor | None

    @property
    def is_built(self) -> bool:
        return self.value.is_built if isinstance(self.value, Parameter) else self.value is not None

    def fits(self, shape: tuple[int, ...], in_features: int | None) -> tuple[bool, str]:
        """Whether an array of `shape` may go here, and what is expected, as text."""
        if self.value is not None and self.is_built:
            return shape == self.value.shape, str(self.value.shape)
        lazy = self.owner.lazy_shape(self.name)
        if lazy is None:
            return True, "any"
        expected = tuple(in_features if size is None else size for size in lazy)
        good = len(shape) == len(lazy) and all(e in (None, s) for s, e in zip(shape, expected, strict=True))
        return good and 0 not in shape, str(expected).replace("None", "in_features")

    def write(self, array: Array) -> None:
        """Copy `array` in."""
        if isinstance(self.value, Parameter) and self.is_built:
            self.value.assign(array)
        elif isinstance(self.value, Parameter):
            self.value.build(np.array(array, dtype=self._dtype(array), order="C"))
        elif self.value is not None:
            with no_grad():
                self.value[()] = array
        else:
            setattr(self.owner, self.name, np.array(array, dtype=self._dtype(array)))

    def _dtype(self, array: Array) -> Any:
        return getattr(self.owner, "dtype", array.dtype)

    def narrows(self, array: Array) -> bool:
        """Whether writing `array` rounds its values."""
        dtype = self.value.dtype if self.value is not None and self.is_built else np.dtype(self._dtype(array))
        return array.dtype.kind == "f" and bool(array.dtype.itemsize > dtype.itemsize)


def entries(module: Module) -> dict[str, Entry]:
    """Every parameter and buffer by path, whether built or not."""
    owners = dict(module.named_modules())
    found = {}
    for path, parameter in module.named_parameters():
        home = _home(owners, path)
        found[path] = Entry(owners[home], path.removeprefix(f"{home}."), parameter)
    for home, owner in owners.items():
        for name in owner._buffers:
            path = f"{home}.{name}" if home else name
            found[path] = Entry(owner, name, owner.__dict__.get(name))
    return found


def _home(owners: Mapping[str, Module], path: str) -> str:
    """The path of the module that owns the parameter at `path`: the longest one that is its beginning."""
    while path not in owners:
        path = path.rpartition(".")[0]
    return path


def values(module: Module) -> dict[str, Array]:
    """Copies of everything; raises `GraphError` for what is not built."""
    arrays = {}
    for path, entry in entries(module).items():
        if entry.value is None or not entry.is_built:
            kind, owner = "Buffer" if entry.value is None else "Parameter", type(entry.owner).__name__
            raise GraphError(
                f"{kind} '{path}' has no shape yet: its {owner} takes in_features from the first input. "
                "Call the model once, or give in_features."
            )
        arrays[path] = np.array(entry.value.numpy())
    return arrays


def load(module: Module, given: Mapping[str, Any]) -> None:
    """Write `given` into `module`, all of it or nothing."""
    if not isinstance(given, Mapping):
        raise ArgumentError(f"load_state_dict got {type(given).__name__}; expected a dict of arrays by path.")
    found = entries(module)
    arrays = {path: host_array(value, f"state['{path}']") for path, value in given.items()}
    problems = []
    missing = [path for path in found if path not in arrays]
    if missing:
        problems.append(f"Missing: {', '.join(missing)}.")
    unexpected = [str(path) for path in arrays if path not in found]
    if unexpected:
        problems.append(f"Unexpected: {', '.join(unexpected)}.")
    wrong = _wrong_shapes(found, arrays)
    if wrong:
        problems.append(f"Wrong shape: {'; '.join(wrong)}.")
    if problems:
        raise ArgumentError(
            f"The state does not fit this {type(module).__name__}; nothing was changed. {' '.join(problems)}"
        )
    for path, entry in found.items():
        if entry.narrows(arrays[path]):
            warn_once(
                ("load_state_dict", str(arrays[path].dtype)),
                f"state['{path}'] is {arrays[path].dtype}, wider than the parameter; values are rounded.",
            )
        entry.write(arrays[path])


def _wrong_shapes(found: Mapping[str, Entry], arrays: Mapping[str, Array]) -> list[str]:
    """What does not fit; the first array of an unbuilt layer tells the number of features to all others of it."""
    in_features: dict[int, int] = {}
    wrong = []
    for path, entry in found.items():
        if path not in arrays:
            continue
        shape = arrays[path].shape
        good, expected = entry.fits(shape, in_features.get(id(entry.owner)))
        if not good:
            wrong.append(f"{path} is {shape}, expected {expected}")
        elif not entry.is_built:
            lazy = entry.owner.lazy_shape(entry.name) or ()
            in_features |= {id(entry.owner): size for size, e in zip(shape, lazy, strict=False) if e is None}
    return wrong
