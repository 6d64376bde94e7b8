"""Compiled kernels on disk: their source in a file named by its content, and Numba's cache of machine code beside it.

A folder for each kernel, named by a hash of its source, of the sources in this package (Numba does not notice that a
function which a cached one calls has changed) and of the versions. It holds the source, machine code for each kind of
processor that used it, and the checksums of these files: machine code that was cut short or altered is never run.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import llvmlite
import numba

SOURCE, CHECKSUMS = "kernel.py", "checksums.txt"

_modules: dict[str, ModuleType] = {}
_lock = threading.RLock()


def call_source(module: str, name: str, dtype: Any, arguments: int) -> str:
    """The module of the C function `kernel` of some int64, which calls `name` of `module` with them and the dtype."""
    names = ", ".join("abcdefg"[:arguments])
    return f'''"""{name} of {dtype}."""

import numpy as np
from numba import cfunc

from {module} import {name}

real = np.{dtype}


@cfunc("void({", ".join(["int64"] * arguments)})", cache=True, error_model="numpy")
def kernel({names}):
    {name}({names}, real)
'''


def load(source: str, folder: Path, warn: Callable[[str], None]) -> Any:
    """The C function that `source` defines, compiled or read from the cache. Its `.address` is what one calls.

    Parameters
    ----------
    source : str
        A module that defines the function `kernel` with ``@cfunc(..., cache=True)``.
    folder : Path
        Of all kernels. Made if it is not there.
    warn : callable
        Told once per process if `folder` cannot be written to; kernels are then compiled in each process.

    Notes
    -----
    A loaded kernel stays for the life of the process, so that its address stays valid.
    """
    with _lock:
        module = _modules.get(source)
        if module is None:
            key = hashlib.sha256(f"{_version()}\n{source}".encode()).hexdigest()[:32]
            module = _modules[source] = _import(_home(source, Path(folder) / key, warn), key)
        return module.kernel


@functools.cache
def _version() -> str:
    """What machine code depends on besides its source and the processor, which Numba's cache distinguishes itself."""
    sources = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        sources.update(path.read_bytes())
    return f"{numba.__version__} {llvmlite.__version__} {sys.implementation.cache_tag} {sources.hexdigest()}"


@functools.cache
def _temporary() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fcdense-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _home(source: str, home: Path, warn: Callable[[str], None]) -> Path:
    """The folder of a kernel, with the source and nothing that was damaged in it."""
    try:
        _prepare(source, home)
    except OSError as error:
        if not _temporary.cache_info().currsize:
            warn(
                f"Compiled kernels cannot be kept in {home.parent} ({error.strerror or error}): each process compiles "
                "them anew. Name a folder that can be written to in FCDENSE_CACHE."
            )
        home = _temporary() / home.name
        _prepare(source, home)
    return home


def _prepare(source: str, home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    path = home / SOURCE
    if not path.is_file() or path.read_bytes() != source.encode():
        _write(path, source)
    elif not os.access(home, os.W_OK):
        raise PermissionError(f"{home} is read-only")
    if _checksums(home) != _recorded(home):
        shutil.rmtree(home / "__pycache__", ignore_errors=True)


def _import(home: Path, key: str) -> ModuleType:
    name = f"fcdense_kernel_{key}"
    spec = importlib.util.spec_from_file_location(name, home / SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if (sums := _checksums(home)) != _recorded(home):
            _write(home / CHECKSUMS, sums)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _checksums(home: Path) -> str:
    """A line for each file of machine code: its SHA-256 and its name."""
    files = sorted((home / "__pycache__").glob("*.nb?"))
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.name}\n" for path in files)


def _recorded(home: Path) -> str:
    try:
        return (home / CHECKSUMS).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _write(path: Path, text: str) -> None:
    """Write a file in one step: readers see the old one or the new one, whole."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
