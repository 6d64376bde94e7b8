"""Data sets in NumPy's npz archives."""

from __future__ import annotations

import math
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from fcdense.data.checks import as_rows, same_rows
from fcdense.data.datasets import Dataset, SplitDataset, Task
from fcdense.data.idx_file import MAX_INFLATION
from fcdense.errors import DataError, DTypeError, FormatError, ShapeError

WHOLE = ("x", "y")
DIVIDED = ("x_train", "y_train", "x_test", "y_test")
# What zipfile raises over damaged bytes, encrypted members and offsets outside the file.
UNREADABLE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError)
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def load_npz(path: str | os.PathLike[str]) -> Dataset | SplitDataset:
    """Read `x, y`, or `x_train, y_train, x_test, y_test`, from an npz archive (as `np.savez` writes it).

    Values are kept: features that are integers or bools become float32 without any scaling, floats keep their dtype.
    Targets of integers (N,) are class numbers 0..K-1, with K - 1 the largest; of text (N,) class names, numbered in
    sorted order; of floats, values to regress on. Other keys are ignored.

    Raises
    ------
    FormatError
        Not an npz archive, damaged, truncated, keys that are not there, Python objects (pickle is never read).
    DataError, ShapeError, DTypeError
        Arrays that do not make a data set.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                arrays = {key: _read(archive, key, path) for key in _wanted(archive, path)}
        except FormatError:
            raise
        except UNREADABLE as error:
            raise FormatError(f"{path}: not a readable npz archive ({error}).") from error
    return _dataset(path, arrays)


def _wanted(archive: zipfile.ZipFile, path: Path) -> tuple[str, ...]:
    members = archive.namelist()
    for group in (DIVIDED, WHOLE):
        if all(f"{key}.npy" in members for key in group):
            return group
    held = ", ".join(name.removesuffix(".npy") for name in members)
    raise FormatError(f"{path}: holds {held or 'nothing'}; expected {', '.join(WHOLE)} or {', '.join(DIVIDED)}.")


def _read(archive: zipfile.ZipFile, key: str, path: Path) -> NDArray[Any]:
    info = archive.getinfo(f"{key}.npy")
    # NumPy allocates what the header of a member promises; so first ask whether the file can hold that much.
    if info.compress_size > path.stat().st_size or info.file_size > MAX_INFLATION * info.compress_size:
        raise FormatError(f"{path}: {key} claims {info.file_size} bytes, more than the file can hold.")
    try:
        with archive.open(info) as member:
            version = npy.read_magic(member)
            if version not in HEADERS:
                raise FormatError(f"{path}: {key} has npy version {version}, expected 1.0 or 2.0.")
            shape, _, dtype = HEADERS[version](member)
            if dtype.hasobject:
                raise FormatError(f"{path}: {key} holds Python objects, which only pickle reads; save numbers instead.")
            promised = member.tell() + math.prod(shape) * dtype.itemsize
        if promised != info.file_size:
            raise FormatError(
                f"{path}: {key} {shape} {dtype} takes {promised} bytes, the archive has {info.file_size}."
            )
        with archive.open(info) as member:
            return np.asarray(npy.read_array(member, allow_pickle=False))
    except FormatError:
        raise
    except (ValueError, TypeError, OverflowError) as error:
        raise FormatError(f"{path}: {key} is not a readable npy array ({error}).") from error


def _dataset(path: Path, arrays: dict[str, NDArray[Any]]) -> Dataset | SplitDataset:
    pairs = [(x, x.replace("x", "y")) for x in arrays if x.startswith("x")]
    features = {x: _features(f"{path}: {x}", arrays[x]) for x, _ in pairs}
    targets, task, class_names = _targets(path, {y: arrays[y] for _, y in pairs})
    for x, y in pairs:
        same_rows(f"{path}: {x}", features[x], y, targets[y])
    if len({array.shape[1:] for array in features.values()}) > 1:
        shapes = ", ".join(f"{key} {array.shape}" for key, array in features.items())
        raise ShapeError(f"{path}: {shapes}; expected rows of one shape.")
    if "x" in features:
        return Dataset(name=path.name, task=task, class_names=class_names, x=features["x"], y=targets["y"])
    return SplitDataset(
        name=path.name,
        task=task,
        class_names=class_names,
        x_train=features["x_train"],
        y_train=targets["y_train"],
        x_test=features["x_test"],
        y_test=targets["y_test"],
    )


def _features(name: str, array: NDArray[Any]) -> NDArray[Any]:
    rows = as_rows(name, array, min_axes=2)
    return rows.astype(rows.dtype.newbyteorder("=") if rows.dtype.kind == "f" else np.float32, copy=False)


def _targets(path: Path, arrays: dict[str, NDArray[Any]]) -> tuple[dict[str, NDArray[Any]], Task, tuple[str, ...]]:
    kinds = {array.dtype.kind for array in arrays.values()}
    named = ", ".join(f"{key} {array.shape} {array.dtype}" for key, array in arrays.items())
    if kinds == {"f"}:
        return (
            {
                key: as_rows(f"{path}: {key}", y).astype(y.dtype.newbyteorder("="), copy=False)
                for key, y in arrays.items()
            },
            "regression",
            (),
        )
    if any(array.ndim != 1 for array in arrays.values()):
        raise ShapeError(
            f"{path}: {named}; expected one class per row, (N,): save y.argmax(axis=1) for one-hot rows, floats for "
            "values to regress on."
        )
    together = np.concatenate(list(arrays.values()))
    if len(together) == 0:
        raise DataError(f"{path}: {named} has 0 rows, expected at least one.")
    if kinds == {"U"}:
        names = np.unique(together)
        return {key: np.searchsorted(names, y) for key, y in arrays.items()}, "classification", tuple(map(str, names))
    if not kinds <= set("iub"):
        raise DTypeError(f"{path}: {named}; expected integers or text for classes, or floats to regress on.")
    least, most = int(together.min()), int(together.max())
    if least < 0 or most >= max(len(together), 1000):
        raise DataError(
            f"{path}: {named} of {least} to {most}, expected class numbers 0 to K-1: save "
            "np.unique(y, return_inverse=True)[1], or floats for values to regress on."
        )
    classes = {key: y.astype(np.int64) for key, y in arrays.items()}
    return classes, "classification", tuple(map(str, range(most + 1)))
