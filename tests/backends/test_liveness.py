"""Where temporary arrays are put: never two at once in one place, in not much more memory than is needed."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fcdense.backends.liveness import Span, place
from fcdense.layout import ALIGNMENT

FEW = 1 << 20

SPANS = st.builds(
    lambda nbytes, first, length: Span(nbytes, first, first + length),
    st.integers(1, 200_000),
    st.integers(0, 20),
    st.integers(0, 9),
)


def rounded(span: Span) -> int:
    return -(-span.nbytes // ALIGNMENT) * ALIGNMENT


@given(st.lists(SPANS, max_size=30))
def test_what_is_needed_at_once_lies_apart(spans):
    offsets, total = place(spans, FEW)
    assert all(offset % ALIGNMENT == 0 for offset in offsets)
    for (a, at), (b, there) in combinations(zip(spans, offsets, strict=True), 2):
        if a.first <= b.last and b.first <= a.last:
            assert at + a.nbytes <= there or there + b.nbytes <= at
    needed = [sum(rounded(s) for s in spans if s.first <= call <= s.last) for call in range(30)]
    assert max(needed, default=0) <= total <= sum(map(rounded, spans))


def test_a_chain_needs_two_places():
    spans = [Span(100_000, call, call + 1) for call in range(50)]
    offsets, total = place(spans, FEW)
    assert total == 2 * rounded(spans[0])
    assert len(set(offsets)) == 2


def test_few_bytes_share_no_place():
    spans = [Span(1000, call, call + 1) for call in range(50)]
    offsets, total = place(spans, FEW)
    assert total == 50 * 1024
    assert len(set(offsets)) == 50


def test_arrays_of_many_sizes_stay_near_the_least_memory():
    generator = np.random.default_rng(0)
    spans = [
        Span(int(size), int(first), int(first + length))
        for size, first, length in zip(
            generator.integers(1, 10**5, 300),
            generator.integers(0, 500, 300),
            generator.integers(1, 30, 300),
            strict=True,
        )
    ]
    needed = max(sum(rounded(s) for s in spans if s.first <= call <= s.last) for call in range(530))
    assert place(spans, FEW)[1] <= 1.3 * needed
