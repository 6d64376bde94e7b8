"""What of a model is looked at, and put back."""

from __future__ import annotations

import numpy as np
import pytest

import fcdense as fc
from fcdense.nn.snapshot import Snapshot


class Settings(fc.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.number, self.text, self.nothing, self.nan = 1, "a", None, float("nan")
        self.items, self.names, self.table = [1.0, [2]], {"x"}, {"k": 3}
        self.layer = fc.nn.Dense(2, in_features=3)
        self.tensor = fc.tensor([1.0])
        self.layers = [fc.nn.Dropout(0.1)]


def setting(name, value):
    return lambda model: setattr(model, name, value)


CHANGES = {
    "`number` of Settings": setting("number", 2),
    "`text` of Settings": setting("text", "b"),
    "`nothing` of Settings": setting("nothing", 0),
    "`items` of Settings": lambda model: model.items.append(2.0),
    "`items` of Settings ": lambda model: model.items[1].append(2.0),
    "`names` of Settings": lambda model: model.names.add("y"),
    "`table` of Settings": lambda model: model.table.update(k=4),
    "`tensor` of Settings": lambda model: setattr(model, "tensor", fc.tensor([1.0])),
    "`fresh` of Settings": setting("fresh", 1),
    "`training` of Settings": lambda model: setattr(model, "training", False),
    "`kernel` of layer 'layer'": lambda model: setattr(model.layer.kernel, "requires_grad", False),
    "`kernel` of layer 'layer' ": lambda model: setattr(model.layer.kernel, "constraint", abs),
    "`rate` of layer 'layers.0'": lambda model: setattr(model.layers[0], "rate", 0.3),
    "the layers": lambda model: model.layers.append(fc.nn.Dropout(0.2)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_named(name):
    model = Settings()
    before = Snapshot(model)
    assert before.difference(before.again()) == ""
    CHANGES[name](model)
    assert before.difference(before.again()) == name.rstrip()
    before.restore()
    if "kernel" not in name and not name.endswith(" "):  # parameters, and what lists in lists hold, stay
        assert before.difference(before.again()) == ""


def test_equal_values_are_no_change():
    model = Settings()
    before = Snapshot(model)
    model.number, model.text, model.items, model.table = 1, "".join(["a"]), [1.0, [2]], {"k": 3}
    model.layer.kernel.assign(np.ones((3, 2)))
    assert before.difference(before.again()) == ""


def test_plain_values_alone():
    model = Settings()
    before = Snapshot(model)
    model.tensor = fc.tensor([2.0])
    model.nothing = fc.tensor([2.0])
    assert before.difference(before.again()) == "`nothing` of Settings"
    assert before.difference(before.again(), plain=True) == ""
    model.number = 5
    assert before.difference(before.again(), plain=True) == "`number` of Settings"
