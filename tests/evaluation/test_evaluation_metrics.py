"""Every metric on an example small enough to compute by hand."""

import numpy as np
import pytest

from mtmh.evaluation.metrics import (
    Bootstrap,
    coverage,
    hits_in,
    marked_counts,
    ndcg_at,
    popular_items,
    popularity_bands,
    recall_at,
    topic_matches,
    topic_sets,
)

LISTS = np.array([[4, 2, 7, 1], [3, 0, -1, -1]])


def test_recall() -> None:
    # User 0 later engaged with 2, 1 and 9; user 1 with 3.
    hits = hits_in(LISTS, np.array([2, 1, 9, 3]), np.array([0, 3, 4]))
    np.testing.assert_allclose(recall_at(hits, np.array([3, 1]), [1, 2, 4]), [[0, 1 / 3, 2 / 3], [1, 1, 1]])


def test_recall_does_not_count_padding_or_other_users_items() -> None:
    # Item 9 is beyond every list: keys of the padding must not run into it.
    hits = hits_in(np.array([[3, -1], [-1, -1]]), np.array([9, 3]), np.array([0, 1, 2]))
    np.testing.assert_array_equal(recall_at(hits, np.array([1, 1]), [2]), [[0], [0]])


def test_ndcg() -> None:
    # User 0 has hits at places 2 and 4 of 3 future items; user 1 at place 1 of 1.
    hits = hits_in(LISTS, np.array([2, 1, 9, 3]), np.array([0, 3, 4]))
    gain = 1 / np.log2(np.arange(4) + 2.0)
    expected = [
        [0, gain[1] / gain[:2].sum(), (gain[1] + gain[3]) / gain[:3].sum(), (gain[1] + gain[3]) / gain[:3].sum()],
        [1, 1, 1, 1],
    ]
    np.testing.assert_allclose(ndcg_at(hits, np.array([3, 1]), [1, 2, 4, 9]), expected)


def test_topic_match_leaves_out_items_without_topic() -> None:
    topics = np.array([0, 0, 1, -1, 1])
    matches, pairs = topic_matches(np.array([0, 2, 3]), np.array([[1, 2, 3], [4, -1, 0], [0, 1, 2]]), topics)
    assert matches.tolist() == [1, 1, 0]
    assert pairs.tolist() == [2, 2, 0]


def test_topic_sets_match_by_any_topic_in_common() -> None:
    sets = topic_sets(["Comedy|Action", "Action", "Drama", None, "Comedy|Drama", "Drama|Drama"], "|")
    assert sets[3] == -1
    items = np.array([[1, 2, 4], [3, 4, -1], [4, 5, 0]])
    matches, pairs = topic_matches(np.array([0, 1, 2]), items, sets, sets=True)
    # Action, nothing, Comedy; no topics, nothing, no item; Drama, Drama, nothing.
    assert matches.tolist() == [2, 0, 2]
    assert pairs.tolist() == [3, 1, 3]
    with pytest.raises(ValueError, match="at most 62"):
        topic_sets([str(number) for number in range(63)], "|")


def test_coverage() -> None:
    assert coverage(LISTS, 12) == 0.5


def test_popular_items_and_their_share() -> None:
    counts = np.zeros(200, np.int64)
    counts[[7, 3, 90]] = [50, 80, 50]
    popular = popular_items(counts)
    assert np.flatnonzero(popular).tolist() == [3, 7]
    hits, all_ = marked_counts(LISTS, popular)
    assert (hits.tolist(), all_.tolist()) == ([1, 1], [4, 2])
    assert popular_items(np.array([0, 5])).tolist() == [False, True]


def test_triggers_stand_in_bands_of_popularity() -> None:
    counts = np.array([0, *range(20, 0, -1)])  # 20 items with events, item 20 has one
    bands = popularity_bands(counts)
    assert bands[0] == -1
    assert np.flatnonzero(bands == 2).tolist() == [1, 2]
    assert np.flatnonzero(bands == 0).tolist() == [19, 20]
    assert (bands == 1).sum() == 16


def test_bootstrap_of_a_mean_has_the_textbook_standard_error() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    estimate = Bootstrap(400, num_resamples=2000).mean(values)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.standard_error == pytest.approx(values.std(ddof=1) / 20, rel=0.08)
    assert estimate.low == pytest.approx(values.mean() - 1.96 * estimate.standard_error, abs=0.03)
    assert estimate.high == pytest.approx(values.mean() + 1.96 * estimate.standard_error, abs=0.03)


def test_bootstrap_of_a_ratio_keeps_a_users_pairs_together() -> None:
    # 50 users with 100 identical pairs each: as uncertain as 50 answers, not as 5000.
    rng = np.random.default_rng(1)
    matches = rng.integers(0, 2, 50) * 100.0
    estimate = Bootstrap(50).ratio(matches, np.full(50, 100.0))
    assert estimate is not None
    share = matches.mean() / 100
    assert estimate.value == pytest.approx(share)
    assert estimate.standard_error == pytest.approx(np.sqrt(share * (1 - share) / 50), rel=0.15)


def test_nothing_to_measure_is_none() -> None:
    assert Bootstrap(3).ratio(np.zeros(3), np.zeros(3)) is None
