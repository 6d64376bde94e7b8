"""A loss of one's own in a loop of one's own."""

from __future__ import annotations

import re


def test_the_script(run_example):
    output = run_example("own_loss_and_loop.py")
    (slope, offset), (_, shifted) = re.findall(r"(-?\d\.\d\d) x \+ (\d\.\d\d)$", output, re.MULTILINE)
    assert abs(float(slope) - 3.0) < 0.2
    assert abs(float(offset) - 0.5) < 0.25
    assert abs(float(shifted) - 1.3) < 0.1  # 0.5 + 8 * 0.1: least squares follows the outliers
