"""The same seed gives the same bits: twice, in a fresh process, after other work, in pieces; another seed does not."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fcdense as fc

ROOT = Path(__file__).resolve().parent.parent
EPOCHS = 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(90, 11)).astype(np.float32)
Y = RNG.integers(0, 3, 90)


def trainer(weights: int = 1, seed: int = 2, **options: Any) -> fc.Trainer:
    """Everything that draws numbers or keeps statistics."""
    fc.manual_seed(weights)
    model = fc.nn.Sequential(
        fc.nn.Dense(33, "gelu", kernel_regularizer="l2"),
        fc.nn.BatchNorm(),
        fc.nn.Dropout(0.3),
        fc.nn.SpectralNorm(fc.nn.Dense(17, kernel_initializer="orthogonal")),
        fc.nn.LayerNorm(),
        fc.nn.Dense(3, kernel_initializer="truncated_normal"),
    )
    return fc.Trainer(model, "cross_entropy", "adamw", metrics=["accuracy"], seed=seed, clip_norm=1.0, **options)


def fit(made: fc.Trainer, epochs: int = EPOCHS, **options: Any) -> fc.Trainer:
    made.fit(X, Y, **{"epochs": epochs, "batch_size": 16, "validation_split": 0.2, "verbose": False} | options)
    return made


def digest(made: fc.Trainer) -> str:
    """Of parameters, statistics, the optimizer's slots, every number of the history, and predictions."""
    found = hashlib.sha256()
    for name, array in made.model.state_dict().items():
        found.update(name.encode() + array.tobytes())
    for name, entry in made.optimizer.state_dict()["parameters"].items():
        found.update(
            name.encode() + repr(entry["steps"]).encode() + entry["mean"].tobytes() + entry["square"].tobytes()
        )
    for name in made.history.names:
        found.update(repr((name, made.history[name])).encode())
    found.update(made.predict(X).tobytes())
    return found.hexdigest()


@pytest.fixture(scope="module")
def expected() -> str:
    return digest(fit(trainer()))


def test_twice_in_one_process(expected):
    assert digest(fit(trainer())) == expected


def test_a_run_of_the_plain_loop_twice():
    def run() -> bytes:
        made = trainer()
        for step in range(30):
            rows = np.random.default_rng(step).permutation(90)[:16]
            made.optimizer.zero_grad()
            fc.losses.cross_entropy(made.model(X[rows]), Y[rows]).backward()
            made.optimizer.step()
        return b"".join(array.tobytes() for array in made.model.state_dict().values())

    assert run() == run()


def in_a_process(code: str, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FCDENSE_")}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=kept | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


RUN = "from tests import test_reproducibility as t; print(t.digest(t.fit(t.trainer())))"


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_in_a_fresh_process(expected, hash_seed):
    """Other addresses, other hashes of strings, nothing compiled or allocated yet."""
    assert in_a_process(RUN, PYTHONHASHSEED=hash_seed) == expected


@pytest.mark.parametrize(
    "other",
    [
        lambda: fit(trainer(weights=9)),
        lambda: fit(trainer(seed=9)),
        lambda: fit(trainer(), shuffle=False),
        lambda: fit(trainer(), validation_split=0.3),
    ],
    ids=["weights and dropout", "order and split", "order", "split"],
)
def test_another_seed_gives_other_bits(expected, other):
    assert digest(other()) != expected


@pytest.mark.parametrize(("name", "draw"), [
    ("weights", lambda seed: trainer(weights=seed).model.eval()(X).numpy()),
    ("dropout", lambda seed: (fc.manual_seed(seed), fc.nn.Dropout(0.5)(fc.tensor(X)).numpy())[1]),
    ("order", lambda seed: fc.data.Batches(X, Y, seed=seed).order(0)),
    ("order of another epoch", lambda seed: fc.data.Batches(X, Y, seed=1).order(seed)),
    ("split", lambda seed: fc.data.validation_split(X, Y, 0.2, seed=seed)[1].x),
])  # fmt: skip
def test_each_stream_follows_its_seed(name, draw):
    assert np.array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2)), name


def test_every_step_drops_others():
    fc.manual_seed(0)
    layer, ones = fc.nn.Dropout(0.5), fc.tensor(np.ones(100, np.float32))
    masks = [layer(ones).numpy().tobytes() for _ in range(5)]
    assert len(set(masks)) == 5


# ---- what must not matter --------------------------------------------------------------------------------------------


def test_in_pieces(expected):
    made = trainer()
    for _ in range(EPOCHS):
        fit(made, epochs=1)
    assert digest(made) == expected


def test_looking_on_changes_nothing(expected):
    """Evaluations, predictions and summaries in between draw nothing and move no statistics."""
    made = trainer()

    class Look(fc.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
            made.evaluate(X, Y, batch_size=7)
            made.predict(X[:5])
            made.model.summary((11,))
            made.model.state_dict()
            made.optimizer.state_dict()

    assert digest(fit(made, callbacks=[Look()])) == expected


def test_numpys_own_random_numbers_are_another_matter(expected):
    np.random.seed(5)
    state = np.random.get_state()[1].copy()
    assert digest(fit(trainer())) == expected
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_nothing_is_read_that_was_not_written(expected, monkeypatch):
    """Every array that was asked for without contents holds NaN."""
    real = np.empty

    def poisoned(*args: Any, **options: Any) -> np.ndarray:
        array = real(*args, **options)
        if array.flags.c_contiguous and array.dtype != object:
            array.reshape(-1).view(np.uint8)[...] = 0xFF
        return array

    in_thread: list[str] = []
    monkeypatch.setattr(np, "empty", poisoned)
    run_in_thread(lambda: in_thread.append(digest(fit(trainer()))))
    assert in_thread == [expected]


def test_a_thread_with_nothing_allocated_yet(expected):
    found: list[str] = []
    run_in_thread(lambda: found.append(digest(fit(trainer()))))
    assert found == [expected]


def run_in_thread(function: Callable[[], Any]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_each_device_repeats_itself(device, expected):
    with fc.use_device(device):
        first, second = digest(fit(trainer())), digest(fit(trainer()))
    assert first == second
    assert (first == expected) == (device == "cpu")


# ---- the environment -------------------------------------------------------------------------------------------------

WHERE = """
import fcdense as fc
print(fc.current_device(), fc.tensor([1.0]).device, fc.nn.Dense(2, in_features=2).kernel.device)
"""


@pytest.mark.parametrize(("name", "device"), [("reference", "reference"), ("cpu", "cpu")])
def test_the_environment_names_the_device(name, device):
    assert in_a_process(WHERE, FCDENSE_DEVICE=name) == " ".join([device] * 3)


def test_the_environment_is_read_when_it_is_needed(monkeypatch):
    monkeypatch.setenv("FCDENSE_DEVICE", "reference")
    assert fc.tensor([1.0]).device == fc.device("reference")
    with fc.use_device("cpu"):
        assert fc.tensor([1.0]).device == fc.device("cpu")
    assert fc.tensor([1.0], device="cpu").device == fc.device("cpu")
    monkeypatch.setenv("FCDENSE_DEVICE", "")
    assert fc.current_device() == fc.device("auto")


def test_a_device_in_the_environment_that_is_none(monkeypatch):
    monkeypatch.setenv("FCDENSE_DEVICE", "gpu")
    with pytest.raises(fc.errors.DeviceError, match=r"Unknown device 'gpu'.*environment variable FCDENSE_DEVICE"):
        fc.nn.Dense(3)
    assert fc.tensor([1.0], device="cpu").item() == 1.0


def test_training_on_the_device_of_the_environment():
    assert in_a_process(RUN, FCDENSE_DEVICE="reference") == in_a_process(
        RUN, FCDENSE_DEVICE="reference", PYTHONHASHSEED="7"
    )
