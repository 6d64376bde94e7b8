"""The questions, one file each. A file's name is the question's name on the command line.

A question's module has `cases(grid)`, which makes the rows of its table; the first line of its docstring says what it
measures.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from importlib import import_module

from fcdense.errors import unknown_name

from ..cases import Case, Grid


def names() -> list[str]:
    """The questions that there are."""
    return [module.name for module in pkgutil.iter_modules(__path__)]


def summary(name: str) -> str:
    """What a question measures, in a line."""
    return (import_module(f"{__name__}.{name}").__doc__ or name).splitlines()[0]


def cases(questions: Iterable[str], grid: Grid) -> list[Case]:
    """The cases of the named questions.

    Raises
    ------
    UnknownNameError
        A question that is not there.
    """
    known = names()
    found: list[Case] = []
    for name in questions:
        if name not in known:
            unknown_name("question", name, known)
        found += import_module(f"{__name__}.{name}").cases(grid)
    return found
