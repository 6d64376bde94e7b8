"""What the tests of cuBLASLt's binding work on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fcdense.cuda.cublaslt import CublasLt
from tests.cuda.cublaslt_cases import SIZE, WORKSPACE
from tests.cuda.fake_cublaslt import FakeCublasLt


@pytest.fixture
def fake() -> Iterator[FakeCublasLt]:
    """A library, which must not have met anything that it does not understand."""
    library = FakeCublasLt()
    yield library
    assert not library.errors


@pytest.fixture
def binding(fake: FakeCublasLt) -> Iterator[CublasLt]:
    """Its binding, which must not leave anything behind."""
    made = CublasLt(WORKSPACE, SIZE, fake)
    yield made
    made.close()
    assert not fake.live
