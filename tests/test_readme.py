"""README.md is true: its Python blocks run, and its command lines are ones that the programs accept."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from os import environ
from pathlib import Path

import pytest

import fcdense as fc
from fcdense import cli
from fcdense.bench import cli as bench

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
IMAGES = {"fcdense", "fcdense:cuda"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """The arguments of every call of `fcdense`, also of those that a container makes."""
    lines = "".join(blocks("sh")).splitlines()
    return [call for line in lines for call in calls(shlex.split(line, comments=True))]


def calls(words: list[str]) -> Iterator[list[str]]:
    """The arguments of the calls of `fcdense` in one line of shell words."""
    while words:
        end = words.index("&&") if "&&" in words else len(words)
        command, words = words[:end], words[end + 1 :]
        if command and Path(command[0]).name == "fcdense":
            yield command[1:]
        elif command[:2] == ["docker", "run"]:
            image = next(i for i, word in enumerate(command) if word in IMAGES)
            yield command[image + 1 :]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all blocks, as a reader has it."""
    return tmp_path_factory.mktemp("readme")


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: f"block {blocks('python').index(code)}")
def test_python_blocks_run(code: str, folder: Path):
    environment = environ | {"PYTHONPATH": str(Path(fc.__file__).parents[1])}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_command_lines_are_found():
    assert len(blocks("python")) >= 3
    assert ["train", "digits"] in commands()
    assert ["info"] in commands()
    line = (
        "a/fcdense train x --layers 4,4 && docker run --rm fcdense:cuda info --check && echo fcdense no  # fcdense no"
    )
    words = shlex.split(line, comments=True)
    assert list(calls(words)) == [["train", "x", "--layers", "4,4"], ["info", "--check"]]


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_command_lines_parse(arguments: list[str]):
    if arguments[0] == "bench":
        bench.measure_parser("fcdense bench").parse_args(arguments[1:])
    else:
        options = cli._parser().parse_args(arguments)
        assert options.name == arguments[0]


def test_names_exist():
    names = re.findall(r"`(fc(?:\.\w+)+)", README)
    assert names
    for name in names:
        found = fc
        for part in name.split(".")[1:]:
            assert hasattr(found, part), f"README.md mentions {name}"
            found = getattr(found, part)


def test_files_that_are_linked_exist():
    root = Path(__file__).resolve().parent.parent
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (root / link).exists()] == []
