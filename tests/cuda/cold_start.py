"""The first epoch of a usual network where nothing has been done yet: `python -m tests.cuda.cold_start cuda bfloat16`.

It prints the seconds from the first call that asks for the device, after `import fcdense`, to the end of the epoch.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import fcdense as fc

ROOT = Path(__file__).resolve().parents[2]
WIDTHS, BATCH, BATCHES = (784, 512, 512, 10), 256, 4


def first_epoch(device: Any, precision: str, widths: tuple[int, ...] = WIDTHS, batch: int = BATCH) -> float:
    """Seconds of an epoch of four batches with Adam, whose steps are captured."""
    rng = np.random.default_rng(0)
    features, *hidden, classes = widths
    x = rng.normal(size=(BATCHES * batch, features)).astype(np.float32)
    y = rng.integers(0, classes, BATCHES * batch)
    start = time.perf_counter()
    with fc.use_device(device):
        model = fc.nn.Sequential(*(fc.nn.Dense(width, "relu") for width in hidden), fc.nn.Dense(classes))
        trainer = fc.Trainer(model, "cross_entropy", "adam", precision=precision)
        history = trainer.fit(x, y, epochs=1, batch_size=batch, verbose=False)
    seconds = time.perf_counter() - start
    assert not trainer.not_captured, trainer.not_captured
    assert np.isfinite(history["loss"]).all()
    return seconds


def in_a_new_process(device: str, precision: str, folder: Path) -> float:
    """`first_epoch` with nothing kept on disk: what is compiled goes to an empty folder."""
    environment = os.environ | {"FCDENSE_CACHE": str(folder / "fcdense"), "CUPY_CACHE_DIR": str(folder / "cupy")}
    command = [sys.executable, "-m", "tests.cuda.cold_start", device, precision]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


if __name__ == "__main__":
    print(first_epoch(sys.argv[1], sys.argv[2]))
