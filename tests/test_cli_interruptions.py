"""The command line that is broken off: Ctrl-C, and a reader who has read enough."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fcdense as fc
from fcdense import cli

pytestmark = pytest.mark.usefixtures("empty_folder")
ROOT = Path(__file__).resolve().parent.parent


def process(*arguments: str, **options) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "fcdense", *arguments], env=environment, text=True, stderr=subprocess.PIPE, **options
    )


def test_ctrl_c_saves_the_model_as_it_is_then():
    with process("train", "digits", "--epochs", "100000", stdout=subprocess.PIPE) as running:
        assert running.stderr is not None
        running.stderr.readline()
        running.send_signal(signal.SIGINT)
        rest = running.stderr.read().splitlines()
    assert running.returncode == 130
    assert all(line.startswith("epoch ") for line in rest[:-1])
    said = "fcdense train: interrupted in epoch {} of 100000. Model: runs/digits.safetensors"
    assert rest[-1] in [said.format(len(rest) + k) for k in (1, 2)]  # 2 if it came before the line of a whole epoch
    assert os.listdir("runs") == ["digits.safetensors"]
    digits = fc.data.digits()
    outputs = fc.load("runs/digits.safetensors")(digits.x).numpy()
    assert np.mean(outputs.argmax(axis=1) == digits.y) > 0.5


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_regression_that_is_interrupted_speaks_in_the_units_of_its_target(epoch, capsys, monkeypatch):
    x = np.random.default_rng(0).normal(size=(64, 2))
    np.savetxt("t.csv", np.column_stack([x, 1e4 + x[:, 0]]), delimiter=",")
    original = fc.Trainer._measure

    def interrupted(trainer, *arguments):
        if len(trainer.history) == epoch - 1:
            raise KeyboardInterrupt
        return original(trainer, *arguments)

    monkeypatch.setattr(fc.Trainer, "_measure", interrupted)
    assert cli.main(["train", "t.csv", "--epochs", "2"]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"fcdense train: interrupted in epoch {epoch} of 2. Model: runs/t.safetensors"
    np.testing.assert_allclose(fc.load("runs/t.safetensors")(x[:5].astype(np.float32)).numpy(), 1e4, atol=10)


def test_ctrl_c_before_the_first_step_saves_nothing(capsys, monkeypatch):
    Path("m.safetensors").write_bytes(b"an older model")

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(fc.Trainer, "_forward", interrupted)
    assert cli.main(["train", "digits", "--out", "m.safetensors"]) == 130
    assert capsys.readouterr().err == "fcdense train: interrupted\n"
    assert Path("m.safetensors").read_bytes() == b"an older model"


def test_a_reader_may_stop_early():
    fc.save("m.safetensors", fc.nn.Sequential(fc.nn.Dense(9, in_features=64)))
    with process("predict", "m.safetensors", "digits", stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline().startswith("prediction_0,")
        running.stdout.close()
        assert running.stderr is not None
        assert running.stderr.read() == ""
    assert running.returncode == 0
