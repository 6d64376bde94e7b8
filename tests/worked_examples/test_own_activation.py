"""An activation of one's own, its derivative, and what is refused."""

from __future__ import annotations

import re


def test_the_script(run_example):
    output = run_example("own_activation.py")
    # x sigmoid(2 x) and its derivative at -1, 0, 1, from sigmoid(2) = 0.8808
    assert "with arrays: [-0.1192  0.      0.8808]" in output
    assert "the derivative: [-0.0908  0.5     1.0908]  by hand: [-0.0908  0.5     1.0908]" in output
    assert "Dense(8 -> 64, activation=swish2)" in output
    assert re.search(r"refused: with_an_if: .*np\.where", output)
