"""Ranges of bounded total: they cover everything once, in order, and none is much larger than the limit."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mtmh.prepare.ranges import bounded_ranges


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 80))
def test_ranges_cover_everything_and_stay_bounded(counts: list[int], limit: int) -> None:
    ranges = bounded_ranges(np.array(counts, np.int64), limit)
    assert [i for start, stop in ranges for i in range(start, stop)] == list(range(len(counts)))
    for start, stop in ranges:
        assert sum(counts[start:stop]) < limit + max(counts[start:stop]) or sum(counts[start:stop]) <= limit
    assert len(ranges) <= 1 + sum(counts) // limit
