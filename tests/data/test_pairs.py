"""Expansion of histories to pairs against a naive double loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtmh.data.histories import Histories, concatenate_histories
from mtmh.data.pairs import Direction, count_pairs, expand_pairs


def flat(histories: list[list[int]]) -> Histories:
    offsets = np.cumsum([0, *map(len, histories)], dtype=np.int64)
    return Histories(np.array([item for history in histories for item in history], np.int32), offsets)


def naive_pairs(histories: list[list[int]], window: int, direction: Direction) -> list[tuple[int, int, int]]:
    pairs = []
    for row, history in enumerate(histories):
        for later in range(len(history)):
            for earlier in range(max(0, later - window), later):
                pairs.append((history[earlier], history[later], row))
                if direction == "both":
                    pairs.append((history[later], history[earlier], row))
    return pairs


some_histories = st.lists(st.lists(st.integers(0, 9), max_size=12), max_size=8)


@given(some_histories, st.integers(1, 14), st.sampled_from(["forward", "both"]))
def test_pairs_are_those_of_the_double_loop(histories: list[list[int]], window: int, direction: Direction) -> None:
    pairs = expand_pairs(flat(histories), window, direction)
    found = list(zip(pairs.trigger.tolist(), pairs.candidate.tolist(), pairs.row.tolist(), strict=True))
    assert found == naive_pairs(histories, window, direction)
    assert all(array.dtype == np.int32 for array in pairs)


@given(some_histories, st.integers(1, 14), st.sampled_from(["forward", "both"]))
def test_counts_follow_from_lengths(histories: list[list[int]], window: int, direction: Direction) -> None:
    lengths = np.array([len(history) for history in histories], np.int32)
    expected = [len(naive_pairs([history], window, direction)) for history in histories]
    assert count_pairs(lengths, window, direction).tolist() == expected


def test_counts_of_long_histories_do_not_overflow() -> None:
    lengths = np.array([2_000_000_000], np.int32)
    assert count_pairs(lengths, 1_000_000, "both")[0] == 2 * (1_000_000 * 999_999 // 2 + 1_999_000_000 * 1_000_000)


@given(some_histories, st.data())
def test_a_slice_of_users_holds_their_histories(histories: list[list[int]], data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(histories)))
    end = data.draw(st.integers(first, len(histories)))
    part = flat(histories).users(first, end)
    expected = flat(histories[first:end])
    assert part.items.tolist() == expected.items.tolist()
    assert part.offsets.tolist() == expected.offsets.tolist()


@given(some_histories, some_histories, st.data())
def test_selected_users_in_order_cut_to_their_last_items(
    left: list[list[int]], right: list[list[int]], data: st.DataObject
) -> None:
    both = left + right
    rows = data.draw(st.lists(st.integers(0, len(both) - 1), max_size=10) if both else st.just([]))
    last = data.draw(st.one_of(st.none(), st.integers(1, 5)))
    found = concatenate_histories([flat(left), flat(right)]).select(np.array(rows, np.int64), last)
    expected = flat([both[row][-last:] if last else both[row] for row in rows])
    assert found.items.tolist() == expected.items.tolist()
    assert found.offsets.tolist() == expected.offsets.tolist()


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_an_item_that_comes_again_pairs_with_itself(direction: Direction) -> None:
    pairs = expand_pairs(flat([[4, 4]]), 3, direction)
    assert set(zip(pairs.trigger.tolist(), pairs.candidate.tolist(), strict=True)) == {(4, 4)}
    assert len(pairs.row) == count_pairs(np.array([2]), 3, direction)[0]
