"""The settings of a model: what the Python of its forward passes may depend on, beside the values of its tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fcdense.parameter import Parameter

if TYPE_CHECKING:
    from fcdense.nn.module import Module

NO_SETTINGS = frozenset(("_captured", "_forwards"))
"""Attributes that depend on the others, and not the other way round."""

PLAIN = (bool, int, float, complex, str, bytes, type(None))


class Snapshot:
    """The attributes of a module and of all below it, at one moment.

    Numbers and texts are compared by value, lists, tuples, sets and dicts by what they hold, everything else by
    identity: what is changed inside of an object of another class goes unseen.
    """

    def __init__(self, root: Module) -> None:
        self.root = root
        self._paths = {module: path for path, module in root.named_modules()}
        self._attributes = {module: dict(vars(module)) for module in self._paths}
        values = (value for attributes in self._attributes.values() for value in attributes.values())
        self._contents = [(value, value.copy()) for value in values if type(value) in (list, dict, set)]
        self._frozen = {module: _frozen_attributes(module) for module in self._paths}

    def again(self) -> Snapshot:
        """The same module now."""
        return Snapshot(self.root)

    def difference(self, other: Snapshot, *, plain: bool = False) -> str:
        """Where `other` differs, in words; "" where it does not. `plain` looks at numbers and texts only."""
        if list(self._paths) != list(other._paths) and not plain:
            return "the layers"
        for module, ours in self._frozen.items():
            theirs = other._frozen.get(module, {})
            names = [name for name in (*ours, *theirs) if not _alike(ours.get(name), theirs.get(name), plain)]
            if names:
                path = self._paths[module]
                return f"`{names[0]}` of " + (f"layer '{path}'" if path else type(module).__name__)
        return ""

    def restore(self) -> None:
        """Put the attributes back, and what lists, sets and dicts held."""
        for module, attributes in self._attributes.items():
            current = vars(module)
            for name in current.keys() - attributes.keys() - NO_SETTINGS:
                del current[name]
            current.update(attributes)
        for value, held in self._contents:
            if type(value) is list:
                value[:] = held
            else:
                value.clear()
                value.update(held)


def _frozen_attributes(module: Module) -> dict[str, Any]:
    return {"training": module.training} | {
        name: _frozen(value) for name, value in list(vars(module).items()) if name not in NO_SETTINGS
    }


def _frozen(value: Any) -> Any:
    """`value` in a form that stays as it is when `value` is changed."""
    if isinstance(value, Parameter):
        return _Fixed((value, value.array, value.requires_grad, value.regularizer, value.constraint))
    if type(value) in (list, tuple):
        return tuple([_frozen(item) for item in value])
    if type(value) is dict:
        return tuple([(key, _frozen(item)) for key, item in value.items()])
    if type(value) is set:
        return frozenset(value)
    return value


class _Fixed(tuple[Any, ...]):
    """A parameter with what is set of it."""

    __slots__ = ()


def _alike(ours: Any, theirs: Any, plain: bool) -> bool:
    if ours is theirs:
        return True
    if isinstance(ours, tuple) and isinstance(theirs, tuple):
        return len(ours) == len(theirs) and all(_alike(a, b, plain) for a, b in zip(ours, theirs, strict=True))
    if type(ours) is type(theirs) and (type(ours) in PLAIN or type(ours) is frozenset):
        return bool(ours == theirs)
    return plain and not (isinstance(ours, PLAIN) and isinstance(theirs, PLAIN))
