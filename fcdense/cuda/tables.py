"""The tables of what `tune` measured: a file for one kind of GPU, version of the library and of the kernels."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fcdense.cuda.compile import headers
from fcdense.cuda.driver import Driver
from fcdense.cuda.plan import LIBRARY, NUMBA, Choice, Plan
from fcdense.cuda.tiling import MmaTiling, SimtTiling
from fcdense.errors import ArgumentError
from fcdense.kernels import code_cache
from fcdense.kernels.numba import gpu_compiler
from fcdense.log import logger


def plan_of(driver: Driver) -> Plan:
    """What a driver's products are served by: as measured, and else by counting."""
    return Plan(driver.architecture, driver.library is not None, not gpu_compiler.refusal(), read(driver))


def path_of(driver: Driver) -> Path:
    """The file of the table for a driver's GPU."""
    library = driver.library.version if driver.library is not None else "none"
    kernels = hashlib.sha256(b"".join(headers().values())).hexdigest()[:8]
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{driver.gpu} cublaslt {library} kernels {kernels}").strip("-").lower()
    return code_cache.folder_of("tuned") / f"{name}.json"


def read(driver: Driver) -> dict[str, Choice]:
    """The choices of a driver's table; none where there is no table, or none that can be understood."""
    path = path_of(driver)
    try:
        lines = json.loads(path.read_text(encoding="utf-8"))
        return {bucket: _choice(line) for bucket, line in lines.items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        logger.warning("%s cannot be read (%s): products are served as if nothing was measured.", path, error.strerror)
        return {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        logger.warning("%s is no table of measurements (%s); run 'fcdense tune' again.", path, error)
        return {}


def require_folder(driver: Driver) -> None:
    """Refuse to go on unless a table of this driver can be kept.

    Raises
    ------
    ArgumentError
        Its folder cannot be written to.
    """
    folder = path_of(driver).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ArgumentError(
            f"What is measured cannot be kept in {folder} ({error.strerror}); expected a folder that can be written "
            "to. Name one in FCDENSE_CACHE."
        ) from None


def write(driver: Driver, found: Mapping[str, Choice]) -> Path:
    """Put choices into the driver's table, beside what it has of other problems; the file."""
    path = path_of(driver)
    lines = {bucket: _line(choice) for bucket, choice in read(driver).items()}
    lines |= {bucket: _line(choice) for bucket, choice in found.items()}
    code_cache.write(path, (json.dumps(lines, indent=1, sort_keys=True) + "\n").encode())
    return path


def _line(choice: Choice) -> dict[str, Any]:
    return choice._asdict() | {"tiling": None if choice.tiling is None else list(choice.tiling)}


def _choice(line: dict[str, Any]) -> Choice:
    kind = {"simt": SimtTiling, "mma": MmaTiling, LIBRARY: None, NUMBA: None}[line["family"]]
    tiling = None if kind is None else kind(*map(int, line["tiling"]))
    return Choice(str(line["family"]), str(line["arithmetic"]), tiling, int(line["parts"]))
