"""The history of a training: lookups, table, picture."""

from __future__ import annotations

import io
import re
import sys

import pytest
from rich.console import Console

from fcdense.errors import ArgumentError, UnknownNameError
from fcdense.history import History


def history() -> History:
    found = History()
    found.append({"loss": 2.0, "accuracy": 0.25})
    found.append({"loss": 1.0, "accuracy": 0.5, "val_loss": 1.5})
    found.append({"loss": 0.125, "accuracy": 1.0, "val_loss": float("nan")})
    return found


def test_numbers_by_name_and_by_epoch():
    found = history()
    assert found["loss"] == [2.0, 1.0, 0.125]
    assert found["val_loss"][0] == 1.5
    assert len(found["val_loss"]) == 2
    assert found[1] == {"loss": 1.0, "accuracy": 0.5, "val_loss": 1.5}
    assert found[-1]["accuracy"] == 1.0
    assert found.names == ["loss", "accuracy", "val_loss"]
    assert "val_loss" in found
    assert "val_accuracy" not in found
    assert len(found) == len(list(found)) == 3
    with pytest.raises(IndexError):
        found[3]
    with pytest.raises(UnknownNameError, match="Did you mean 'accuracy'"):
        found["acuracy"]


def test_what_is_given_out_is_a_copy():
    found, logs = History(), {"loss": 1.0}
    found.append(logs)
    logs["loss"] = found[0]["loss"] = found["loss"][0] = 9.0
    assert found["loss"] == [1.0]


def test_repr_says_how_it_ended():
    assert repr(History()) == "History(0 epochs)"
    assert repr(history()) == "History(3 epochs: loss=0.125, accuracy=1, val_loss=nan)"
    single = History()
    single.append({"loss": 1e-9})
    assert repr(single) == "History(1 epoch: loss=1e-09)"


def test_table_has_a_row_for_each_epoch():
    screen = io.StringIO()
    Console(file=screen, width=80).print(history().table())
    rows = [re.findall(r"[\w.]+", line) for line in screen.getvalue().splitlines() if re.search(r"\w", line)]
    assert rows == [
        ["epoch", "loss", "accuracy", "val_loss"],
        ["1", "2.0000", "0.2500"],
        ["2", "1.0000", "0.5000", "1.5000"],
        ["3", "0.1250", "1.0000", "nan"],
    ]


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG\r\n"), (".svg", b"<?xml")])
def test_plot_writes_a_picture(tmp_path, suffix, magic):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"curves{suffix}"
    assert history().plot(path) == path
    assert path.read_bytes().startswith(magic)


def test_curves_lie_at_their_epochs(tmp_path, monkeypatch):
    figure_module = pytest.importorskip("matplotlib.figure")
    figures = []
    monkeypatch.setattr(figure_module.Figure, "savefig", lambda self, *args, **options: figures.append(self))
    history().plot(tmp_path / "x.png")
    loss, accuracy = figures[0].axes
    assert [axes.get_title() for axes in (loss, accuracy)] == ["loss", "accuracy"]
    assert {line.get_label(): line.get_xdata().tolist() for line in loss.lines} == {
        "training": [1, 2, 3],
        "validation": [2, 3],
    }
    assert loss.lines[0].get_ydata().tolist() == [2.0, 1.0, 0.125]
    assert [line.get_label() for line in accuracy.lines] == ["training"]


def test_plot_needs_epochs_and_matplotlib(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    with pytest.raises(ArgumentError, match=r"nothing to plot|fcdense\[plot\]"):
        History().plot(path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ArgumentError, match=r"pip install 'fcdense\[plot\]'"):
        history().plot(path)
    assert not path.exists()
