"""Yardsticks against plain NumPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtmh.data.histories import Histories
from mtmh.evaluation.baselines import ContentSearch, Cooccurrence, popularity
from mtmh.evaluation.protocol import Cohort
from mtmh.retrieval.ranking import Requests

NUM_ITEMS = 9


def ragged(lists: list[list[int]]) -> Histories:
    items = np.array([item for row in lists for item in row], np.int32)
    items.flags.writeable = False  # as of a memory-mapped file
    return Histories(items, np.cumsum([0, *map(len, lists)]))


def naive_cosine(lists: list[list[int]]) -> np.ndarray:
    engaged = np.zeros((len(lists), NUM_ITEMS))
    for user, row in enumerate(lists):
        engaged[user, row] = 1
    norms = np.sqrt(np.maximum(engaged.sum(axis=0), 1))
    return (engaged / norms).T @ (engaged / norms)


@given(st.lists(st.lists(st.integers(0, NUM_ITEMS - 2), max_size=6), min_size=1, max_size=8))
def test_cooccurrence_equals_numpy(lists: list[list[int]]) -> None:
    cosine = naive_cosine(lists)
    triggers = np.arange(NUM_ITEMS)
    found = Cooccurrence(ragged(lists), NUM_ITEMS).search(triggers, k=4)
    for trigger in triggers:
        others = [item for item in range(NUM_ITEMS) if item != trigger and cosine[trigger, item] > 0]
        expected = np.sort(cosine[trigger, others])[::-1][:4]
        items = found.items[trigger][: len(expected)]
        np.testing.assert_allclose(found.scores[trigger][: len(expected)], expected, rtol=1e-5)
        np.testing.assert_allclose(cosine[trigger, items], expected, rtol=1e-5)
        assert len(set(items.tolist())) == len(expected)
        assert trigger not in items
        assert (found.items[trigger][len(expected) :] == -1).all()


def test_cooccurrence_ties_go_to_the_lower_index() -> None:
    found = Cooccurrence(ragged([[3, 0, 7, 5]]), NUM_ITEMS).search(np.array([5]), k=2)
    assert found.items.tolist() == [[0, 3]]


def test_cooccurrence_scores_a_candidate_by_the_sum_over_the_history() -> None:
    lists = [[0, 1, 2], [0, 2, 3], [1, 3], [4]]
    cosine = naive_cosine(lists)
    yardstick = Cooccurrence(ragged(lists), NUM_ITEMS)
    requests = Requests(np.array([0, 1, 3]), np.array([0, 0, 1]), np.array([[0, 1], [3, -1]]))
    candidates = yardstick.search(requests.triggers, k=3)
    scores = yardstick.score(requests, candidates)
    for row, history in enumerate(([0, 1], [0, 1], [3])):
        for item, score in zip(candidates.items[row], scores[row], strict=True):
            assert score == pytest.approx(cosine[history, item].sum() if item >= 0 else -np.inf, rel=1e-5)


def test_items_without_content_neither_ask_nor_answer() -> None:
    vectors = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[[1, 4]] = 0
    found = ContentSearch(vectors).search(np.array([0, 1, 5]), k=5)
    assert sorted(found.items[0].tolist()) == [-1, -1, 2, 3, 5]
    assert (found.items[1] == -1).all()
    similarity = vectors @ vectors[5]
    assert found.items[2][:3].tolist() == sorted([0, 2, 3], key=lambda item: -similarity[item])


def test_popularity_skips_seen_items_and_the_trigger() -> None:
    counts = np.array([5, 9, 1, 7, 9, 0])  # ranking 1 4 3 0 2 5
    seen = ragged([[1, 0], [3]])
    cohort = Cohort(np.arange(2), np.array([[1, 0], [3, -1]]), seen, ragged([[2], [2]]), 0)
    answers, lists = popularity(cohort, counts, k=2, length=5)
    assert lists.tolist() == [[4, 3, 2, 5, -1], [1, 4, 0, 2, 5]]
    assert (answers.users.tolist(), answers.triggers.tolist()) == ([0, 0, 1], [1, 0, 3])
    assert answers.items.tolist() == [[4, 3], [4, 3], [1, 4]]
    nothing_seen = Cohort(np.arange(1), np.array([[4, 3]]), ragged([[]]), ragged([[2]]), 0)
    answers, lists = popularity(nothing_seen, counts, k=2, length=3)
    assert answers.items.tolist() == [[1, 3], [1, 4]]
    assert lists.tolist() == [[1, 4, 3]]
