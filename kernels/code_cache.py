"""Compiled code on disk, one file for each piece, named by what it was made from.

The SHA-256 of name and code ends the file: code that was cut short, altered, or lies under another name is never run.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import threading
from pathlib import Path

logger = logging.getLogger("fcdense")

DIGEST = hashlib.sha256().digest_size


def folder_of(kind: str) -> Path:
    """The folder of this name in $FCDENSE_CACHE, or else in ~/.cache/fcdense."""
    return Path(os.environ.get("FCDENSE_CACHE") or "~/.cache/fcdense").expanduser() / kind


def read(path: Path) -> bytes | None:
    """The code in a file; None where there is none, or none that is whole."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    code, digest = content[:-DIGEST], content[-DIGEST:]
    return code if code and _digest(path, code) == digest else None


def keep(path: Path, code: bytes) -> None:
    """Write a file of code; a warning where that cannot be."""
    try:
        write(path, code + _digest(path, code))
    except OSError as error:
        warn_of(path.parent, error.strerror or str(error))


def write(path: Path, content: bytes) -> None:
    """Write a file in one step: readers see the old one or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _digest(path: Path, code: bytes) -> bytes:
    return hashlib.sha256(path.stem.encode() + code).digest()


@functools.cache
def warn_of(folder: Path, error: str) -> None:
    """Say once that nothing can be kept in a folder."""
    logger.warning(
        "Compiled kernels cannot be kept in %s (%s): each process compiles them anew. Name a folder that can be "
        "written to in FCDENSE_CACHE.",
        folder,
        error,
    )
