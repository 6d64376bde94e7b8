"""Peak: the most float32 operations in a second that this processor does, as a small C program finds it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("peak.c")


def gflops(threads: int) -> tuple[float | None, str]:
    """Billions of operations per second on so many threads, or None and the reason; takes a second or less."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None, "there is no C compiler (gcc or cc) to build bench/peak.c with."
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "peak")
        build = [compiler, "-O2", "-march=native", "-ffp-contract=fast", "-pthread", str(SOURCE), "-o", str(program)]
        try:
            subprocess.run(build, check=True, capture_output=True, text=True)
            done = subprocess.run([str(program), str(threads)], check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
            return None, f"bench/peak.c cannot be built and run: {said[-1] if said else error}"
    return float(done.stdout), ""
