"""The command line: from training to prediction, and one line for each error."""

from __future__ import annotations

import csv
import importlib.util
import io
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import fcdense as fc
from fcdense import checkpoint, cli

pytestmark = pytest.mark.usefixtures("empty_folder")
HAS_PLOT = importlib.util.find_spec("matplotlib") is not None
FLOWERS = ["long", "round", "wide"]


@pytest.fixture
def run(capsys):
    """Run the command: exit code, standard output, standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            code = cli.main(arguments)
        except SystemExit as exit_:
            code = exit_.code
        return code, *capsys.readouterr()

    return call


def write_csv(path: str, header: list[str] | None, rows, delimiter: str = ",") -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([*([header] if header else []), *rows])


def flowers(n: int = 150) -> tuple[np.ndarray, list[str]]:
    """Three groups that features of very different sizes tell apart."""
    generator = np.random.default_rng(0)
    k = generator.integers(0, 3, n)
    x = np.stack([k + generator.normal(0, 0.2, n), 1e5 + 4e3 * (k == 1) + generator.normal(0, 500, n)], axis=1)
    return np.round(x, 4), [FLOWERS[i] for i in k]


def contents() -> dict[str, bytes]:
    """The names in the folder, and what its files hold; compiled kernels aside."""
    paths = (path for path in Path().iterdir() if path.name != "cache")
    return {path.name: path.read_bytes() if path.is_file() else b"" for path in paths}


def predictions(text: str) -> list[list[str]]:
    header, *rows = csv.reader(io.StringIO(text))
    assert header[0].startswith("prediction")
    return rows


# ---- info ------------------------------------------------------------------------------------------------------------


def test_info_names_versions_devices_and_probes(run):
    code, out, err = run("info")
    facts = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in out.splitlines())
    assert (code, err) == (0, "")
    assert facts["fcdense"] == fc.__version__
    assert facts["NumPy"] == np.__version__
    assert "threads" in facts["BLAS"]
    assert "matplotlib" in facts["optional"]
    assert facts["devices"] == f"{', '.join(fc.available_devices())}; used now: {fc.device('auto')}"
    assert any(name.startswith("cuda: driver") for name in facts)


def test_info_check_trains(run, monkeypatch):
    code, out, _ = run("info", "--check")
    assert (code, out.splitlines()[-1].split()[:2]) == (0, ["check", "passed:"])
    monkeypatch.setattr(fc.Trainer, "fit", lambda *args, **options: {"loss": [1.0, 0.5]})
    code, out, _ = run("info", "--check")
    assert (code, out.splitlines()[-1]) == (1, "check           FAILED: the loss went from 1.0000 to 0.5000")


def test_version_and_help(run):
    assert run("--version") == (0, f"fcdense {fc.__version__}\n", "")
    for command in ("info", "train", "predict"):
        code, out, _ = run(command, "--help")
        assert (code, out.split()[:3]) == (0, ["usage:", "fcdense", command])


def test_bench_is_handed_on(run):
    code, out, _ = run("bench", "--help")
    assert code == 0
    assert out.startswith("usage: fcdense bench")


# ---- train and predict -----------------------------------------------------------------------------------------------


def test_digits_from_training_to_prediction(run):
    code, out, err = run("train", "digits", "--epochs", "6")
    assert code == 0
    assert len(err.splitlines()) == 6
    accuracy = re.search(r"accuracy\W+(\d\.\d+)\W+(\d\.\d+)", out)
    assert accuracy is not None
    assert float(accuracy[2]) > 0.93
    assert "Model: runs/digits.safetensors" in out
    assert sorted(os.listdir("runs")) == (["digits.png"] if HAS_PLOT else []) + ["digits.safetensors"]
    code, out, err = run("predict", "runs/digits.safetensors", "digits")
    assert code == 0
    found = np.array([int(row[0]) for row in predictions(out)])
    digits = fc.data.digits()
    agreement = np.mean(found == digits.y)
    assert agreement > 0.93
    assert err == f"accuracy {agreement:.4f} over 1797 rows\n"
    np.testing.assert_array_equal(fc.load("runs/digits.safetensors")(digits.x).numpy().argmax(axis=1), found)


def test_without_matplotlib_there_is_no_picture(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, _ = run("train", "digits", "--epochs", "1", "--layers", "", "--out", "m.safetensors")
    assert code == 0
    assert "pip install 'fcdense[plot]'" in out
    assert os.listdir() == ["m.safetensors"]


def test_the_same_seed_gives_the_same_file(run):
    for name in ("a", "b", "c"):
        seed = "1" if name == "c" else "0"
        run("train", "digits", "--epochs", "1", "--dropout", "0.3", "--seed", seed, "--out", f"{name}.safetensors")
    contents = [Path(f"{name}.safetensors").read_bytes() for name in ("a", "b", "c")]
    assert contents[0] == contents[1] != contents[2]


def test_a_table_with_class_names(run):
    x, y = flowers()
    write_csv("flowers.csv", ["length", "weight", "kind"], [[*row, kind] for row, kind in zip(x, y, strict=True)])
    write_csv("new.csv", ["length", "weight"], x.tolist())
    options = ["--layers", "16", "--activation", "silu", "--optimizer", "adamw", "--learning-rate", "0.02"]
    assert run("train", "flowers.csv", *options)[0] == 0
    code, out, err = run("predict", "runs/flowers.safetensors", "new.csv")
    assert (code, err) == (0, "")
    found = [row[0] for row in predictions(out)]
    assert np.mean(np.array(found) == np.array(y)) > 0.97
    model, extra = checkpoint.read("runs/flowers.safetensors")
    assert extra["class_names"] == FLOWERS
    assert extra["feature_names"] == ["length", "weight"]
    scaler = fc.data.Standardizer.from_data(extra["standardizer"])
    by_hand = model(scaler.transform(x.astype(np.float32))).numpy().argmax(axis=1)
    assert found == [FLOWERS[k] for k in by_hand]
    code, out, err = run("predict", "runs/flowers.safetensors", "flowers.csv", "--target", "kind", "--out", "p.csv")
    assert (code, out) == (0, "")
    assert re.fullmatch(r"accuracy (0\.9[7-9]|1\.0)\d+ over 150 rows\n", err)
    assert [row[0] for row in predictions(Path("p.csv").read_text())] == found


def test_columns_in_another_order_are_refused(run):
    x, y = flowers()
    write_csv("flowers.csv", ["length", "weight", "kind"], [[*row, kind] for row, kind in zip(x, y, strict=True)])
    write_csv("new.csv", ["weight", "length"], x[:, ::-1].tolist())
    assert run("train", "flowers.csv", "--epochs", "1")[0] == 0
    code, out, err = run("predict", "runs/flowers.safetensors", "new.csv")
    assert (code, out) == (2, "")
    assert "the model was trained on ['length', 'weight'], in this order." in err


def test_a_regression_speaks_in_the_units_of_its_target(run):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(300, 3)) * [1, 1e4, 1e-3] + [0, 5e5, 0]
    price = 250_000 + 40_000 * x[:, 0] + 3 * (x[:, 1] - 5e5) + 10.5
    write_csv("houses.csv", ["a", "b", "c", "price"], np.column_stack([x, price]).tolist())
    write_csv("new.csv", ["a", "b", "c"], x[:20].tolist())
    arguments = ["--target", "price", "--task", "regression", "--layers", "32", "--learning-rate", "0.02"]
    code, out, _ = run("train", "houses.csv", *arguments)
    assert code == 0
    rmse = re.search(r"rmse\W+([\d.]+)\W+([\d.]+)", out)
    r2 = re.search(r"r2\W+([\d.]+)\W+([\d.]+)", out)
    assert rmse is not None
    assert r2 is not None
    assert float(r2[2]) > 0.95
    assert float(rmse[2]) == pytest.approx(np.sqrt(1 - float(r2[2])) * price.std(), rel=0.5)
    code, out, _ = run("predict", "runs/houses.safetensors", "new.csv")
    found = np.array([float(row[0]) for row in predictions(out)])
    assert np.abs(found - price[:20]).mean() < 0.2 * price.std()
    code, _, err = run("predict", "runs/houses.safetensors", "houses.csv", "--target", "3")
    assert code == 0
    assert re.match(r"rmse [\d.]+ over 300 rows\nr2 0\.9\d+ over 300 rows\n$", err)


def test_an_archive_of_images(run):
    generator = np.random.default_rng(0)
    y = generator.integers(0, 2, 80)
    np.savez("images.npz", x=generator.normal(size=(80, 3, 4)).astype(np.float32) + y[:, None, None], y=y)
    assert run("train", "images.npz", "--test-size", "0.25", "--batch-size", "16")[0] == 0
    code, out, err = run("predict", "runs/images.safetensors", "images.npz")
    assert (code, len(predictions(out))) == (0, 80)
    assert float(err.split()[1]) > 0.9


def test_several_targets_have_a_column_each(run):
    x = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    np.savez("pairs.npz", x=x, y=x @ np.array([[1, 2], [3, 4]], np.float32))
    assert run("train", "pairs.npz", "--layers", "", "--epochs", "1")[0] == 0
    out = run("predict", "runs/pairs.safetensors", "pairs.npz")[1]
    assert out.splitlines()[0] == "prediction_0,prediction_1"


def test_tables_without_a_header_and_with_semicolons(run):
    x, y = flowers()
    write_csv("f.csv", None, [[kind, *row] for row, kind in zip(x, y, strict=True)], ";")
    write_csv("new.csv", None, x.tolist(), ";")
    assert run("train", "f.csv", "--target", "0", "--delimiter", ";", "--learning-rate", "0.02")[0] == 0
    code, out, err = run("predict", "runs/f.safetensors", "new.csv", "--delimiter", ";")
    assert (code, err) == (0, "")
    assert np.mean(np.array([row[0] for row in predictions(out)]) == np.array(y)) > 0.97


def test_a_model_saved_from_python_predicts_too(run):
    model = fc.nn.Sequential(fc.nn.Dense(2, in_features=64))
    fc.save("plain.safetensors", model)
    code, out, err = run("predict", "plain.safetensors", "digits")
    assert (code, err) == (0, "")
    found = np.array(predictions(out), dtype=np.float32)
    np.testing.assert_array_equal(found, fc.Trainer(model).predict(fc.data.digits().x))


# ---- errors ----------------------------------------------------------------------------------------------------------

BAD = {
    "no command": ([], "arguments are required: COMMAND"),
    "unknown command": (["trian", "digits"], "invalid choice: 'trian'"),
    "no data": (["train"], "arguments are required: data"),
    "unknown data": (["train", "minst"], "Unknown data .* 'minst'. Did you mean 'mnist'"),
    "missing data set": (["train", "mnist"], "FCDENSE_CACHE"),
    "missing csv": (["train", "missing.csv"], "No such file or directory: 'missing.csv'"),
    "missing npz": (["train", "missing.npz"], "No such file or directory: 'missing.npz'"),
    "epochs 0": (["train", "digits", "--epochs", "0"], "--epochs: expected a positive integer, given '0'"),
    "epochs x": (["train", "digits", "--epochs", "ten"], "--epochs: expected a positive integer, given 'ten'"),
    "batch size": (["train", "digits", "--batch-size", "-3"], "--batch-size"),
    "layers": (["train", "digits", "--layers", "12,x"], "--layers: expected units separated by commas"),
    "layers 0": (["train", "digits", "--layers", "12,0"], "--layers: expected units separated by commas"),
    "activation": (["train", "digits", "--activation", "relo"], "Unknown activation 'relo'. Did you mean 'relu'"),
    "optimizer": (["train", "digits", "--optimizer", "adma"], "Unknown optimizer 'adma'. Did you mean 'adam"),
    "learning rate": (["train", "digits", "--learning-rate", "-1"], "-1.0"),
    "dropout": (["train", "digits", "--dropout", "1.5"], "1.5"),
    "test size": (["train", "digits", "--test-size", "1"], "test_size is 1.0"),
    "rows of a class": (["train", "rare.csv", "--task", "classification"], r"\(--test-size\).*sion' \(--task\)"),
    "seed": (["train", "digits", "--seed", "-1"], "seed is -1"),
    "task": (["train", "digits", "--task", "ranking"], "--task: invalid choice: 'ranking'"),
    "other task": (["train", "digits", "--task", "regression"], "--task is regression, but the targets of 'digits'"),
    "target of digits": (["train", "digits", "--target", "y"], "--target names a column of a CSV file"),
    "unknown target": (["train", "table.csv", "--target", "lable"], "Did you mean 'label'"),
    "precision": (["train", "digits", "--precision", "half"], "--precision: invalid choice: 'half'"),
    "precision of the CPU": (
        ["train", "digits", "--precision", "float16", "--device", "cpu"], "--precision float16 needs a GPU, .* cpu",
    ),
    "device": (["train", "digits", "--device", "gpu"], "Unknown device 'gpu'"),
    "unknown option": (["train", "digits", "--layer-size", "3"], "unrecognized arguments: --layer-size 3"),
    "out is a folder": (["train", "digits", "--out", "."], "is a folder"),
    "out is a picture": (["train", "digits", "--out", "m.png"], "where the curves go"),
    "out below a file": (["train", "digits", "--out", "table.csv/m"], "table.csv"),
    "out is the table": (["train", "table.csv", "--out", "sub/../table.csv"], "replace 'table.csv', which is read"),
    "out is the archive": (["train", "table.npz", "--out", "table.npz"], "--out is table.npz and would replace"),
    "out is a link to the table": (["train", "table.csv", "--out", "link"], "--out is link and .* 'table.csv'"),
    "out is the table, in predict": (
        ["predict", "model.safetensors", "table.csv", "--out", "table.csv"], "--out is table.csv and would replace",
    ),
    "out is the model": (["predict", "model.safetensors", "digits", "--out", "link.st"], "replace 'model.safetensors'"),
    "no model": (["predict", "none.safetensors", "digits"], "none.safetensors"),
    "model of another kind": (["predict", "table.csv", "digits"], "table.csv cannot be loaded"),
    "other features": (["predict", "model.safetensors", "table.csv", "--target", "label"], "2 features"),
    "class names": (["predict", "names.safetensors", "digits"], "'class_names' is 3, expected a list of names"),
    "too few names": (["predict", "few.safetensors", "digits"], "1 class names for 2 outputs"),
    "standardizer": (["predict", "scale.safetensors", "digits"], "'mean' and 'scale'"),
    "bench": (["bench", "--sizes", "axb"], "--sizes"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line_and_exit_code_2(case, run):
    arguments, message = BAD[case]
    write_csv("table.csv", ["a", "b", "label"], [[1, 2, "x"], [3, 4, "y"]] * 5)
    write_csv("rare.csv", None, [[k, k] for k in range(10)])
    model = fc.nn.Sequential(fc.nn.Dense(2, in_features=64))
    task = {"task": "classification"}
    for name, extra in {
        "model": {}, "names": {"class_names": 3}, "few": {"class_names": ["a"], **task}, "scale": {"standardizer": {}},
    }.items():  # fmt: skip
        fc.save(f"{name}.safetensors", model, extra)
    np.savez("table.npz", x=np.ones((10, 2)), y=np.arange(10) % 2)
    os.mkdir("sub")
    os.symlink("table.csv", "link")
    os.link("model.safetensors", "link.st")
    before = contents()
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert lines[-1].startswith("fcdense")
    assert ": error: " in lines[-1]
    assert re.search(message, lines[-1])
    assert "stratify" not in lines[-1]
    assert len(lines) == 1 or case == "bench"
    assert contents() == before


def test_cuda_that_is_not_there_names_the_probe(run):
    failed = [probe for probe in fc.backends.cuda_probes() if not probe.passed]
    if not failed:
        pytest.skip("there is a GPU here")
    code, out, err = run("train", "digits", "--device", "cuda")
    assert (code, out) == (2, "")
    assert f"probe '{failed[0].name}' failed: {failed[0].detail}" in err


def test_the_device_may_come_from_the_environment(run, monkeypatch):
    monkeypatch.setenv("FCDENSE_DEVICE", "toaster")
    code, _, err = run("info")
    assert code == 2
    assert "FCDENSE_DEVICE" in err
    assert run("info", "--device", "cpu")[0] == 0


@pytest.mark.parametrize("name", ["gpu", "cuda"])
def test_info_tells_why_there_is_no_device(run, name, monkeypatch):
    monkeypatch.setenv("FCDENSE_DEVICE", name)
    if name == "cuda" and fc.available_devices()[1:]:
        pytest.skip("there is a GPU")
    code, out, err = run("info")
    assert code == 2
    assert "fcdense " in out
    assert "cuda: driver" in out
    assert "used now: none" in out
    assert re.search(r"error: (Unknown device 'gpu'|Device \"cuda\" cannot be used).*FCDENSE_DEVICE", err)
