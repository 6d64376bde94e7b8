"""Data sets: the embedded digits against known facts, MNIST's files made small, and the real ones where present."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from fcdense.data import Dataset, SplitDataset, digits, fashion_mnist, mnist
from fcdense.errors import ArgumentError, DataError, FormatError

LOADERS = {"mnist": mnist, "fashion-mnist": fashion_mnist}


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def four_files(folder: Path, packed: bool = True) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", 7), ("t10k", 3)):
        arrays[f"{part}-images-idx3-ubyte"] = rng.integers(0, 256, (n, 28, 28), np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = rng.integers(0, 10, n, np.uint8)
    for stem, array in arrays.items():
        path = folder / (f"{stem}.gz" if packed else stem)
        path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    return arrays


def test_digits_are_those_of_uci() -> None:
    data = digits()
    assert isinstance(data, Dataset)
    assert data.y is not None
    assert (data.x.shape, data.x.dtype, data.y.shape, data.y.dtype) == ((1797, 64), np.float32, (1797,), np.int64)
    assert np.bincount(data.y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    # Counted on optdigits.tes itself; the classes' counts and the first image stand in scikit-learn's documentation.
    pixels = (data.x * 16).astype(np.int64)
    assert pixels.sum() == 561_718
    assert pixels[0, :16].tolist() == [0, 0, 5, 13, 9, 1, 0, 0, 0, 0, 13, 15, 10, 15, 5, 0]
    assert data.y[:10].tolist() == list(range(10))
    assert (data.x.min(), data.x.max()) == (0, 1)
    assert (data.task, data.n_classes, data.class_names) == ("classification", 10, tuple("0123456789"))
    assert len(data.feature_names) == 64


def test_digits_are_those_of_scikit_learn() -> None:
    pixels, labels = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    data = digits()
    assert (data.x == (pixels / 16).astype(np.float32)).all()
    assert np.array_equal(data.y, labels)


def test_digits_stay_byte_for_byte() -> None:
    with (resources.files("fcdense.data") / "digits.npz").open("rb") as file, np.load(file) as arrays:
        digest = hashlib.sha256(arrays["x"].tobytes() + arrays["y"].tobytes()).hexdigest()
    assert digest == "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def test_digits_come_with_their_licence() -> None:
    text = (resources.files("fcdense.data") / "digits.LICENSE.txt").read_text()
    for word in ("Optical Recognition of Handwritten Digits", "Alpaydin", "Kaynak", "10.24432/C50P49", "CC BY 4.0"):
        assert word in text
    with resources.as_file(resources.files("fcdense.data") / "digits.npz") as path:
        assert path.stat().st_size < 100_000


def test_digits_are_fresh_at_every_call() -> None:
    digits().x[:] = 7
    assert digits().x.max() == 1


def test_digits_split_is_stratified_and_repeatable() -> None:
    data = digits().split(0.2, seed=3)
    assert isinstance(data, SplitDataset)
    assert data.x_train.shape == (1438, 64)
    assert data.x_test.shape == (359, 64)
    ideal = np.array([178, 182, 177, 183, 181, 182, 181, 179, 174, 180]) * 359 / 1797
    assert (np.abs(np.bincount(data.y_test) - ideal) < 1).all()
    assert (digits().split(0.2, seed=3).x_test == data.x_test).all()
    assert not np.array_equal(digits().split(0.2, seed=4).y_test, data.y_test)
    rows = {row.tobytes() for row in digits().x}
    assert {row.tobytes() for row in np.concatenate([data.x_train, data.x_test])} == rows
    with pytest.raises(ArgumentError, match="test_size is 1"):
        digits().split(1.0)


def test_repr_tells_the_facts() -> None:
    assert repr(digits()) == (
        "Dataset 'digits': x (1797, 64) float32, y (1797,) int64; "
        "classification into 10 classes (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)"
    )
    many = Dataset(name="m", task="classification", class_names=tuple("abcdefghijkl"), x=np.ones((1, 2)), y=np.ones(1))
    assert repr(many).endswith("12 classes (a, b, c, d, e, f, g, h, i, j, ...)")
    assert repr(Dataset(name="r", task="regression", x=np.ones((1, 2)), y=np.ones(1))).endswith("float64; regression")
    assert repr(Dataset(name="n", task=None, x=np.ones((1, 2)), y=None)) == "Dataset 'n': x (1, 2) float64; no targets"
    assert repr(digits().split()).startswith("SplitDataset 'digits': x_train (1438, 64) float32, y_train (1438,) int64")


def test_data_sets_are_frozen() -> None:
    with pytest.raises(AttributeError):
        digits().x = np.zeros(1)  # type: ignore[misc]


def test_regression_rows_are_split_without_strata() -> None:
    data = Dataset(name="r", task="regression", x=np.arange(10.0)[:, None], y=np.arange(10.0) / 3).split(0.3)
    assert sorted([*data.y_train, *data.y_test]) == [i / 3 for i in range(10)]
    assert len(data.y_test) == 3


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("packed", [True, False])
def test_four_files_in_a_folder(tmp_path: Path, monkeypatch, name: str, packed: bool) -> None:
    arrays = four_files(tmp_path / name, packed)
    monkeypatch.setenv("FCDENSE_CACHE", str(tmp_path))
    for data in (LOADERS[name](), LOADERS[name](tmp_path / name), LOADERS[name](str(tmp_path / name))):
        assert data.name == name
        assert data.n_classes == 10
        assert (data.x_train.dtype, data.y_train.dtype) == (np.float32, np.int64)
        assert (data.x_train == (arrays["train-images-idx3-ubyte"] / 255).astype(np.float32)).all()
        assert (data.x_test == (arrays["t10k-images-idx3-ubyte"] / 255).astype(np.float32)).all()
        assert (data.y_train == arrays["train-labels-idx1-ubyte"]).all()
        assert (data.y_test == arrays["t10k-labels-idx1-ubyte"]).all()


def test_names_of_the_classes(tmp_path: Path) -> None:
    four_files(tmp_path)
    assert mnist(tmp_path).class_names == tuple("0123456789")
    assert fashion_mnist(tmp_path).class_names[0] == "T-shirt/top"
    assert fashion_mnist(tmp_path).class_names[9] == "Ankle boot"


@pytest.mark.parametrize("variable", [None, ""])
def test_the_default_folder_lies_in_the_home_folder(tmp_path: Path, monkeypatch, variable: str | None) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    if variable is None:
        monkeypatch.delenv("FCDENSE_CACHE", raising=False)
    else:
        monkeypatch.setenv("FCDENSE_CACHE", variable)
    with pytest.raises(DataError, match=str(tmp_path / ".cache" / "fcdense" / "mnist")):
        mnist()
    four_files(tmp_path / ".cache" / "fcdense" / "mnist")
    assert len(mnist().x_train) == 7


@pytest.mark.parametrize(
    ("name", "page"), [("mnist", "yann.lecun.com/exdb/mnist"), ("fashion-mnist", "github.com/zalandoresearch/fashion")]
)
@pytest.mark.parametrize("stem", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_an_absent_file_is_named_with_folder_and_home_page(tmp_path: Path, name: str, page: str, stem: str) -> None:
    four_files(tmp_path)
    (tmp_path / f"{stem}.gz").unlink()
    with pytest.raises(DataError) as caught:
        LOADERS[name](tmp_path)
    for word in (name, f"{stem}.gz", str(tmp_path), page, "FCDENSE_CACHE"):
        assert word in str(caught.value)
    assert "no such folder" not in str(caught.value)


def test_an_absent_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere \(no such folder\)"):
        mnist(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("stem", "array", "words"),
    [
        ("train-images-idx3-ubyte", np.zeros((7, 28, 27)), r"holds \(7, 28, 27\) uint8, expected \(N, 28, 28\) uint8"),
        ("train-images-idx3-ubyte", np.zeros(7), r"holds \(7,\) uint8, expected"),
        ("t10k-labels-idx1-ubyte", np.zeros((3, 1)), r"holds \(3, 1\) uint8, expected \(N,\)"),
        ("t10k-labels-idx1-ubyte", np.array([0, 10, 2]), "of 0 to 9"),
        ("t10k-labels-idx1-ubyte", np.zeros(4), "holds 3 images, .* 4 labels"),
    ],
)
def test_files_that_hold_something_else(tmp_path: Path, stem: str, array: np.ndarray, words: str) -> None:
    four_files(tmp_path)
    (tmp_path / f"{stem}.gz").write_bytes(gzip.compress(idx(array)))
    with pytest.raises(FormatError, match=words):
        mnist(tmp_path)


@pytest.mark.real_data
@pytest.mark.parametrize("name", LOADERS)
def test_the_real_files(name: str) -> None:
    cache = os.environ.get("FCDENSE_CACHE")
    if not cache or not (Path(cache) / name).is_dir():
        pytest.skip(f"needs the four files of {name} in $FCDENSE_CACHE/{name}")
    data = LOADERS[name]()
    assert data.x_train.shape == (60_000, 28, 28)
    assert data.x_test.shape == (10_000, 28, 28)
    assert (data.x_train.min(), data.x_train.max()) == (0, 1)
    counts = {
        "mnist": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        "fashion-mnist": [6000] * 10,
    }
    assert np.bincount(data.y_train).tolist() == counts[name]
    mean, deviation = {"mnist": (0.1307, 0.3081), "fashion-mnist": (0.2860, 0.3530)}[name]
    assert data.x_train.mean(dtype=np.float64) == pytest.approx(mean, abs=5e-5)
    assert data.x_train.std(dtype=np.float64) == pytest.approx(deviation, abs=5e-5)
