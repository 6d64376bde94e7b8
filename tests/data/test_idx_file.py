"""idx files: written by hand after the format's description, cut at every byte, lying about their size."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcdense.data import load_idx
from fcdense.errors import FormatError

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(array: np.ndarray) -> bytes:
    code = CODES[array.dtype.str[1:]]
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("shape", [(1,), (5,), (2, 3), (2, 3, 4), (1, 1, 1, 2)])
def test_every_dtype_and_rank(tmp_path: Path, dtype: str, shape: tuple[int, ...], packed: bool) -> None:
    array = (np.arange(np.prod(shape)).reshape(shape) * 5 - 3).astype(dtype)
    content = idx_bytes(array)
    read = load_idx(write(tmp_path / "any.name", gzip.compress(content) if packed else content))
    assert read.dtype == array.dtype
    assert read.dtype.isnative
    assert np.array_equal(read, array)
    read[...] = 0  # writable


def test_bytes_as_the_format_describes_them(tmp_path: Path) -> None:
    content = bytes([0, 0, 0x0B, 2, 0, 0, 0, 1, 0, 0, 0, 2, 0x01, 0x02, 0xFF, 0xFE])
    assert load_idx(write(tmp_path / "a", content)).tolist() == [[258, -2]]


@pytest.mark.parametrize("packed", [False, True])
def test_cut_at_every_byte(tmp_path: Path, packed: bool) -> None:
    whole = idx_bytes(np.arange(12, dtype=np.int16).reshape(3, 4))
    whole = gzip.compress(whole) if packed else whole
    for length in range(len(whole)):
        with pytest.raises(FormatError, match="cut"):
            load_idx(write(tmp_path / "cut", whole[:length]))


@pytest.mark.parametrize("extra", [b"\0", b"x" * 5000])
@pytest.mark.parametrize("packed", [False, True])
def test_bytes_after_the_end_are_refused(tmp_path: Path, extra: bytes, packed: bool) -> None:
    content = idx_bytes(np.arange(6, dtype=np.uint8)) + extra
    with pytest.raises(FormatError, match="too long: the header promises 6 uint8 = 6 bytes, found more"):
        load_idx(write(tmp_path / "long", gzip.compress(content) if packed else content))


@given(st.binary(max_size=60))
def test_arbitrary_bytes_never_do_more_than_raise_format_error(tmp_path_factory, content: bytes) -> None:
    path = write(tmp_path_factory.getbasetemp() / "arbitrary", content)
    try:
        array = load_idx(path)
    except FormatError:
        return
    assert array.nbytes + 4 + 4 * array.ndim == len(content)


def test_every_flipped_byte_of_a_gzip_file_is_noticed_or_harmless(tmp_path: Path) -> None:
    array = np.arange(20, dtype=np.uint8)
    whole = gzip.compress(idx_bytes(array), mtime=0)
    refused = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        try:
            assert np.array_equal(load_idx(write(tmp_path / "damaged", bytes(damaged))), array)
        except FormatError:
            refused += 1
    assert refused >= len(whole) - 6  # four bytes of time, one of flags, one of system mean nothing


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "0 bytes long"),
        (b"\0\1\x08\1\0\0\0\1\0", "00 01 08 01.*not an idx file"),
        (b"PNG\0\0\0\0\0", "not an idx file"),
        (b"\0\0\x07\1\0\0\0\1\0", r"unknown idx dtype 0x07; known: 0x08 \(uint8\)"),
        (b"\0\0\x08\0\0", "0 axes, expected 1 to 32"),
        (b"\0\0\x08\xff" + b"\0\0\0\1" * 255 + b"\0", "255 axes"),
        (b"\0\0\x08\2\0\0\0\0\0\0\0\5", r"holds no elements \(shape \(0, 5\)\)"),
        (b"\0\0\x08\3\0\0\0\1\0\0", "sizes of 3 axes take 12 bytes, found 6"),
    ],
)
def test_wrong_headers(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        load_idx(write(tmp_path / "wrong", content))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("sizes", [(2**32 - 1,), (2**31, 2**31, 8), (2**32 - 1,) * 32, (100_000_000,)])
def test_huge_promises_cost_no_memory(tmp_path: Path, sizes: tuple[int, ...], packed: bool) -> None:
    content = struct.pack(f">BBBB{len(sizes)}I", 0, 0, 0x0E, len(sizes), *sizes) + bytes(1000)
    path = write(tmp_path / "huge", gzip.compress(content) if packed else content)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="truncated: the header promises"):
            load_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_gzip_bomb_is_read_to_its_promise_only(tmp_path: Path) -> None:
    content = struct.pack(">BBBBI", 0, 0, 0x08, 1, 10) + bytes(64 << 20)
    path = write(tmp_path / "bomb.gz", gzip.compress(content, 1))
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="too long"):
            load_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_an_absent_file_is_the_usual_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.idx"):
        load_idx(tmp_path / "absent.idx")
