"""The cache of compiled kernels: written once, read by other processes, never trusted when it is damaged."""

from __future__ import annotations

import ctypes
import io
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba")

from numba import types

from fcdense import loops
from fcdense.kernels import code_cache
from fcdense.kernels.numba import compiled, gemm, pool, rows, spread, sums
from fcdense.program import trace

ROOT = Path(__file__).resolve().parents[2]
FLOAT32 = np.dtype(np.float32)
SOURCE = loops.tile_source(trace(lambda x: x * x, 1, name="square"), FLOAT32, "")
LOGGER = logging.getLogger("fcdense")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where kernels are kept, by a process that has loaded nothing."""
    monkeypatch.setenv("FCDENSE_CACHE", str(tmp_path))
    monkeypatch.setattr(compiled, "_kernels", {})
    monkeypatch.setattr(compiled, "_seconds", 0.0)
    code_cache.warn_of.cache_clear()
    return tmp_path / "numba"


@pytest.fixture
def messages() -> Iterator[io.StringIO]:
    """What is logged at INFO and above."""
    text, level = io.StringIO(), LOGGER.level
    handler = logging.StreamHandler(text)
    LOGGER.setLevel(logging.INFO)
    LOGGER.addHandler(handler)
    yield text
    LOGGER.removeHandler(handler)
    LOGGER.setLevel(level)


def squares(kernel: compiled.Kernel) -> None:
    x = np.array([[3.0, -4.0]], np.float32)
    args = np.zeros(3, np.int64)
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 7)(kernel.address)
    function(args.ctypes.data, x.ctypes.data, 2, 0, 1, 0, 2)
    np.testing.assert_array_equal(x, [[9.0, 16.0]])


def reload(source: str = SOURCE) -> bool:
    """Load once more; whether that took compiling."""
    compiled._kernels.clear()
    kernel = compiled.load(source)
    squares(kernel)
    return kernel.was_compiled


def test_compiled_once_then_read(folder: Path) -> None:
    kernel = compiled.load(SOURCE)
    squares(kernel)
    assert compiled.load(SOURCE) is kernel
    assert len(list(folder.iterdir())) == 1
    assert reload() is False


def test_other_processes_read_what_was_compiled() -> None:
    code = (
        "import sys; from fcdense.kernels.numba import compiled\n"
        "print('compiled' if compiled.load(sys.argv[1]).was_compiled else 'read')"
    )
    command = [sys.executable, "-c", f"import fcdense; {code}", SOURCE]
    answers = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert answers == ["compiled\n", "read\n"]


def test_reading_is_fast() -> None:
    """Best of several: about 1 ms, where compiling takes 100."""
    reload()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        assert reload() is False
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.02


def test_threads_keep_the_same_code_at_the_same_time(
    folder: Path, messages: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those do that compile for two GPUs: each has its own file until it is whole."""
    written, replace = threading.Barrier(2), os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (written.wait(10), replace(*paths)))
    path = folder / "kernel.cubin"
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(code_cache.keep, [path] * 2, [b"code"] * 2))
    assert code_cache.read(path) == b"code"
    assert list(folder.iterdir()) == [path]
    assert not messages.getvalue()


@pytest.mark.parametrize("damage", ["cut short", "emptied", "altered", "removed", "only the checksum"])
def test_damaged_machine_code_is_replaced(folder: Path, damage: str) -> None:
    reload()
    (path,) = folder.iterdir()
    content = path.read_bytes()
    if damage == "removed":
        path.unlink()
    elif damage == "altered":
        path.write_bytes(content[:99] + bytes([content[99] ^ 1]) + content[100:])
    else:
        path.write_bytes({"cut short": content[:-9], "emptied": b""}.get(damage, content[-code_cache.DIGEST :]))
    assert reload() is True
    assert reload() is False


def test_a_kernel_under_the_name_of_another_one_is_replaced(folder: Path) -> None:
    other = loops.tile_source(trace(lambda x: x + x, 1, name="double"), FLOAT32, "")
    reload()
    compiled.load(other)
    first, second = folder.iterdir()
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    assert reload() is True


def test_without_a_compiler_numpy_computes() -> None:
    code = "import numpy as np, fcdense as fc; print((fc.tensor(np.ones(3)) * 2.0).numpy().sum())"
    env = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "6.0\n"
    assert "NUMBA_DISABLE_JIT" in done.stderr


def test_a_change_of_the_functions_called_is_a_new_kernel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reload()
    monkeypatch.setattr(compiled, "_version", lambda: "another")
    assert reload() is True
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize(
    ("module", "name", "dtype"),
    [
        *((gemm, "gemm", FLOAT32), (spread, "spread", FLOAT32), (spread, "rows", FLOAT32), (sums, "finish", FLOAT32)),
        *((rows, "softmax_xent", FLOAT32), (rows, "dropout", FLOAT32), (pool, "run", None)),
    ],
)
def test_machine_code_needs_nothing_of_python(module: object, name: str, dtype: object) -> None:
    """A process that only reads kernels may not have what Numba's compiler would have made known to the linker."""
    source = compiled.call_source(module.__name__, name, dtype)
    functions = compiled.library_of(source, f"alone_{name}")._final_module.functions
    needed = {f.name for f in functions if f.is_declaration and not f.name.startswith("llvm.")}
    assert all(name.startswith(("pthread_", "sched_")) for name in needed)


def test_a_literal_argument_compiles_nothing_anew() -> None:
    @compiled.jitted()
    def twice(x: int) -> int:
        return 2 * x

    for arguments in ((types.int64,), (types.literal(1),), (types.literal(2),)):
        twice.get_call_template(arguments, {})
    assert len(twice.overloads) == 1


def test_a_folder_that_cannot_be_made(tmp_path: Path, messages: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FCDENSE_CACHE", str(tmp_path / "file"))
    assert reload() is True
    assert reload(SOURCE + "\n") is True
    assert messages.getvalue().count("FCDENSE_CACHE") == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to(tmp_path: Path, messages: io.StringIO) -> None:
    tmp_path.chmod(0o500)
    assert reload() is True
    assert "FCDENSE_CACHE" in messages.getvalue()


def test_who_waits_is_told_once_what_for(
    folder: Path, messages: io.StringIO, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reload()
    assert messages.getvalue() == ""
    monkeypatch.setattr(compiled, "_seconds", compiled.PATIENCE + 1)
    reload()
    assert messages.getvalue() == ""  # what is read does not take long
    for blank in range(1, 3):
        reload(SOURCE + "\n" * blank)
    text = f"compiling kernels for this processor, once; they are kept in {folder}\n"
    assert messages.getvalue() == text
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_shows_it_where_nobody_reads_the_log(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_terminal: bool
) -> None:
    monkeypatch.setattr(compiled, "_seconds", compiled.PATIENCE + 1)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    reload()
    text = f"fcdense: compiling kernels for this processor, once; they are kept in {folder}\n"
    assert capsys.readouterr().err == (text if is_terminal else "")
