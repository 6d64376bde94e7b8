"""What holds for all scripts of `examples/`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SCRIPTS = sorted((HERE.parents[1] / "examples").glob("*.py"))
each_script = pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)


def test_each_script_has_its_test_and_each_test_its_script():
    tests = {path.stem.removeprefix("test_") for path in HERE.glob("test_*.py")} - {"every_example"}
    assert {path.stem for path in SCRIPTS} == tests


@each_script
def test_is_short_and_says_what_it_shows(path: Path):
    text = path.read_text(encoding="utf-8")
    assert 10 <= len(text.splitlines()) <= 40
    assert ast.get_docstring(ast.parse(text))


@each_script
def test_uses_public_names_only(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert [line for line in imported if "fcdense" in line] == ["import fcdense as fc"]
    names = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    assert [name for name in names if name.startswith("_") and name != "__init__"] == []
