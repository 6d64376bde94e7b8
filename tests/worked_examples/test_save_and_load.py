"""Saving and loading, bit for bit."""

from __future__ import annotations


def test_the_script(run_example):
    output = run_example("save_and_load.py")
    assert "(0): Dense(4 -> 16, activation=gelu)" in output
    assert "same bits: True" in output
    assert "'layers.0.kernel': (4, 16), 'layers.0.bias': (16,), 'layers.2.kernel': (16, 3)" in output
    assert "same bits again: True" in output
