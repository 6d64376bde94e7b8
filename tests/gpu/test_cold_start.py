"""A usual network is trained soon after `import fcdense`, also where no kernel was ever compiled."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cuda.cold_start import in_a_new_process

pytestmark = [pytest.mark.gpu, pytest.mark.alone]
SECONDS = 3.0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_first_epoch(precision: str, tmp_path: Path) -> None:
    seconds = in_a_new_process("cuda", precision, tmp_path)
    message = f"cold start in {precision}: {seconds:.2f} s to the end of the first epoch, expected {SECONDS:g}"
    print(message)
    assert seconds < SECONDS, message
