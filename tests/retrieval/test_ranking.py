"""Prerankers against plain NumPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtmh.retrieval.ranking import Candidates, HeadScorePreranker, HistoryPreranker, Requests, prerank, top_columns

RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(30, 6)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)


def candidates_of(triggers: np.ndarray, width: int, rng: np.random.Generator) -> Candidates:
    items = np.stack([rng.permutation(30)[:width] for _ in triggers])
    items[:, -1] = -1
    scores = np.einsum("td,tcd->tc", VECTORS[triggers], VECTORS[items])
    return Candidates("engagement", items, np.where(items >= 0, scores, -np.inf).astype(np.float32))


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_history_score_is_the_soft_maximum_over_the_history(temperature: float) -> None:
    histories = np.array([[1, 2, 3], [4, -1, -1], [-1, -1, -1]])
    # Users of the triggers are in no order, and one has no history.
    requests = Requests(np.array([1, 4, 2, 9]), np.array([0, 1, 0, 2]), histories)
    candidates = candidates_of(requests.triggers, 7, RNG)
    scores = HistoryPreranker("engagement", VECTORS, temperature).score(requests, candidates)
    wide = VECTORS.astype(np.float64)
    for row, user in enumerate(requests.users):
        history = histories[user][histories[user] >= 0]
        for item, score in zip(candidates.items[row], scores[row], strict=True):
            expected = -np.inf
            if item >= 0 and len(history):
                expected = temperature * np.log(np.exp(wide[history] @ wide[item] / temperature).sum())
            assert score == pytest.approx(expected, abs=1e-5)
    assert scores.dtype == np.float32


def test_a_history_of_one_item_scores_by_cosine() -> None:
    requests = Requests.anonymous(np.array([5, 6]))
    candidates = candidates_of(requests.triggers, 8, RNG)
    scores = HistoryPreranker("engagement", VECTORS, 0.07).score(requests, candidates)
    np.testing.assert_allclose(scores, candidates.scores, atol=1e-6)


def test_head_score_keeps_the_order_of_the_search() -> None:
    requests = Requests.anonymous(np.array([5]))
    candidates = Candidates("any", np.array([[3, 1, 2, -1]]), np.array([[0.9, 0.8, 0.7, -np.inf]], np.float32))
    kept = prerank(HeadScorePreranker(), requests, candidates, 2)
    assert (kept.items.tolist(), kept.scores.tolist()) == ([[3, 1]], [[np.float32(0.9), np.float32(0.8)]])


def test_a_judging_head_scores_the_candidates_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtmh.retrieval.ranking._GATHERED_FLOATS", 7 * 6 * 2)
    requests = Requests.anonymous(np.array([5, 6, 9, 1, 2]))
    found = candidates_of(requests.triggers, 7, RNG)
    of_another = Candidates("relevance", found.items, np.where(found.items >= 0, 0.5, -np.inf).astype(np.float32))
    judged = HeadScorePreranker(("engagement", VECTORS))
    np.testing.assert_allclose(judged.score(requests, of_another), found.scores, atol=1e-6)
    assert judged.score(requests, found) is found.scores


def test_banned_and_missing_candidates_are_not_kept() -> None:
    requests = Requests.anonymous(np.array([5]))
    candidates = Candidates("any", np.array([[3, 1, 2, -1]]), np.array([[0.9, 0.8, 0.7, -np.inf]], np.float32))
    kept = prerank(HeadScorePreranker(), requests, candidates, 6, banned=np.array([[True, False, False, False]]))
    assert kept.items.tolist() == [[1, 2, -1, -1, -1, -1]]
    assert np.isneginf(kept.scores[0, 2:]).all()


def test_preranking_reorders_by_its_own_score_and_keeps_the_similarity() -> None:
    requests = Requests(np.array([5]), np.array([0]), np.array([[7, 8]]))
    candidates = candidates_of(requests.triggers, 20, RNG)
    kept = prerank(HistoryPreranker("engagement", VECTORS, 0.1), requests, candidates, 5)
    wide = VECTORS.astype(np.float64)
    odds = np.exp(wide[candidates.items[0, :-1]] @ wide[[7, 8]].T / 0.1).sum(axis=1)
    assert kept.items[0].tolist() == candidates.items[0, :-1][np.argsort(-odds)[:5]].tolist()
    np.testing.assert_allclose(kept.scores[0], VECTORS[kept.items[0]] @ VECTORS[5], atol=1e-6)


@given(
    st.lists(st.lists(st.integers(-3, 3), min_size=6, max_size=6), min_size=1, max_size=5), st.integers(1, 8)
)  # fmt: skip
def test_top_columns_is_a_stable_sort(rows: list[list[int]], k: int) -> None:
    scores = np.array(rows, np.float32)
    scores[scores == -3] = -np.inf
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(top_columns(scores, k), expected)
