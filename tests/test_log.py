"""The logger, and the environment variable that shows its messages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fcdense
from fcdense import log

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def logger():
    """The logger without handlers, as it is before `configure`."""
    handlers, level = log.logger.handlers[:], log.logger.level
    log.logger.handlers.clear()
    yield log.logger
    log.logger.handlers[:] = handlers
    log.logger.setLevel(level)


@pytest.mark.parametrize(
    ("level", "shown"),
    [("debug", ["low", "mid", "high"]), ("INFO", ["mid", "high"]), ("warning", ["high"])],
)
def test_messages_of_a_level_and_above_are_shown(logger, capsys, level, shown):
    log.configure(level)
    logger.debug("low")
    logger.info("mid")
    logger.warning("%s", "high")
    assert capsys.readouterr().err.splitlines() == [f"fcdense: {message}" for message in shown]


@pytest.mark.parametrize("level", [None, ""])
def test_unset_leaves_logging_alone(logger, level):
    before = logger.level
    log.configure(level)
    assert (logger.handlers, logger.level) == ([], before)


def test_an_unknown_level_is_reported(logger, capsys):
    log.configure("verbose")
    logger.info("mid")
    assert capsys.readouterr().err == (
        "fcdense: FCDENSE_LOG is 'verbose'; expected debug, info, warning. Taken as 'warning'.\n"
    )


def test_the_environment_variable_is_read_at_import():
    code = "import fcdense; fcdense.device('auto')"
    environment = {**os.environ, "FCDENSE_LOG": "info"}
    environment.pop("FCDENSE_DEVICE", None)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    fallback = [] if len(fcdense.available_devices()) > 1 else ["fcdense: device 'auto' is the CPU"]
    assert [line[:33] for line in done.stderr.splitlines()] == fallback
    quiet = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**environment, "FCDENSE_LOG": ""}, capture_output=True, check=True
    )
    assert quiet.stderr == b""
