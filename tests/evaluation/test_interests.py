"""Figures of lists on an example small enough to compute by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mtmh.data.histories import Histories
from mtmh.evaluation.interests import Interests, match_at, young_items
from mtmh.evaluation.metrics import hits_in

#              item: 0  1  2  3  4   5
TOPICS = np.array([0, 0, 1, 2, 2, -1])
HISTORIES = Histories(np.array([0, 5, 2], np.int32), np.array([0, 2, 3]))  # topics 0; 1
TRUTH = Histories(np.array([1, 2, 3, 4], np.int32), np.array([0, 3, 4]))  # topics 0, 1, 2; 2
LISTS = np.array([[2, 5, 4, 1], [3, 1, 0, -1]])


@pytest.fixture(name="interests")
def fixture_interests() -> Interests:
    return Interests(TOPICS, HISTORIES, TRUTH)


def test_interest_recall_counts_topics_whatever_the_item(interests: Interests) -> None:
    found = interests.covered(LISTS, [1, 4])
    assert [part.tolist() for part in found[1]] == [[1, 1], [3, 1]]  # topic 1 of user 0; topic 2 of user 1
    assert [part.tolist() for part in found[4]] == [[3, 1], [3, 1]]


def test_discovery_counts_topics_of_hits_that_are_new_to_the_user(interests: Interests) -> None:
    hits = hits_in(LISTS, TRUTH.items, TRUTH.offsets)
    found = interests.discovered(LISTS, hits, [1, 4])
    # User 0 knows topic 0. Item 2 is a hit of topic 1; item 4, of topic 2, is none. User 1's item 3 is no hit.
    assert [part.tolist() for part in found[1]] == [[1, 0], [2, 1]]
    assert [part.tolist() for part in found[4]] == [[1, 0], [2, 1]]


def test_diversity_is_the_share_of_pairs_of_different_topics(interests: Interests) -> None:
    found = interests.diversity(LISTS, [2, 4])
    assert [part.tolist() for part in found[2]] == [[0, 1], [0, 1]]  # user 0 has one item with a topic, so no pair
    # User 0: topics 1, 2, 0, all different. User 1: 2, 0, 0: two of three pairs differ.
    np.testing.assert_allclose(found[4][0], [1, 2 / 3])


def test_match_goes_by_the_trigger_that_brought_the_item() -> None:
    brought_by = np.array([[3, 3, 3, 0], [4, 5, -1, -1]])
    found = match_at(LISTS, brought_by, TOPICS, [2, 4])
    assert [part.tolist() for part in found[2]] == [[0, 1], [1, 1]]
    assert [part.tolist() for part in found[4]] == [[2, 1], [3, 1]]


def test_an_item_is_young_for_two_days_or_while_it_has_no_event() -> None:
    day = 24 * 3600.0
    first_seen = np.array([7 * day, 8 * day, 8 * day + 1, np.nan])
    assert young_items(first_seen, 10 * day).tolist() == [False, False, True, True]
