"""The quota merge: its properties, and equality with a plain Python reference."""

from collections.abc import Sequence
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtmh.retrieval import merge
from mtmh.retrieval.merge import find_overlaps, head_quotas, head_shares, quota_merge, taken_by_quota


def naive_merge(lists: Sequence[Sequence[int]], quotas: Sequence[int]) -> list[tuple[int, int]]:
    """(item, head) of one trigger, by the rule in the module's docstring, one item at a time."""
    taken: dict[int, int] = {}
    count = [0] * len(lists)
    for head, items in enumerate(lists):
        for item in items:
            if item >= 0 and count[head] < quotas[head] and item not in taken:
                taken[item] = head
                count[head] += 1
    for head, items in enumerate(lists):
        for item in items:
            if item >= 0 and len(taken) < sum(quotas) and item not in taken:
                taken[item] = head
    return [(item, head) for head, items in enumerate(lists) for item in items if taken.get(item) == head]


@st.composite
def merges(draw: st.DrawFn) -> tuple[list[np.ndarray], list[int]]:
    num_heads, num_triggers = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    quotas = draw(st.lists(st.integers(0, 6), min_size=num_heads, max_size=num_heads).filter(any))
    lists = []
    for _ in range(num_heads):
        width = draw(st.integers(1, 8))
        rows = [
            draw(st.lists(st.integers(0, 12), min_size=0, max_size=width, unique=True)) for _ in range(num_triggers)
        ]
        lists.append(np.array([row + [-1] * (width - len(row)) for row in rows], dtype=np.int64))
    return lists, quotas


@given(merges())
def test_equals_the_naive_merge(case: tuple[list[np.ndarray], list[int]]) -> None:
    lists, quotas = case
    merged = quota_merge(lists, quotas)
    for row in range(len(lists[0])):
        expected = naive_merge([head[row].tolist() for head in lists], quotas)
        expected += [(-1, -1)] * (sum(quotas) - len(expected))
        assert list(zip(merged.items[row].tolist(), merged.heads[row].tolist(), strict=True)) == expected


@given(merges())
def test_known_overlaps_change_nothing(case: tuple[list[np.ndarray], list[int]]) -> None:
    lists, quotas = case
    expected = taken_by_quota(lists, quotas)
    with patch.object(merge, "_COMPARISONS", 1):
        trigger_by_trigger = find_overlaps(lists)
    for overlaps in (find_overlaps(lists), trigger_by_trigger):
        for found, mask in zip(taken_by_quota(lists, quotas, overlaps), expected, strict=True):
            np.testing.assert_array_equal(found, mask)
    merged = quota_merge(lists, quotas)
    assert [int(mask.sum()) for mask in expected] == [int((merged.heads == head).sum()) for head in range(len(lists))]


@given(merges())
def test_properties(case: tuple[list[np.ndarray], list[int]]) -> None:
    lists, quotas = case
    k = sum(quotas)
    merged = quota_merge(lists, quotas)
    assert merged.items.shape == merged.heads.shape == merged.ranks.shape == (len(lists[0]), k)
    for row in range(len(lists[0])):
        items = [item for item in merged.items[row].tolist() if item >= 0]
        available = {item for head in lists for item in head[row].tolist() if item >= 0}
        assert len(items) == len(set(items)) == min(k, len(available))
        for head, quota in enumerate(quotas):
            ranks = merged.ranks[row][merged.heads[row] == head]
            assert (np.diff(ranks) > 0).all(), "each head's items keep that head's order"
            np.testing.assert_array_equal(lists[head][row][ranks], merged.items[row][merged.heads[row] == head])
            enough = all((lists[other][row] >= 0).sum() >= k for other in range(len(lists)))
            if enough:
                assert len(ranks) == quota


@given(st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_alpha_0_and_100_equal_one_head(k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    engagement, relevance = (np.stack([rng.permutation(40)[:20] for _ in range(3)]) for _ in range(2))
    for alpha, head, lists in ((100, 0, engagement), (0, 1, relevance)):
        merged = quota_merge([engagement, relevance], head_quotas(head_shares(alpha, 2), k))
        np.testing.assert_array_equal(merged.items, lists[:, :k])
        assert (merged.heads == head).all()


def test_blocks_of_triggers_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    lists = [np.stack([rng.permutation(60)[:30] for _ in range(50)]) for _ in range(2)]
    whole = quota_merge(lists, [15, 15])
    monkeypatch.setattr(merge, "_COMPARISONS", 30 * 30 * 2 * 7)
    np.testing.assert_array_equal(quota_merge(lists, [15, 15]).items, whole.items)


def test_no_triggers() -> None:
    empty = np.empty((0, 3), np.int64)
    assert quota_merge([empty, empty], [2, 1]).items.shape == (0, 3)


@given(st.floats(0, 100), st.integers(1, 5), st.integers(1, 200))
def test_quotas_are_within_one_of_the_share(alpha: float, num_heads: int, k: int) -> None:
    shares = head_shares(alpha, num_heads)
    quotas = head_quotas(shares, k)
    assert sum(quotas) == k
    assert all(abs(quota - share * k) < 1 + 1e-5 for quota, share in zip(quotas, shares, strict=True))


@pytest.mark.parametrize(
    ("alpha", "k", "expected"),
    [(50, 5, [3, 2]), (50, 30, [15, 15]), (29, 100, [29, 71]), (10, 5, [1, 4]), (99.9, 30, [30, 0]), (90, 4, [4, 0])],
)
def test_rounding(alpha: float, k: int, expected: list[int]) -> None:
    assert head_quotas(head_shares(alpha, 2), k) == expected


def test_more_heads_divide_the_rest() -> None:
    assert head_quotas(head_shares(40, 3), 10) == [4, 3, 3]
    assert head_quotas([0.2, 0.5, 0.3], 10) == [2, 5, 3]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="alpha is 101"):
        head_shares(101, 2)
    with pytest.raises(ValueError, match="sum to 1"):
        head_quotas([0.5, 0.6], 10)
    with pytest.raises(ValueError, match="one \\[T, K_h\\] array a head"):
        quota_merge([np.zeros((2, 3), int), np.zeros((3, 3), int)], [1, 1])
