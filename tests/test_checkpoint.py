"""Saved models: the same bits come back; whatever else a file holds is refused; a failed write leaves the old file."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

import fcdense as fc
from fcdense import checkpoint
from fcdense.errors import ArgumentError, GraphError

ROOT = Path(__file__).resolve().parent.parent
X = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)

nn = fc.nn
PLAIN = [kind for kind in nn.LAYERS.values() if not kind.arguments]
EXAMPLES = {
    **{kind.__name__: [kind()] for kind in PLAIN},
    "Activation": [nn.Activation("gelu"), nn.Activation("softmax")],
    "LeakyReLU": [nn.LeakyReLU(0.2)],
    "ELU": [nn.ELU(0.5)],
    "CELU": [nn.CELU(0.5)],
    "GELU": [nn.GELU(approximate="tanh"), nn.GELU()],
    "Softmax": [nn.Softmax()],
    "LogSoftmax": [nn.LogSoftmax(axis=0)],
    "Dense": [
        nn.Dense(4, "silu", kernel_initializer="he_normal", kernel_regularizer="l2", kernel_constraint="non_neg"),
        nn.Dense(4, lambda x: x / (1 + abs(x)), use_bias=False, bias_initializer=0.5, in_features=4),
        nn.Dense(3, "log_softmax", dtype="float64", bias_regularizer=fc.regularizers.l1(0.5)),
        nn.Dense(3, dtype="float16"),
    ],
    "Dropout": [nn.Dropout(0.5)],
    "Flatten": [nn.Flatten()],
    "LayerNorm": [nn.LayerNorm(eps=1e-3), nn.LayerNorm(use_scale=False, use_bias=False)],
    "BatchNorm": [nn.BatchNorm(momentum=0.5), nn.BatchNorm(use_scale=False, use_bias=False)],
    "Sequential": [nn.Sequential(nn.Dense(4), nn.Sequential(nn.Dense(2), nn.ReLU())), nn.Sequential()],
    "SpectralNorm": [nn.SpectralNorm(nn.Dense(3, "tanh"), n_iterations=2)],
}


def model(*layers: fc.nn.Module) -> fc.nn.Module:
    """Built, with values of no particular form, and in evaluation mode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fc.errors.DTypeWarning)
        found = nn.Sequential(*(layers or (nn.Dense(4, "relu"), nn.BatchNorm(), nn.Dense(3))))
        found(X)
    generator = np.random.default_rng(1)
    found.load_state_dict(
        {
            name: generator.uniform(0.5, 1.5, array.shape).astype(array.dtype)
            for name, array in found.state_dict().items()
        }
    )
    return found.eval()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return fc.save(tmp_path / "model.safetensors", model(), {"names": ["a", "b"]})


# ---- the same bits ---------------------------------------------------------------------------------------------------


def test_every_layer_has_an_example():
    assert EXAMPLES.keys() == nn.LAYERS.keys()


@pytest.mark.filterwarnings("ignore::fcdense.errors.DTypeWarning")
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_loaded_model_predicts_the_same_bits(name, tmp_path):
    before = model(*EXAMPLES[name])
    after = fc.load(fc.save(tmp_path / "m", before))
    assert repr(after) == repr(before)
    assert after(X).numpy().tobytes() == before(X).numpy().tobytes()
    state, again = before.state_dict(), after.state_dict()
    assert [(k, v.dtype, v.tobytes()) for k, v in state.items()] == [
        (k, v.dtype, v.tobytes()) for k, v in again.items()
    ]
    assert nn.to_data(after) == nn.to_data(before)
    assert not any(module.training for module in after.modules())


def test_a_shared_layer_is_still_one_layer(tmp_path):
    shared = nn.Dense(6, "tanh")
    after = fc.load(fc.save(tmp_path / "m", model(shared, nn.ReLU(), shared)))
    assert after[0] is after[2]
    assert len(list(after.parameters())) == 2


def test_a_loaded_model_can_be_trained(saved):
    trained = fc.load(saved)
    trainer = fc.Trainer(trained, "mse")
    history = trainer.fit(X, np.ones((5, 3), np.float32), epochs=20, verbose=False)
    assert history["loss"][-1] < history["loss"][0]


def test_ones_own_activation_loads_without_its_code(tmp_path):
    def swoosh(x):
        return np.where(x > 0, x, 0.25 * x) * fc.math.sigmoid(1.5 * x)

    layer = nn.Dense(4, swoosh, in_features=6)
    before = nn.Sequential(layer, nn.Activation(swoosh))
    path = fc.save(tmp_path / "m", before)
    np.save(tmp_path / "x.npy", X)
    code = """
        import sys
        import numpy as np
        import fcdense as fc
        model = fc.load("m")
        np.save("y.npy", model(np.load("x.npy")).numpy())
        loss = (model(np.load("x.npy")) ** 2).sum()
        loss.backward()
        np.save("g.npy", model[0].kernel.grad.numpy())
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, env=environment, check=True)
    assert np.load(tmp_path / "y.npy").tobytes() == before(X).numpy().tobytes()
    (before(X) ** 2).sum().backward()
    assert np.load(tmp_path / "g.npy").tobytes() == layer.kernel.grad.numpy().tobytes()
    assert path == tmp_path / "m"


def test_extra_data_comes_back(tmp_path):
    extra = {"names": ["ä", "b"], "scale": [0.1, 1e-300], "deep": {"a": None, "b": True}}
    found = checkpoint.read(fc.save(tmp_path / "m", model(), extra))
    assert found.extra == extra
    assert checkpoint.read(fc.save(tmp_path / "m", model())).extra == {}
    assert isinstance(found.model, nn.Sequential)


def test_the_same_model_gives_the_same_bytes(tmp_path):
    contents = {fc.save(tmp_path / f"{i}", model(), {"b": 1, "a": 2}).read_bytes() for i in range(20)}
    assert len(contents) == 1


def test_other_readers_of_safetensors_can_open_it(saved):
    from safetensors.numpy import load_file

    arrays = load_file(saved)
    assert arrays["layers.0.kernel"].shape == (6, 4)
    np.testing.assert_array_equal(arrays["layers.2.bias"], model().state_dict()["layers.2.bias"])


# ---- what cannot be saved --------------------------------------------------------------------------------------------


class Own(fc.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Dense(2, in_features=6)

    def forward(self, x):
        return self.dense(x)


@pytest.mark.parametrize(
    ("make", "extra", "error", "message"),
    [
        (Own, None, ArgumentError, r"Own is a class of your own.*state_dict\(\).*load_state_dict"),
        (lambda: model(Own()), None, ArgumentError, "Own is a class of your own"),
        (lambda: model(nn.Dense(2, kernel_regularizer=lambda w: w.sum())), None, ArgumentError, "code, not data"),
        (lambda: nn.Sequential(nn.Dense(2)), None, GraphError, "Call the model once"),
        (lambda: "m.safetensors", None, ArgumentError, r"expected an nn.Module: fc.save\(path, model\)"),
        (model, {"f": print}, ArgumentError, "JSON"),
        (model, {"f": float("nan")}, ArgumentError, "JSON"),
        (model, [1], ArgumentError, "expected a dict"),
    ],
)  # fmt: skip
def test_what_cannot_be_saved_is_refused(make, extra, error, message, saved):
    before = saved.read_bytes()
    with pytest.raises(error, match=message):
        fc.save(saved, make(), extra)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_the_cure_for_a_class_of_ones_own_works():
    first, second = Own(), Own()
    second.load_state_dict(first.state_dict())
    assert first(X).numpy().tobytes() == second(X).numpy().tobytes()


# ---- whole or not at all ---------------------------------------------------------------------------------------------


def out_of_space(*arguments, **options):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("place", ["fsync", "replace"])
@pytest.mark.parametrize("error", [out_of_space, KeyboardInterrupt], ids=["full", "Ctrl-C"])
def test_an_interrupted_write_leaves_the_old_file(place, error, saved, monkeypatch):
    def fail(*arguments, **options):
        if isinstance(error, type):
            raise error
        error()

    before = saved.read_bytes()
    monkeypatch.setattr(os, place, fail)
    with pytest.raises((OSError, KeyboardInterrupt)):
        fc.save(saved, model(nn.Dense(9)))
    monkeypatch.undo()
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()
    with monkeypatch.context() as patch, open("/dev/full", "wb", buffering=0) as full:
        patch.setattr(Path, "open", lambda self, mode: full)
        with pytest.raises(OSError, match="No space left"):
            fc.save(saved, model(nn.Dense(9)))
    assert saved.read_bytes() == before


def test_places_that_cannot_be_written(tmp_path, monkeypatch):
    with pytest.raises(IsADirectoryError, match="give the name of a file"):
        fc.save(tmp_path, model())
    with pytest.raises(FileNotFoundError, match="does not exist; make it first"):
        fc.save(tmp_path / "no" / "m", model())
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # who runs as root may write anywhere
    with pytest.raises(PermissionError, match="read-only"):
        fc.save(tmp_path / "m", model())
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_replaced_by_a_file(tmp_path):
    """A device, such as the null device, is refused alike; to try that here could cost the machine its device."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(FileExistsError, match="device or pipe"):
        fc.save(pipe, model())
    assert pipe.is_fifo()
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_folder_that_cannot_be_synced_is_no_failure(tmp_path, monkeypatch):
    original, calls = os.fsync, []

    def fsync(descriptor):
        calls.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
        if calls[-1]:
            raise OSError(22, "Invalid argument")
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    fc.load(fc.save(tmp_path / "m", model()))
    assert calls == [False, True]


def test_a_symbolic_link_is_followed(tmp_path):
    (tmp_path / "data").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "data" / "m")
    for _ in range(2):
        assert fc.save(link, model()) == link
    assert link.is_symlink()
    assert os.listdir(tmp_path / "data") == ["m"]
    fc.load(link)


def test_permissions_are_those_of_the_old_file_or_of_the_process(tmp_path):
    path = tmp_path / "m"
    before = os.umask(0o027)
    try:
        fc.save(path, model())
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o600)
        fc.save(path, model())
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_two_writers_and_a_reader_find_whole_files(saved):
    models = [model(nn.Dense(units), nn.Dense(3)) for units in (3, 400)]
    expected = {m(X).numpy().tobytes() for m in models}
    stop, failures = threading.Event(), []

    def write(which):
        try:
            while not stop.is_set():
                fc.save(saved, which)
        except BaseException as error:
            failures.append(error)

    fc.save(saved, models[0])
    writers = [threading.Thread(target=write, args=(which,)) for which in models]
    for writer in writers:
        writer.start()
    try:
        for _ in range(60):
            assert fc.load(saved)(X).numpy().tobytes() in expected
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert failures == []
    assert os.listdir(saved.parent) == [saved.name]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_process_leaves_a_whole_file(saved):
    code = f"""
        import fcdense as fc
        model = fc.nn.Sequential(fc.nn.Dense(700, in_features=6), fc.nn.Dense(700, in_features=700))
        print("ready", flush=True)
        while True:
            fc.save({str(saved)!r}, model)
    """
    generator = np.random.default_rng(0)
    for _ in range(8):
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(generator.uniform(0.0, 0.1))
        process.kill()
        process.wait()
        process.stdout.close()
        assert fc.load(saved)(X).shape[0] == 5


def test_read_only_files_can_be_copied_and_loaded(saved, tmp_path):
    copy = shutil.copy(saved, tmp_path / "copy")
    os.chmod(copy, 0o400)
    assert fc.load(copy)(X).numpy().tobytes() == model()(X).numpy().tobytes()
