"""Every activation and its derivative on a real GPU, whose functions are not those of the processor."""

from __future__ import annotations

from typing import Any

import pytest

import fcdense as fc
from tests.cuda.accuracy import NAMES, assert_accurate, assert_as_good_as_bfloat16

pytestmark = pytest.mark.gpu


@pytest.fixture
def backend() -> Any:
    return fc.device("cuda").backend


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_accurate(name: str, backend: Any) -> None:
    assert_accurate(name, backend)


@pytest.mark.parametrize("name", NAMES)
def test_approximations_are_as_good_as_bfloat16(name: str, backend: Any) -> None:
    assert_as_good_as_bfloat16(name, backend)
