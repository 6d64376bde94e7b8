"""Saving and loading models: safetensors for the numbers, JSON for the architecture, never code.

A file is a safetensors file, which any reader of that format can open: parameters and buffers under their paths, and
under the metadata key "fcdense" a JSON object with `version`, `architecture` (class names of a closed registry with
their arguments) and `extra` (the caller's own data, such as class names).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from fcdense import nn
from fcdense.errors import ArgumentError, FcdenseError, FormatError
from fcdense.nn import state

VERSION = 1
KEY = "fcdense"
MAX_HEADER = 100_000_000
"""Bytes; the limit of the safetensors format itself."""


class Checkpoint(NamedTuple):
    """What a file holds."""

    model: nn.Module
    extra: dict[str, Any]


def save(path: str | Path, model: nn.Module, extra: Mapping[str, Any] | None = None) -> Path:
    """Write `model` to `path`.

    The file is written beside its place, flushed to disk and renamed: whoever reads `path` finds the old file or the
    new one, whole, even if the machine stops in between. The same model gives the same bytes.

    Parameters
    ----------
    path : str or Path
        Its folder must exist. A symbolic link is followed; a file that is there already keeps its permissions.
    model : nn.Module
        Built of the layers of `fcdense.nn`, with every size known. For a class of your own, save its `state_dict()`.
    extra : mapping, optional
        Anything that JSON can hold, by names; comes back from `read`.

    Raises
    ------
    ArgumentError
        The model or `extra` holds something that cannot be described as data (a class or function of your own).
    GraphError
        A size of the model is not known yet.
    OSError
        The file cannot be written; what was at `path` is as it was.
    """
    from safetensors.numpy import save as to_bytes

    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model is {model!r}; expected an nn.Module: fc.save(path, model).")
    if not isinstance(extra, Mapping | None):
        raise ArgumentError(f"extra is {extra!r}; expected a dict.")
    place = destination(path)
    description = {"version": VERSION, "architecture": nn.to_data(model), "extra": dict(extra or {})}
    try:
        metadata = {KEY: json.dumps(description, allow_nan=False)}
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"The model's arguments or `extra` cannot be written as JSON: {error}.") from None
    tensors = {name: np.ascontiguousarray(array) for name, array in model.state_dict().items()}
    _replace(place, to_bytes(tensors, metadata=metadata))
    return Path(path)


def load(path: str | Path) -> nn.Module:
    """The model in `path`, in evaluation mode; it predicts the same bits as the one that was saved.

    Raises
    ------
    FormatError
        The file is truncated, malformed, of another kind, or of a newer version of fcdense. No code runs from a file,
        and no memory is taken for sizes that its tensors do not have.
    FileNotFoundError
        There is no such file.
    """
    return read(path).model


def read(path: str | Path) -> Checkpoint:
    """The model and the `extra` data in `path`; raises as `load` does."""
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    source = Path(path)
    if source.exists() and not source.is_file():
        _refuse(source, "it is a folder or device, not a file")
    content = source.read_bytes()
    description = _description(source, content)
    try:
        tensors = from_bytes(content)
    except (SafetensorError, KeyError, ValueError) as error:  # KeyError: a dtype that NumPy does not have
        _refuse(source, f"its tensors cannot be read ({error!r})")
    try:
        with nn.unbuilt():
            model = nn.from_data(description.get("architecture"))
        _check_dtypes(model, tensors)
        model.load_state_dict(tensors)
    except (FcdenseError, RecursionError) as error:
        _refuse(source, f"its model cannot be rebuilt. {error}")
    extra = description.get("extra")
    if not isinstance(extra, dict):
        _refuse(source, f"'extra' is {type(extra).__name__}, expected a dict")
    return Checkpoint(model.eval(), extra)


def destination(path: str | Path) -> Path:
    """The file that `save(path, ...)` writes, symbolic links followed; raises `OSError` where there can be none."""
    place = Path(os.path.realpath(path))
    if place.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file in it.")
    if place.exists() and not place.is_file():  # renaming would put a file in the place of /dev/null itself
        raise FileExistsError(f"{path} is a device or pipe, not a file; give the name of a file.")
    if not place.parent.is_dir():
        raise FileNotFoundError(f"The folder {place.parent} does not exist; make it first.")
    if not os.access(place.parent, os.W_OK):
        raise PermissionError(f"The folder {place.parent} is read-only; choose another one.")
    return place


def _description(path: Path, content: bytes) -> dict[str, Any]:
    """What the header says of the model, after the checks that the safetensors library leaves out: duplicate keys."""
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > min(MAX_HEADER, len(content) - 8):
        _refuse(path, f"its {len(content)} bytes are not a safetensors file, or only the beginning of one")
    header = _json(path, "header", content[8 : 8 + size])
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or not isinstance(metadata.get(KEY), str):
        _refuse(path, "it is a safetensors file, but not a model of fcdense; read its arrays with safetensors")
    description = _json(path, "description of the model", metadata[KEY])
    version = description.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        _refuse(
            path, f"its format has version {version!r}; this fcdense reads up to {VERSION}, a newer one may read it"
        )
    return description


def _json(path: Path, what: str, text: bytes | str) -> dict[str, Any]:
    """The JSON object in `text` (UTF-8), in which no key occurs twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ValueError("a key occurs twice")
        return table

    try:
        table = json.loads(text.decode() if isinstance(text, bytes) else text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        _refuse(path, f"its {what} cannot be read: {error}")
    if not isinstance(table, dict):
        _refuse(path, f"its {what} is no JSON object")
    return table


def _check_dtypes(model: nn.Module, tensors: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """`load_state_dict` would cast; what was saved has the dtype of its layer."""
    for name, entry in state.entries(model).items():
        dtype = getattr(entry.owner, "dtype", None)
        if name in tensors and tensors[name].dtype != dtype:
            raise FormatError(f"Tensor '{name}' is {tensors[name].dtype}, its layer {dtype}.")


def _refuse(path: Path, reason: str) -> NoReturn:
    raise FormatError(f"{path} cannot be loaded: {reason.rstrip('.')}.") from None


def _replace(path: Path, content: bytes) -> None:
    """Put `content` at `path`, whole or not at all."""
    temporary = path.with_name(f".fcdense-{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself durable, on systems that can."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        # Some network file systems refuse to; the file is in its place all the same.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
        os.close(descriptor)
