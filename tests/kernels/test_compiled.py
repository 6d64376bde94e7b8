"""The cache of compiled kernels: written once, read by other processes, never trusted when it is damaged."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

from fcdense import loops
from fcdense.kernels.numba import compiled
from fcdense.program import trace

ROOT = Path(__file__).resolve().parents[2]
SOURCE = loops.tile_source(trace(lambda x: x * x, 1, name="square"), np.dtype(np.float32), "")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has loaded nothing."""
    monkeypatch.setattr(compiled, "_modules", {})
    compiled._temporary.cache_clear()


def fail(message: str) -> None:
    pytest.fail(message)


def squares(kernel: Any) -> None:
    x = np.array([[3.0, -4.0]], np.float32)
    args = np.zeros(3, np.int64)
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 7)(kernel.address)
    function(args.ctypes.data, x.ctypes.data, 2, 0, 1, 0, 2)
    np.testing.assert_array_equal(x, [[9.0, 16.0]])


def reload(folder: Path, warn: Any = fail) -> tuple[Any, bool]:
    """Load once more, and whether that took compiling."""
    compiled._modules.clear()
    kernel = compiled.load(SOURCE, folder, warn)
    squares(kernel)
    return kernel, not kernel.cache_hits


def files(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.rglob(pattern))


def test_compiled_once_then_read(tmp_path: Path) -> None:
    kernel = compiled.load(SOURCE, tmp_path / "numba", fail)
    squares(kernel)
    assert compiled.load(SOURCE, tmp_path / "numba", fail) is kernel
    assert [p.read_text() for p in files(tmp_path, "kernel.py")] == [SOURCE]
    assert reload(tmp_path / "numba")[1] is False


def test_other_processes_read_what_was_compiled(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from fcdense.kernels.numba import compiled\n"
        "start = time.perf_counter(); kernel = compiled.load(sys.argv[1], Path(sys.argv[2]), print)\n"
        "print('read' if kernel.cache_hits else 'compiled')"
    )
    command = [sys.executable, "-c", f"import fcdense; {code}", SOURCE, str(tmp_path)]
    answers = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert answers == ["compiled\n", "read\n"]


def test_reading_is_fast(tmp_path: Path) -> None:
    """Best of several: about 3 ms, where compiling takes 100."""
    reload(tmp_path)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        assert reload(tmp_path)[1] is False
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.03


@pytest.mark.parametrize("pattern", ["*.nbi", "*.nbc"])
@pytest.mark.parametrize("damage", ["cut short", "emptied", "altered", "removed"])
def test_damaged_machine_code_is_replaced(tmp_path: Path, pattern: str, damage: str) -> None:
    reload(tmp_path)
    (path,) = files(tmp_path, pattern)
    content = path.read_bytes()
    if damage == "removed":
        path.unlink()
    elif damage == "altered":
        path.write_bytes(content[:-9] + bytes(b ^ 1 for b in content[-9:]))
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut short" else b"")
    assert reload(tmp_path)[1] is True
    assert reload(tmp_path)[1] is False


@pytest.mark.parametrize("name", ["kernel.py", "checksums.txt"])
@pytest.mark.parametrize("content", [b"", b"raise SystemExit", b"\xff\xfe"])
def test_damaged_text_is_replaced(tmp_path: Path, name: str, content: bytes) -> None:
    reload(tmp_path)
    (path,) = files(tmp_path, name)
    path.write_bytes(content)
    reload(tmp_path)
    assert path.read_bytes() != content
    assert reload(tmp_path)[1] is False


def test_a_change_of_the_functions_called_is_a_new_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reload(tmp_path)
    monkeypatch.setattr(compiled, "_version", lambda: "another")
    assert reload(tmp_path)[1] is True
    assert len(files(tmp_path, "kernel.py")) == 2


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    messages: list[str] = []
    squares(compiled.load(SOURCE, tmp_path / "file" / "numba", messages.append))
    squares(compiled.load(SOURCE + "\n", tmp_path / "file" / "numba", messages.append))
    assert len(messages) == 1
    assert "FCDENSE_CACHE" in messages[0]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    messages: list[str] = []
    squares(compiled.load(SOURCE, tmp_path / "numba", messages.append))
    assert len(messages) == 1
