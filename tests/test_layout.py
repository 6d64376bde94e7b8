"""Layouts: aligned places, no two in one place, and the fewest spans."""

from __future__ import annotations

import itertools

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import pytest
from hypothesis import given

from fcdense.layout import ALIGNMENT, Layout, Slot, Span

entries = st.lists(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9), max_size=8).map(
    lambda shapes: [(f"layers.{i}", shape) for i, shape in enumerate(shapes)]
)
itemsizes = st.sampled_from([2, 4, 8])


def test_by_hand() -> None:
    layout = Layout.pack([("kernel", (3, 5)), ("bias", (5,)), ("scale", ()), ("last", (16,))], 4)
    assert layout.slots == (
        Slot("kernel", (3, 5), 0),
        Slot("bias", (5,), 16),
        Slot("scale", (), 32),
        Slot("last", (16,), 48),
    )
    assert layout.size == 64
    assert [slot.size for slot in layout.slots] == [15, 5, 1, 16]
    assert [slot.stop for slot in layout.slots] == [15, 21, 33, 64]
    assert [layout.end(i) for i in range(4)] == [16, 32, 48, 64]


def test_nothing() -> None:
    layout = Layout.pack([], 4)
    assert layout == Layout((), 0)
    assert layout.spans([]) == []


def test_shapes_may_be_lists() -> None:
    layout = Layout.pack([("kernel", [2, 3])], 4)  # type: ignore[list-item]
    assert layout.slots[0].shape == (2, 3)
    assert hash(layout) == hash(Layout.pack([("kernel", (2, 3))], 4))


@pytest.mark.parametrize(
    ("indices", "spans"),
    [
        ([0], [Span(0, 16)]),
        ([0, 1, 2, 3], [Span(0, 64)]),
        ([1, 2], [Span(16, 48)]),
        ([0, 2, 3], [Span(0, 16), Span(32, 64)]),
        ([0, 2], [Span(0, 16), Span(32, 48)]),
        ([], []),
    ],
)
def test_spans(indices: list[int], spans: list[Span]) -> None:
    layout = Layout.pack([("a", (3, 5)), ("b", (5,)), ("c", ()), ("d", (16,))], 4)
    assert layout.spans(indices) == spans


@given(entries=entries, itemsize=itemsizes)
def test_slots_are_aligned_and_apart(entries: list[tuple[str, tuple[int, ...]]], itemsize: int) -> None:
    layout = Layout.pack(entries, itemsize)
    assert [(slot.name, slot.shape) for slot in layout.slots] == entries
    end = 0
    for slot in layout.slots:
        assert slot.offset * itemsize % ALIGNMENT == 0
        assert end <= slot.offset < end + ALIGNMENT // itemsize  # no gap is longer than it has to be
        end = slot.stop
    assert end <= layout.size < end + ALIGNMENT // itemsize
    assert layout.size * itemsize % ALIGNMENT == 0


@given(entries=entries, itemsize=itemsizes, data=st.data())
def test_spans_hold_exactly_these_slots(
    entries: list[tuple[str, tuple[int, ...]]], itemsize: int, data: st.DataObject
) -> None:
    layout = Layout.pack(entries, itemsize)
    chosen = [i for i in range(len(entries)) if data.draw(st.booleans())]
    spans = layout.spans(chosen)
    covered = [element for span in spans for element in range(span.start, span.stop)]
    assert len(covered) == len(set(covered))
    for i, slot in enumerate(layout.slots):
        assert (i in chosen) or not set(range(slot.offset, slot.stop)) & set(covered)
        assert (i not in chosen) or set(range(slot.offset, slot.stop)) <= set(covered)
    for before, after in itertools.pairwise(spans):
        assert before.stop < after.start, "these two could be one"
