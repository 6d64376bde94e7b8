"""Data sets: the UCI digits inside the package, MNIST and Fashion-MNIST from a folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fcdense.data.idx_file import load_idx
from fcdense.data.split import draw
from fcdense.errors import DataError, FormatError

Task = Literal["classification", "regression"]
DIGIT_NAMES = tuple("0123456789")
FASHION_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
STEMS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
HOME_PAGES = {
    "mnist": "http://yann.lecun.com/exdb/mnist/",
    "fashion-mnist": "https://github.com/zalandoresearch/fashion-mnist",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Described:
    """What a data set says about itself.

    Attributes
    ----------
    name : str
    task : "classification", "regression" or None (no targets)
    class_names : tuple of str
        Name of class k at place k; empty unless the task is classification.
    feature_names : tuple of str
        Where the source names them, else empty.
    """

    name: str
    task: Task | None
    class_names: tuple[str, ...] = ()
    feature_names: tuple[str, ...] = ()

    @property
    def n_classes(self) -> int:
        """Number of classes; 0 unless the task is classification."""
        return len(self.class_names)

    def _describe(self, *arrays: str) -> str:
        shapes = [f"{name} {a.shape} {a.dtype}" for name in arrays if (a := getattr(self, name)) is not None]
        task: str = self.task or "no targets"
        if self.task == "classification":
            shown = ", ".join(self.class_names[:10]) + (", ..." if self.n_classes > 10 else "")
            task = f"classification into {self.n_classes} classes ({shown})"
        return f"{type(self).__name__} {self.name!r}: {', '.join(shapes)}; {task}"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SplitDataset(_Described):
    """Rows to train on and rows to test on.

    Attributes
    ----------
    x_train, x_test : float (N, ..., I)
    y_train, y_test : int64 (N,) class numbers, or float (N, ...) values
    """

    x_train: NDArray[Any]
    y_train: NDArray[Any]
    x_test: NDArray[Any]
    y_test: NDArray[Any]

    def __repr__(self) -> str:
        return self._describe("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Dataset(_Described):
    """Rows that nobody has divided yet.

    Attributes
    ----------
    x : float (N, ..., I)
    y : int64 (N,) class numbers, float (N, ...) values, or None
    """

    x: NDArray[Any]
    y: NDArray[Any] | None

    def split(self, test_size: float = 0.2, *, seed: int = 0) -> SplitDataset:
        """Divide the rows at random; a classification keeps the proportions of its classes (see `split_rows`).

        Raises
        ------
        ArgumentError
            `test_size` is not inside (0, 1).
        DataError
            There are no targets, or too few rows.
        """
        if self.y is None:
            raise DataError(f"{self.name!r} has no targets to divide; load it with a target column.")
        labels = self.y if self.task == "classification" else None
        cure = (
            "Lower test_size (--test-size) or add rows of the rare classes. A quantity in a CSV file is no class: say "
            "task='regression' (--task)."
        )
        train, test = draw(len(self.x), test_size, labels, seed, cure)
        return SplitDataset(
            name=self.name,
            task=self.task,
            class_names=self.class_names,
            feature_names=self.feature_names,
            x_train=self.x[train],
            y_train=self.y[train],
            x_test=self.x[test],
            y_test=self.y[test],
        )

    def __repr__(self) -> str:
        return self._describe("x", "y")


def digits() -> Dataset:
    """1,797 handwritten digits of 8 x 8 pixels, part of the package: `digits().split()` for a stratified split.

    Returns
    -------
    Dataset
        x float32 (1797, 64) in [0, 1] (pixel counts 0..16 divided by 16, rows of the image one after another),
        y int64 (1797,) the digit.

    Source: E. Alpaydin, C. Kaynak (1998), "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, doi:10.24432/C50P49, CC BY 4.0; the file optdigits.tes.
    """
    with (resources.files("fcdense.data") / "digits.npz").open("rb") as file, np.load(file) as arrays:
        pixels, labels = arrays["x"], arrays["y"]
    return Dataset(
        name="digits",
        task="classification",
        class_names=DIGIT_NAMES,
        feature_names=tuple(f"pixel_{row}_{column}" for row in range(8) for column in range(8)),
        x=pixels / np.float32(16),
        y=labels.astype(np.int64),
    )


def mnist(folder: str | os.PathLike[str] | None = None) -> SplitDataset:
    """MNIST: 60,000 + 10,000 images of handwritten digits, read from four idx files. Nothing is downloaded.

    Parameters
    ----------
    folder : path, optional
        Where the files lie, gzipped or not, under their usual names (train-images-idx3-ubyte.gz, ...). Default:
        `mnist` in the folder that the environment variable FCDENSE_CACHE names, else ~/.cache/fcdense/mnist.

    Returns
    -------
    SplitDataset
        x float32 (N, 28, 28) in [0, 1] (bytes divided by 255), y int64 (N,). Begin the model with `nn.Flatten`.

    Raises
    ------
    DataError
        A file is not there.
    FormatError
        A file is damaged or holds something else.

    Source: Y. LeCun, C. Cortes, C. Burges, http://yann.lecun.com/exdb/mnist/.
    """
    return _from_idx("mnist", DIGIT_NAMES, folder)


def fashion_mnist(folder: str | os.PathLike[str] | None = None) -> SplitDataset:
    """Fashion-MNIST: 60,000 + 10,000 images of clothes, in the files, shapes and dtypes of `mnist`.

    The default folder is `fashion-mnist` where `mnist` looks for its own.

    Source: H. Xiao, K. Rasul, R. Vollgraf (2017), arXiv:1708.07747.
    """
    return _from_idx("fashion-mnist", FASHION_NAMES, folder)


def _from_idx(name: str, class_names: tuple[str, ...], folder: str | os.PathLike[str] | None) -> SplitDataset:
    if folder is None:
        folder = Path(os.environ.get("FCDENSE_CACHE") or "~/.cache/fcdense") / name
    place = Path(folder).expanduser()
    paths = [_find(name, place, stem) for stem in STEMS]
    x_train, y_train = _images_and_labels(*paths[:2])
    x_test, y_test = _images_and_labels(*paths[2:])
    return SplitDataset(
        name=name,
        task="classification",
        class_names=class_names,
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
    )


def _find(name: str, folder: Path, stem: str) -> Path:
    for candidate in (folder / f"{stem}.gz", folder / stem):
        if candidate.is_file():
            return candidate
    reason = "" if folder.is_dir() else " (no such folder)"
    raise DataError(
        f"{name}: {stem}.gz (or {stem}) is not in {folder}{reason}. Put the four files of {HOME_PAGES[name]} there, or "
        "name their folder as an argument or, one level up, in FCDENSE_CACHE. fcdense downloads nothing."
    )


def _images_and_labels(images_path: Path, labels_path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    images, labels = load_idx(images_path), load_idx(labels_path)
    if images.dtype != np.uint8 or images.shape[1:] != (28, 28):
        raise FormatError(f"{images_path}: holds {images.shape} {images.dtype}, expected (N, 28, 28) uint8.")
    if labels.dtype != np.uint8 or labels.ndim != 1 or labels.max() > 9:
        raise FormatError(f"{labels_path}: holds {labels.shape} {labels.dtype}, expected (N,) uint8 of 0 to 9.")
    if len(images) != len(labels):
        raise FormatError(f"{images_path} holds {len(images)} images, {labels_path} {len(labels)} labels.")
    return np.divide(images, np.float32(255), dtype=np.float32), labels.astype(np.int64)
