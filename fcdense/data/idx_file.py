"""The idx format: one array per file, plain or gzipped (MNIST and its successors)."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fcdense.errors import FormatError

DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MAX_AXES = 32
MAX_INFLATION = 1032  # deflate spends at least 2 bits on 258 bytes
GZIP_MAGIC = b"\x1f\x8b"
CHUNK = 1 << 20


def load_idx(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Read an idx file, gzipped or not (its first bytes tell, not its name).

    Format: two zero bytes, one byte of dtype, one byte with the number of axes, the sizes as big-endian uint32, then
    the elements in C order, big-endian. Memory grows with the bytes that are really there, whatever the header says.

    Returns
    -------
    array
        Writable, in native byte order: uint8, int8, int16, int32, float32 or float64.

    Raises
    ------
    FormatError
        Not an idx file, an unknown dtype, sizes that promise more or fewer bytes than there are, damaged gzip data.
    FileNotFoundError
        No such file.

    Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", section "File formats".
    """
    path = Path(path)
    with path.open("rb") as file:
        packed = file.read(2) == GZIP_MAGIC
        file.seek(0)
        on_disk = os.fstat(file.fileno()).st_size
        if not packed:
            return _read(file, path, on_disk)
        try:
            with gzip.open(file) as stream:
                return _read(stream, path, on_disk * MAX_INFLATION)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise FormatError(f"{path}: damaged gzip data ({error}); get the file again.") from error


def _read(stream: IO[bytes] | gzip.GzipFile, path: Path, most_bytes: int) -> NDArray[Any]:
    dtype, shape = _header(stream, path)
    promised = math.prod(shape) * dtype.itemsize
    header = 4 + 4 * len(shape)
    sizes = f"the header promises {'x'.join(map(str, shape))} {dtype.newbyteorder('=')} = {promised} bytes"
    if header + promised > most_bytes:
        raise FormatError(f"{path}: truncated: {sizes}, the file cannot hold more than {max(most_bytes - header, 0)}.")
    content = bytearray()
    # One byte beyond the end tells a file that is too long, and makes gzip verify its checksum.
    while chunk := stream.read(min(CHUNK, promised + 1 - len(content))):
        content += chunk
    if len(content) != promised:
        state = "truncated" if len(content) < promised else "too long"
        found = len(content) if len(content) < promised else "more"
        raise FormatError(f"{path}: {state}: {sizes}, found {found}.")
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _header(stream: IO[bytes] | gzip.GzipFile, path: Path) -> tuple[np.dtype[Any], tuple[int, ...]]:
    magic = stream.read(4)
    if len(magic) < 4:
        raise FormatError(f"{path}: {len(magic)} bytes long, expected an idx file (at least 9 bytes).")
    if magic[:2] != b"\0\0":
        raise FormatError(
            f"{path}: starts with bytes {magic.hex(' ')}, expected 00 00 <dtype> <axes>: not an idx file."
        )
    code, axes = magic[2], magic[3]
    if code not in DTYPES:
        known = ", ".join(f"{c:#04x} ({np.dtype(d).newbyteorder('=')})" for c, d in DTYPES.items())
        raise FormatError(f"{path}: unknown idx dtype {code:#04x}; known: {known}.")
    if not 1 <= axes <= MAX_AXES:
        raise FormatError(f"{path}: {axes} axes, expected 1 to {MAX_AXES}.")
    raw = stream.read(4 * axes)
    if len(raw) < 4 * axes:
        raise FormatError(f"{path}: truncated: the sizes of {axes} axes take {4 * axes} bytes, found {len(raw)}.")
    shape = struct.unpack(f">{axes}I", raw)
    if 0 in shape:
        raise FormatError(f"{path}: holds no elements (shape {shape}).")
    return np.dtype(DTYPES[code]), shape
