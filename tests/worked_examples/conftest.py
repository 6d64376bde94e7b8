"""Scripts of `examples/`, run as a person runs them: in a process of their own, in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import fcdense as fc

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
Run = Callable[[str], str]


@pytest.fixture(autouse=True)
def _same_weights_every_time() -> None:
    fc.manual_seed(0)


@pytest.fixture
def run_example(tmp_path: Path) -> Run:
    """A function: name of a script -> what it printed. Warnings are errors, and no file may be left behind."""

    def run(name: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(Path(fc.__file__).parents[1])}
        command = [sys.executable, "-W", "error", str(EXAMPLES / name)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert list(tmp_path.iterdir()) == []
        return done.stdout

    return run
