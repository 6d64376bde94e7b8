"""How the compiled kernels come: with the first primitive, and whole."""

from __future__ import annotations

import signal
import threading
import time
from types import ModuleType

import pytest

from fcdense.backends import native


def test_ctrl_c_waits_until_an_import_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    def slowly(name: str) -> ModuleType:
        time.sleep(0.2)  # it is waited for by now
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        time.sleep(0.2)
        done.append(name)
        return ModuleType(name)

    monkeypatch.setattr(native, "import_module", slowly)
    with pytest.raises(KeyboardInterrupt):
        native._kernels.__wrapped__()
    assert done == ["fcdense.backends.table"]


def test_an_import_that_fails_leaves_numpy(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fails(name: str) -> ModuleType:
        raise ImportError("Numba needs NumPy 1.26 or less")

    monkeypatch.setattr(native, "import_module", fails)
    assert native._kernels.__wrapped__() is None
    assert "the CPU computes with NumPy alone, since Numba cannot be imported: Numba needs" in caplog.text
