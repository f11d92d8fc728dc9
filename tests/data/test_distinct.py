"""Distinct indices through the table and by sorting, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtmh.data import distinct as module
from mtmh.data.distinct import Distinct

calls = st.lists(st.lists(st.integers(0, 29), max_size=40), min_size=1, max_size=4)


@pytest.mark.parametrize("table_rows", [1 << 26, 5])
@given(calls=calls)
def test_equals_unique_call_after_call(table_rows: int, calls: list[list[int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_TABLE_ROWS", table_rows)
        distinct = Distinct()
        for indices in calls:
            array = np.array(indices, np.int32)
            values, rows = distinct(array, max(indices, default=0) + 1)
            expected, inverse = np.unique(array, return_inverse=True)
            assert values.tolist() == expected.tolist()
            assert rows.tolist() == inverse.tolist()
            assert values.dtype == rows.dtype == np.int64
            assert array.tolist() == indices
