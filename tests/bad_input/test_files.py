"""Model files that are damaged, and places that cannot be written. (`test_checkpoint` attacks the format in depth.)"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fcdense as fc
from fcdense.errors import FormatError
from tests.bad_input.unchanged import facts, settled

Header = dict[str, Any]
KERNEL = "layers.0.kernel"


def described(header: Header, **changes: Any) -> None:
    header["__metadata__"]["fcdense"] = json.dumps(json.loads(header["__metadata__"]["fcdense"]) | changes)


def packed(header: Header | bytes, body: bytes, size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + body


def edited(edit: Callable[[Header], Any]) -> Callable[[Header, bytes], bytes]:
    def apply(header: Header, body: bytes) -> bytes:
        edit(header)
        return packed(header, body)

    return apply


def missing(header: Header, body: bytes) -> bytes:
    last = max((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"][1])
    start = header.pop(last)["data_offsets"][0]
    return packed(header, body[:start])


DAMAGE: dict[str, tuple[Callable[[Header, bytes], bytes], str]] = {
    "empty": (lambda h, b: b"", "its 0 bytes"),
    "cut off in the header": (lambda h, b: packed(h, b)[:100], "only the beginning of one"),
    "cut off in the numbers": (lambda h, b: packed(h, b[:-1]), "tensors cannot be read"),
    "header of 2^63 bytes": (lambda h, b: packed(h, b, 2**63), "are not a safetensors file"),
    "not UTF-8": (lambda h, b: packed(b'{"\xff": 1}', b), "header cannot be read"),
    "duplicate key": (lambda h, b: packed(json.dumps(h).encode()[:-1] + b', "__metadata__": {}}', b), "occurs twice"),
    "overlapping": (edited(lambda h: h[KERNEL].update(h["layers.0.bias"])), "tensors cannot be read"),
    "product of the shape overflows": (edited(lambda h: h[KERNEL].update(shape=[2**40, 2**40])), "tensors cannot"),
    "another dtype": (edited(lambda h: h[KERNEL].update(dtype="I32")), f"'{KERNEL}' is int32, its layer float32"),
    "more bytes": (lambda h, b: packed(h, b + b"\0"), "tensors cannot be read"),
    "a tensor less": (missing, "Missing: layers."),
    "a tensor more": (
        edited(lambda h: h.update(more={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})), "Unexpected: more",
    ),
    "newer format": (edited(lambda h: described(h, version=99)), "version 99; this fcdense reads up to 1"),
    "no model": (edited(lambda h: h.pop("__metadata__")), "read its arrays with safetensors"),
}  # fmt: skip


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return fc.save(tmp_path / "model.safetensors", settled().model)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files(damage, saved):
    content = saved.read_bytes()
    stop = 8 + int.from_bytes(content[:8], "little")
    change, words = DAMAGE[damage]
    saved.write_bytes(change(json.loads(content[8:stop]), content[stop:]))
    before = facts()
    with pytest.raises(FormatError) as caught:
        fc.load(saved)
    assert f"{saved} cannot be loaded" in str(caught.value)
    assert words in str(caught.value), caught.value
    assert facts() == before


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors"):
        fc.load(tmp_path / "nothing.safetensors")
    with pytest.raises(FormatError, match="folder or device"):
        fc.load(tmp_path)
    model = settled().model
    with pytest.raises(IsADirectoryError, match="is a folder; give the name of a file"):
        fc.save(tmp_path, model)
    with pytest.raises(FileNotFoundError, match="does not exist; make it first"):
        fc.save(tmp_path / "folder" / "model.safetensors", model)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_or_device_is_not_replaced_by_a_file(tmp_path):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(FileExistsError, match="device or pipe, not a file"):
            fc.save(path, settled().model)
        assert path.is_fifo()
    assert sorted(tmp_path.iterdir()) == [link, pipe]


FULL_DISK = """
import resource, sys
import fcdense as fc

path, model = sys.argv[1], fc.nn.Sequential(fc.nn.Dense(64, in_features=64))
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    fc.save(path, model)
except OSError as error:
    print(type(error).__name__, error.errno)
print(model(fc.tensor([[0.0] * 64], dtype="float32")).shape)
"""


def test_a_disk_without_room_keeps_the_old_file(saved):
    """The system itself refuses the 4097th byte."""
    pytest.importorskip("resource")
    content = saved.read_bytes()
    done = subprocess.run([sys.executable, "-c", FULL_DISK, saved], capture_output=True, text=True, check=True)
    assert done.stdout == "OSError 27\n(1, 64)\n"
    assert saved.read_bytes() == content
    assert list(saved.parent.iterdir()) == [saved]
    assert np.isfinite(fc.load(saved)(np.ones((1, 3), np.float32)).numpy()).all()
