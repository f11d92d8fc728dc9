"""Yardsticks against plain NumPy."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from mtmh.data.histories import Histories
from mtmh.evaluation.als import Als
from mtmh.evaluation.baselines import ContentSearch, Cooccurrence, popularity
from mtmh.evaluation.cohort import Cohort
from mtmh.evaluation.ease import Ease
from mtmh.evaluation.whole_lists import whole_lists
from mtmh.preranking.neighbours import engagement_matrix

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
    found = Cooccurrence(engagement_matrix(ragged(lists), NUM_ITEMS)).search(triggers, k=4)
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
    found = Cooccurrence(engagement_matrix(ragged([[3, 0, 7, 5]]), NUM_ITEMS)).search(np.array([5]), k=2)
    assert found.items.tolist() == [[0, 3]]


def test_cooccurrence_scores_the_catalogue_by_the_sum_over_the_history() -> None:
    lists = [[0, 1, 2], [0, 2, 3], [1, 3], [4]]
    cosine = naive_cosine(lists)
    np.fill_diagonal(cosine, 0)
    histories = engagement_matrix(ragged([[0, 1, 1], [3], []]), NUM_ITEMS)
    scores = Cooccurrence(engagement_matrix(ragged(lists), NUM_ITEMS)).score(histories)
    np.testing.assert_allclose(scores, [cosine[[0, 1]].sum(axis=0), cosine[3], np.zeros(NUM_ITEMS)], atol=2e-6)
    assert np.argsort(-scores[2], kind="stable").tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8], "without a sum by popularity"


@given(st.lists(st.lists(st.integers(0, NUM_ITEMS - 2), min_size=1, max_size=6), min_size=2, max_size=8))
def test_ease_equals_its_closed_form(lists: list[list[int]]) -> None:
    engaged = engagement_matrix(ragged(lists), NUM_ITEMS)
    known = np.unique(np.concatenate(lists))
    dense = engaged.toarray().astype(np.float64)[:, known]
    inverse = np.linalg.inv(dense.T @ dense + 2.0 * np.eye(len(known)))
    weights = np.eye(len(known)) - inverse / np.diag(inverse)
    yardstick = Ease(engaged, 2.0)
    scores = yardstick.score(engaged)
    np.testing.assert_allclose(scores[:, known], dense @ weights, atol=1e-5)
    assert np.isneginf(np.delete(scores, known, axis=1)).all(), "items without an event"
    found = yardstick.search(np.arange(NUM_ITEMS), k=4)
    for trigger in range(NUM_ITEMS):
        place = np.flatnonzero(known == trigger)
        expected = np.sort(np.delete(weights[place[0]], place))[::-1][:4] if len(place) else np.empty(0)
        np.testing.assert_allclose(found.scores[trigger][: len(expected)], expected, atol=1e-5)
        assert (found.items[trigger][len(expected) :] == -1).all()
        assert trigger not in found.items[trigger]


def test_als_finds_the_users_block() -> None:
    pytest.importorskip("implicit")
    # Two groups of users with items of their own: 0 to 3 and 4 to 7.
    rng = np.random.default_rng(0)
    lists = [(rng.permutation(4)[:3] + 4 * (user % 2)).tolist() for user in range(40)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # implicit's, of the threads of BLAS
        yardstick = Als(engagement_matrix(ragged(lists), NUM_ITEMS), seed=0, factors=2)
    scores = yardstick.score(engagement_matrix(ragged([[0, 1], [5, 6]]), NUM_ITEMS))
    assert np.isneginf(scores[:, 8]).all()
    assert scores[0, 2:4].min() > scores[0, 4:8].max()
    assert scores[1, [4, 7]].min() > scores[1, :4].max()
    assert set(yardstick.search(np.array([0]), k=3).items[0].tolist()) == {1, 2, 3}


def test_a_list_of_the_whole_catalogue_leaves_seen_items_out() -> None:
    histories, seen = ragged([[1, 0], [3]]), ragged([[1, 0], []])
    cohort = Cohort(np.arange(2), histories, np.array([[0, 1], [3, -1]]), seen, ragged([[2], [2]]), 0)

    def score(engaged: sparse.csr_matrix) -> np.ndarray:
        scores = np.arange(10.0, dtype=np.float32)[None, :] - 100 * engaged.toarray()
        scores[:, 9] = -np.inf
        return scores

    lists = whole_lists(cohort, score, num_items=10, length=9)
    assert lists.tolist() == [[8, 7, 6, 5, 4, 3, 2, -1, -1], [8, 7, 6, 5, 4, 2, 1, 0, 3]]


def test_items_without_content_neither_ask_nor_answer() -> None:
    vectors = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[[1, 4]] = 0
    found = ContentSearch(vectors).search(np.array([0, 1, 5]), k=5)
    assert sorted(found.items[0].tolist()) == [-1, -1, 2, 3, 5]
    assert (found.items[1] == -1).all()
    similarity = vectors @ vectors[5]
    assert found.items[2][:3].tolist() == sorted([0, 2, 3], key=lambda item: -similarity[item])


def test_content_scores_the_catalogue_by_the_sum_over_the_history() -> None:
    vectors = np.random.default_rng(0).normal(size=(NUM_ITEMS, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[4] = 0
    scores = ContentSearch(vectors).score(engagement_matrix(ragged([[1, 2]]), NUM_ITEMS))
    assert np.isneginf(scores[0, 4])
    kept = np.delete(np.arange(NUM_ITEMS), 4)
    np.testing.assert_allclose(scores[0, kept], vectors[kept] @ (vectors[1] + vectors[2]), rtol=1e-5)


def test_popularity_skips_seen_items_and_the_trigger() -> None:
    counts = np.array([5, 9, 1, 7, 9, 0])  # ranking 1 4 3 0 2 5
    seen = ragged([[1, 0], [3]])
    cohort = Cohort(np.arange(2), seen, np.array([[1, 0], [3, -1]]), seen, ragged([[2], [2]]), 0)
    answers, lists = popularity(cohort, counts, k=2, length=5)
    assert lists.tolist() == [[4, 3, 2, 5, -1], [1, 4, 0, 2, 5]]
    assert (answers.users.tolist(), answers.triggers.tolist()) == ([0, 0, 1], [1, 0, 3])
    assert answers.items.tolist() == [[4, 3], [4, 3], [1, 4]]
    nothing_seen = Cohort(np.arange(1), ragged([[3, 4]]), np.array([[4, 3]]), ragged([[]]), ragged([[2]]), 0)
    answers, lists = popularity(nothing_seen, counts, k=2, length=3)
    assert answers.items.tolist() == [[1, 3], [1, 4]]
    assert lists.tolist() == [[1, 4, 3]]
