"""What a replay must know of: settings that were changed since its step was recorded, and gradients that came or went.

A captured step is replayed without Python. The two counters tell it, at the cost of a comparison, that nothing has
happened; the `Witness` of a recording notes what the step itself does to gradients, versions and models.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from fcdense.arena import Version

settings = Version()
"""Raised when an attribute of a module or `requires_grad` is set, or a parameter is built or moves."""

gradients = Version()
"""Raised when a leaf gets its first gradient since `zero_grad`, or loses it."""


class Witness:
    """Notes what a step does while this thread records it.

    Parameters
    ----------
    describe : callable
        What is to be noted of a module when it is called.

    Attributes
    ----------
    leaves : dict
        Each leaf whose gradient was asked for or changed, with its `gradient_state` before.
    depends : list
        Those whose state mattered: their gradient was not forgotten first.
    reads : set
        Parameters whose gradient the step took in hand (`parameter.grad`).
    versions : dict
        How often each version was raised.
    modules : dict
        The outermost modules that were called, with what `describe` said before the first call.
    uses : dict
        The leaves that may move and that operations took.
    unchecked : bool
        Whether a loss took a target whose values it could not look at.
    """

    def __init__(self, describe: Callable[[Any], Any]) -> None:
        self.leaves: dict[Any, Any] = {}
        self.depends: list[Any] = []
        self.reads: set[Any] = set()
        self.versions: dict[Version, int] = {}
        self.uses: dict[Any, None] = {}
        self.modules: dict[Any, Any] = {}
        self.unchecked = False
        self._describe = describe
        self._thread = threading.get_ident()

    def leaf(self, leaf: Any, *, forgets: bool = False) -> None:
        """`leaf` is about to lose its gradient (`forgets`), or to get another or be asked for it."""
        if leaf not in self.leaves and threading.get_ident() == self._thread:
            self.leaves[leaf] = leaf.gradient_state
            if not forgets:
                self.depends.append(leaf)

    def use(self, tensors: Iterable[Any]) -> None:
        """An operation takes these tensors."""
        if threading.get_ident() == self._thread:
            self.uses.update(dict.fromkeys(tensor for tensor in tensors if tensor.moves))

    def module(self, module: Any) -> None:
        """`module` is called, and no other one around it."""
        if module not in self.modules and threading.get_ident() == self._thread:
            self.modules[module] = self._describe(module)

    def version(self, version: Version) -> None:
        """`version` was raised."""
        if version is not settings and version is not gradients and threading.get_ident() == self._thread:
            self.versions[version] = self.versions.get(version, 0) + 1

    def undo(self) -> None:
        """Leaves and versions as they were before: the step was recorded, but not run."""
        for leaf, state in self.leaves.items():
            leaf.gradient_state = state
        for version, count in self.versions.items():
            version.number -= count


witness: Witness | None = None
"""That of the recording under way, if there is one."""


def note_use(tensors: Iterable[Any]) -> None:
    """An operation takes these tensors: tell the witness, if there is one."""
    if witness is not None:
        witness.use(tensors)


def observe(watching: Witness | None) -> None:
    """Make `watching` the witness; None for none."""
    global witness
    witness = watching
    Version.watch = None if watching is None else watching.version
