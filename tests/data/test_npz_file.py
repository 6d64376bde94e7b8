"""npz archives: the two forms, and attacks that must be refused."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fcdense.data import Dataset, SplitDataset, load_npz
from fcdense.errors import DataError, DTypeError, FormatError, ShapeError

X = np.arange(6, dtype=np.float32).reshape(3, 2)


def save(folder: Path, **arrays) -> Path:
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def zip_of(folder: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(folder / "data.npz", "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return folder / "data.npz"


def test_x_and_y(tmp_path: Path) -> None:
    data = load_npz(save(tmp_path, x=X, y=np.array([2, 0, 1], np.uint8), extra=np.zeros(9)))
    assert isinstance(data, Dataset)
    assert (data.x == X).all()
    assert data.y is not None
    assert data.y.dtype == np.int64
    assert data.y.tolist() == [2, 0, 1]
    assert (data.name, data.task, data.class_names) == ("data.npz", "classification", ("0", "1", "2"))


@pytest.mark.parametrize("save_as", [np.savez, np.savez_compressed])
def test_divided_sets(tmp_path: Path, save_as) -> None:
    images = np.arange(5 * 4, dtype=np.uint8).reshape(5, 2, 2)
    save_as(tmp_path / "a.npz", x_train=images, y_train=[0, 1, 2, 3, 4], x_test=images[:2], y_test=[9, 0])
    data = load_npz(tmp_path / "a.npz")
    assert isinstance(data, SplitDataset)
    assert data.x_train.dtype == data.x_test.dtype == np.float32
    assert (data.x_train == images).all()
    assert data.y_test.tolist() == [9, 0]
    assert data.n_classes == 10


@pytest.mark.parametrize(
    ("stored", "read"), [("f2", "f2"), ("f4", "f4"), ("f8", "f8"), (">f4", "f4"), ("i4", "f4"), ("?", "f4")]
)
def test_dtypes_of_features(tmp_path: Path, stored: str, read: str) -> None:
    data = load_npz(save(tmp_path, x=X.astype(stored), y=[0, 1, 0]))
    assert isinstance(data, Dataset)
    assert data.x.dtype == np.dtype(read)
    assert data.x.dtype.isnative


@pytest.mark.parametrize("y", [np.array([0.0, 1.0, 2.0], ">f8"), np.ones((3, 2), np.float32)])
def test_float_targets_are_regressed_on(tmp_path: Path, y: np.ndarray) -> None:
    data = load_npz(save(tmp_path, x=X, y=y))
    assert isinstance(data, Dataset)
    assert data.task == "regression"
    assert data.y is not None
    assert data.y.dtype.isnative
    assert np.array_equal(data.y, y)


def test_text_targets_become_sorted_classes_over_both_parts(tmp_path: Path) -> None:
    data = load_npz(save(tmp_path, x_train=X, y_train=["c", "a", "c"], x_test=X[:1], y_test=["b"]))
    assert isinstance(data, SplitDataset)
    assert data.class_names == ("a", "b", "c")
    assert data.y_train.tolist() == [2, 0, 2]
    assert data.y_test.tolist() == [1]


@pytest.mark.parametrize(
    ("arrays", "error", "words"),
    [
        ({"x": X}, FormatError, "holds x; expected x, y or x_train, y_train, x_test, y_test"),
        ({"x_train": X, "y_train": [0, 1, 2]}, FormatError, "holds x_train, y_train; expected"),
        ({}, FormatError, "holds nothing"),
        ({"x": X, "y": np.array([0, None, 1], object)}, FormatError, "y holds Python objects"),
        ({"x": X, "y": [0, 1]}, ShapeError, "x has 3 rows and y has 2"),
        ({"x": X, "y": np.eye(3, dtype=int)}, ShapeError, r"argmax\(axis=1\) for one-hot"),
        ({"x": X[:, 0], "y": [0, 1, 2]}, ShapeError, r"x has shape \(3,\)"),
        ({"x": X[:0], "y": np.zeros(0, int)}, DataError, "x has 0 rows"),
        ({"x": X, "y": np.zeros(0, int)}, DataError, "0 rows"),
        ({"x": X, "y": [-1, 1, 1]}, DataError, "of -1 to 1, expected class numbers"),
        ({"x": X, "y": [0, 1, 250_000]}, DataError, "of 0 to 250000, expected class numbers.*floats"),
        ({"x": X, "y": [b"a", b"b", b"c"]}, DTypeError, "integers or text"),
        ({"x": [["a", "b"]] * 3, "y": [0, 1, 2]}, DTypeError, "x has dtype <U1"),
        (
            {"x_train": X, "y_train": [0, 1, 2], "x_test": X[:, :1], "y_test": [0, 1, 2]},
            ShapeError,
            "rows of one shape",
        ),
        ({"x_train": X, "y_train": [0, 1, 2], "x_test": X, "y_test": [0.5, 1, 2]}, DTypeError, "y_test .* float64"),
    ],
)
def test_refused(tmp_path: Path, arrays, error, words: str) -> None:
    with pytest.raises(error, match=words):
        load_npz(save(tmp_path, **arrays))


def test_pickle_is_never_read(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    array = np.empty(3, object)
    array[:] = [Bomb(), Bomb(), Bomb()]
    with pytest.raises(FormatError, match="x holds Python objects, which only pickle reads"):
        load_npz(save(tmp_path, x=array, y=[0, 1, 2]))


@pytest.mark.parametrize("content", [b"", b"PK", b"\x93NUMPY" + bytes(100), npy(X)])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.npz").write_bytes(content)
    with pytest.raises(FormatError, match="not a readable npz archive"):
        load_npz(tmp_path / "other.npz")


def test_an_absent_file_is_the_usual_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_npz(tmp_path / "absent.npz")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "x is not a readable npy array"),
        (b"\x93NUMPY\x01\x00", "x is not a readable npy array"),
        (b"\x93NUMPY\x03\x00" + bytes(64), r"x has npy version \(3, 0\)"),
        (npy(X)[:-1], "takes 152 bytes, the archive has 151"),
        (npy(X) + b"\0", "takes 152 bytes, the archive has 153"),
        (npy(X).replace(b"(3, 2)", b"(3,-2)"), "x"),
        (npy(X).replace(b"(3, 2), }     ", b"(9999999999,)}"), "takes 40000000127 bytes|takes 4000000012"),
        (npy(X).replace(b"'<f4'", b"'oops"), "x is not a readable npy array"),
    ],
)
def test_damaged_members(tmp_path: Path, content: bytes, words: str) -> None:
    path = zip_of(tmp_path, {"x.npy": content, "y.npy": npy(np.arange(3))})
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=words):
            load_npz(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_directory_that_lies_about_sizes_costs_no_memory(tmp_path: Path) -> None:
    path = zip_of(tmp_path, {"x.npy": npy(X), "y.npy": npy(np.arange(3))}, zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = (2**31).to_bytes(4, "little")  # the uncompressed size of the first member
    path.write_bytes(bytes(content))
    with pytest.raises(FormatError, match="x claims 2147483648 bytes, more than the file can hold"):
        load_npz(path)


def test_cut_and_flipped_bytes_never_do_more_than_raise(tmp_path: Path) -> None:
    whole = save(tmp_path, x=X, y=np.arange(3)).read_bytes()
    path = tmp_path / "damaged.npz"
    for length in range(0, len(whole), 3):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError):
            load_npz(path)
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(bytes(damaged))
        try:
            data = load_npz(path)
        except (FormatError, DataError, ShapeError, DTypeError):
            continue
        assert isinstance(data, Dataset)
        assert np.array_equal(data.x, X)
