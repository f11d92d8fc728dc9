"""Accidental hits against a plain loop."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mtmh.modules import accidental_hits

ids = st.integers(-3, 6) | st.sampled_from([-(2**63), 2**63 - 1])


@settings(max_examples=200, deadline=None)
@given(
    histories=st.lists(st.lists(ids, max_size=6), min_size=1, max_size=5),
    negatives=st.lists(ids, max_size=12),
    data=st.data(),
)
def test_equals_a_loop_over_all_pairs(histories: list[list[int]], negatives: list[int], data: st.DataObject) -> None:
    row_to_history = data.draw(st.lists(st.integers(0, len(histories) - 1), max_size=8))
    lengths = torch.tensor([0, *(len(history) for history in histories)])
    rows, columns = accidental_hits(
        history_values=torch.tensor([*chain.from_iterable(histories)], dtype=torch.int64),
        history_offsets=lengths.cumsum(0),
        row_to_history=torch.tensor(row_to_history, dtype=torch.int64),
        negative_ids=torch.tensor(negatives, dtype=torch.int64),
    )
    assert rows.dtype == columns.dtype == torch.int64
    assert rows.tolist() == sorted(rows.tolist())
    expected = [
        (row, column)
        for row, history in enumerate(row_to_history)
        for column, negative in enumerate(negatives)
        if negative in histories[history]
    ]
    assert sorted(zip(rows.tolist(), columns.tolist(), strict=True)) == expected


def test_offsets_must_span_the_values() -> None:
    with pytest.raises(ValueError, match="must end at the number of history_values"):
        accidental_hits(torch.arange(3), torch.tensor([0, 2]), torch.tensor([0]), torch.arange(3))
