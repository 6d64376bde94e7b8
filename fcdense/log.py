"""The logger "fcdense". FCDENSE_LOG=debug, info or warning shows its messages on standard error."""

from __future__ import annotations

import logging
import os

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}

logger = logging.getLogger("fcdense")


def configure(level: str | None) -> None:
    """Show messages of `level` and above; None or "" leaves logging to the application.

    An unknown level is reported and taken as "warning": it comes from the environment, where it must not make
    `import fcdense` fail.
    """
    if not level:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("fcdense: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(LEVELS.get(level.lower(), logging.WARNING))
    if level.lower() not in LEVELS:
        logger.warning("FCDENSE_LOG is %r; expected %s. Taken as 'warning'.", level, ", ".join(LEVELS))


configure(os.environ.get("FCDENSE_LOG"))
