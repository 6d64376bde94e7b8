"""CSV files: header, targets, and errors that name the line and the column."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fcdense.data import load_csv
from fcdense.errors import ArgumentError, DataError, FormatError, UnknownNameError

FLOWERS = "length,width,species\n5.1,3.5,setosa\n7.0,3.2,versicolor\n4.9,3.0,setosa\n"


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "table.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_text_targets_become_sorted_classes(tmp_path: Path) -> None:
    data = load_csv(write(tmp_path, FLOWERS))
    assert data.x.dtype == np.float32
    assert (data.x == np.array([[5.1, 3.5], [7.0, 3.2], [4.9, 3.0]], np.float32)).all()
    assert data.y is not None
    assert data.y.dtype == np.int64
    assert data.y.tolist() == [0, 1, 0]
    assert data.class_names == ("setosa", "versicolor")
    assert data.n_classes == 2
    assert data.feature_names == ("length", "width")
    assert (data.name, data.task) == ("table.csv", "classification")


@pytest.mark.parametrize("target", ["width", 1, -2, np.int64(1)])
def test_a_target_in_the_middle(tmp_path: Path, target) -> None:
    data = load_csv(write(tmp_path, "a,width,b\n1,0.5,2\n3,1,4\n"), target)
    assert data.task == "regression"
    assert data.x.tolist() == [[1, 2], [3, 4]]
    assert data.y is not None
    assert data.y.dtype == np.float32
    assert data.y.tolist() == [0.5, 1]
    assert data.feature_names == ("a", "b")
    assert data.class_names == ()


def test_no_header_where_the_first_line_has_a_number(tmp_path: Path) -> None:
    data = load_csv(write(tmp_path, "1,2,cat\n3,4,dog\n"))
    assert data.x.tolist() == [[1, 2], [3, 4]]
    assert data.feature_names == ("column_0", "column_1")


def test_a_target_by_name_makes_numbers_a_header(tmp_path: Path) -> None:
    data = load_csv(write(tmp_path, "0,1,label\n7,8,9\n"), "label")
    assert data.x.tolist() == [[7, 8]]
    assert data.feature_names == ("0", "1")
    assert data.class_names == ("9",)


def test_whole_numbers_are_classes_in_the_order_of_their_values(tmp_path: Path) -> None:
    data = load_csv(write(tmp_path, "1,10\n1,9\n1,9.0\n1,-1\n"))
    assert data.class_names == ("-1", "9", "10")
    assert data.y is not None
    assert data.y.tolist() == [2, 1, 1, 0]


def test_wide_whole_numbers_stay_apart(tmp_path: Path) -> None:
    data = load_csv(write(tmp_path, f"1,{2**53}\n1,{2**53 + 1}\n"))
    assert data.class_names == (str(2**53), str(2**53 + 1))


def test_task_overrides(tmp_path: Path) -> None:
    counts = load_csv(write(tmp_path, "1,10\n1,9\n"), task="regression")
    assert counts.task == "regression"
    assert counts.y is not None
    assert counts.y.tolist() == [10, 9]
    labels = load_csv(write(tmp_path, "1,1.5\n1,0.5\n"), task="classification")
    assert labels.class_names == ("0.5", "1.5")


def test_class_names_fix_the_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, "1,dog\n1,cat\n")
    data = load_csv(path, class_names=("dog", "bird", "cat"))
    assert data.y is not None
    assert data.y.tolist() == [0, 2]
    assert data.n_classes == 3
    with pytest.raises(DataError, match=r"line 2, column 'column_1' \(index 1\): label 'cat' is not among class_names"):
        load_csv(path, class_names=("dog", "bird"))


def test_numbers_and_names_may_be_mixed_as_labels(tmp_path: Path) -> None:
    data = load_csv(write(tmp_path, "1,0\n1,3+\n1,2\n"))
    assert data.class_names == ("0", "2", "3+")


def test_no_target(tmp_path: Path) -> None:
    data = load_csv(write(tmp_path, "a,b\n1,2\n3,4\n"), target=None)
    assert data.x.tolist() == [[1, 2], [3, 4]]
    assert data.y is None
    assert data.task is None
    with pytest.raises(DataError, match="no targets"):
        data.split()


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + FLOWERS,
        FLOWERS.replace("\n", "\r\n"),
        FLOWERS.replace(",", " , "),
        FLOWERS.replace("\n", "\n\n") + "  \n",
        FLOWERS.rstrip("\n"),
        FLOWERS.replace("setosa", '"setosa"').replace("5.1", '"5.1"'),
    ],
)
def test_spellings_of_one_table(tmp_path: Path, text: str) -> None:
    plain, spelled = load_csv(write(tmp_path, FLOWERS)), load_csv(write(tmp_path, text))
    assert (spelled.x == plain.x).all()
    assert spelled.feature_names == plain.feature_names
    assert spelled.class_names == plain.class_names


def test_other_delimiters(tmp_path: Path) -> None:
    for delimiter in (";", "\t", "|"):
        data = load_csv(write(tmp_path, FLOWERS.replace(",", delimiter)), delimiter=delimiter)
        assert data.x.shape == (3, 2)


def test_labels_with_underscores_are_text_and_so_are_cells(tmp_path: Path) -> None:
    data = load_csv(write(tmp_path, "1,iris_setosa\n2,1_0\n"))
    assert data.class_names == ("1_0", "iris_setosa")
    with pytest.raises(DataError, match=r"line 1, column 'column_1' \(index 1\): '1_0' is not a number"):
        load_csv(write(tmp_path, "1,1_0,a\n"))


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a,b,t\n1,2,x\n1,red,y\n", r"line 3, column 'b' \(index 1\)", "'red' is not a number; encode"),
        ("a,b,t\n1,2,x\n,2,y\n", r"line 3, column 'a' \(index 0\)", "missing value.*fill it.*or remove"),
        ("a,b,t\n1,NA,x\n", r"line 2, column 'b' \(index 1\)", "missing value"),
        ("a,b,t\n1,2,x\n\n1,nan,x\n", r"line 4, column 'b' \(index 1\)", "missing value"),
        ("a,b,t\n1,inf,x\n", r"line 2, column 'b' \(index 1\)", "'inf' is not finite"),
        ("a,b,t\n1,1e39,x\n", r"line 2, column 'b' \(index 1\)", r"1e\+39 does not fit into float32"),
        ("a,b,t\n1,1e999,x\n", r"line 2, column 'b' \(index 1\)", "not finite"),
        ("a,b,t\n1,2,\n", r"line 2, column 't' \(index 2\)", "the target is missing"),
        (
            "a,t\n1,2.5\n1,high\n",
            r"line 3, column 't' \(index 1\)",
            "'high' is no number, but other lines have fraction",
        ),
        ("a,t\n1,2\n1,NA\n", r"line 3, column 't' \(index 1\)", "missing target"),
        ('a,t\n"1\n2",x\n', r"line 3, column 'a' \(index 0\)", "is not a number"),
    ],
)
def test_wrong_cells_are_named(tmp_path: Path, text: str, place: str, words: str) -> None:
    with pytest.raises(DataError, match=rf"table\.csv, {place}: .*{words}"):
        load_csv(write(tmp_path, text))


def test_wrong_cells_right_of_the_target_are_named(tmp_path: Path) -> None:
    for cell in ("red", "nan"):
        with pytest.raises(DataError, match=r"line 2, column 'b' \(index 2\)"):
            load_csv(write(tmp_path, f"t,a,b\nx,1,{cell}\n"), "t")


@pytest.mark.parametrize("cell", ["high", "1e39", "inf"])
def test_a_regression_needs_numbers(tmp_path: Path, cell: str) -> None:
    with pytest.raises(DataError, match=rf"line 2, column 't' \(index 1\): '{cell}' is no finite float32"):
        load_csv(write(tmp_path, f"a,t\n1,{cell}\n"), task="regression")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("\n \n", "empty"),
        ("a,b\n", "a header and no rows"),
        ("a,b,c\n1,2,3\n1,2\n", "line 3: 2 cells, the first line has 3"),
        ("a,b,c\n1,2,3,4\n", "line 2: 4 cells, the first line has 3"),
        ("a;b\n1;2\n", "one column with delimiter ','.*'a;b'.*pass the delimiter"),
        ('a,b\n1,"2\n', "line 2: unexpected end of data"),
        (b"a,b\n1,\xff\n", "not UTF-8"),
    ],
)
def test_files_that_are_no_table(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        load_csv(write(tmp_path, text))


def test_unknown_targets(tmp_path: Path) -> None:
    path = write(tmp_path, FLOWERS)
    with pytest.raises(UnknownNameError, match=r"table\.csv: 'specis'. Did you mean 'species'"):
        load_csv(path, "specis")
    for index in (3, -4):
        with pytest.raises(ArgumentError, match=f"target is {index}, but .* has 3 columns: 0 to 2"):
            load_csv(path, index)
    for wrong in (True, 1.0):
        with pytest.raises(ArgumentError, match="the name or the index of a column"):
            load_csv(path, wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="seems to be no header"):
        load_csv(write(tmp_path, "1,2,x\n"), "species")
    with pytest.raises(DataError, match="2 columns are named 'a'"):
        load_csv(write(tmp_path, "a,a,b\n1,2,3\n"), "a")


def test_other_arguments(tmp_path: Path) -> None:
    path = write(tmp_path, FLOWERS)
    for wrong in ("", ", ", 7):
        with pytest.raises(ArgumentError, match="delimiter"):
            load_csv(path, delimiter=wrong)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="task is 'cluster'"):
        load_csv(path, task="cluster")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        load_csv(tmp_path / "absent.csv")


def test_values_are_those_of_numpy(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(40, 7)) * 10.0 ** np.arange(-3, 4)
    path = tmp_path / "numbers.csv"
    np.savetxt(path, np.column_stack([x, np.arange(40) % 3]), delimiter=",")
    data = load_csv(path)
    assert (data.x == np.loadtxt(path, delimiter=",")[:, :-1].astype(np.float32)).all()
    assert data.class_names == ("0", "1", "2")


def test_many_whole_numbers_are_not_taken_for_classes(tmp_path):
    path = tmp_path / "houses.csv"
    path.write_text("size,price\n" + "".join(f"{k}.5,{100 + k}\n" for k in range(40)))
    with pytest.raises(DataError, match=r"'price' has 40 different whole numbers in 40 rows.*task='regression'"):
        load_csv(path)
    assert load_csv(path, task="regression").task == "regression"
    assert load_csv(path, task="classification").n_classes == 40
    path.write_text("size,kind\n" + "".join(f"{k}.5,{k % 11}\n" for k in range(55)))
    assert load_csv(path).n_classes == 11
